"""How fast prompts are tokenised, and that none is tokenised twice.

    python benchmarks/tokenise_cost.py            about a minute
    python benchmarks/tokenise_cost.py --quick    fewer texts and turns

One vocabulary, tiktoken's cl100k_base, on all sides: tiktoken itself, this project's `ModelTokenizer` (the tokenizers
library, with the file that transformers converts from tiktoken's) and transformers' own class over the same file. The
texts are this project's documents and sources; all sides have to give the same tokens. In CPU seconds, so that threads gain
nothing. Then a task some of whose texts occur twice is normalized, and normalized again as another experiment with the same
texts does. Ends with 1 if a text is tokenised a second time.

Without the encoding's file (TIKTOKEN_CACHE_DIR names its folder) or transformers the first part is left out, which the
note says.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from record import Row, save, spread

from kv_transition.data.normalize import normalize_records
from kv_transition.data.prompts import Prompt
from kv_transition.data.protocol import own_protocol
from kv_transition.data.synthetic import make_records
from kv_transition.data.token_counts import TokenCounts
from kv_transition.data.tokenizer import ModelTokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("KV_TRANSITION_SHARED") or ROOT.parent / "shared" / "data")
ENCODING = "cl100k_base"
TASK = "phrasebook_qa"

Encode = Callable[[str], Sequence[int]]


def texts(most: int) -> list[str]:
    """Documents and sources of this project."""
    files = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", *sorted(ROOT.glob("src/**/*.py"))]
    return [file.read_text(encoding="utf-8") for file in files][:most]


def encoders(folder: Path) -> tuple[Encode, dict[str, Encode]]:
    """(ours, peer -> theirs), all with the same vocabulary.

    Raises
    ------
    ImportError, OSError
        Where transformers is not installed, or the encoding's file is neither kept nor to be had.
    """
    import tiktoken
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    if (SHARED / "tiktoken_cache").is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    encoding = tiktoken.get_encoding(ENCODING)
    ranks = [
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in encoding._mergeable_ranks.items()
    ]
    (folder / "vocabulary").write_text("".join(ranks))
    TikTokenConverter(str(folder / "vocabulary")).converted().save(str(folder / "tokenizer.json"))
    slow = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return ModelTokenizer(folder).encode, {
        f"tiktoken {version('tiktoken')}": encoding.encode_ordinary,
        f"transformers {version('transformers')}": lambda text: slow(text)["input_ids"],
    }


def million_a_second(encode: Encode, given: Sequence[str]) -> float:
    """Million tokens for each CPU second."""
    start = time.process_time()
    tokens = sum(len(encode(text)) for text in given)
    return tokens / (time.process_time() - start) / 1e6


def speed_rows(turns: int, most: int) -> tuple[list[Row], str]:
    """The race, and a note where there could be none."""
    given = texts(most)
    with tempfile.TemporaryDirectory(prefix="tokenise_") as folder:
        try:
            ours, peers = encoders(Path(folder))
        except (ImportError, OSError) as error:
            return [], f"No race of tokenizers in this run: {type(error).__name__}. "
        differing = {
            name: sum(list(ours(t)) != list(theirs(t)) for t in given) for name, theirs in peers.items()
        }
        speeds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
        for _ in range(turns):
            speeds["ours"].append(million_a_second(ours, given))
            for name, encode in peers.items():
                speeds[name].append(million_a_second(encode, given))
    size = sum(map(len, given)) / 1e6
    rows = [
        Row(
            f"tokenising {len(given)} texts, {size:.1f} MB; {differing[name]} of them differ",
            spread(speeds["ours"], "M tokens/CPU s"),
            spread(speeds[name], "M tokens/CPU s"),
            name,
            tuple(a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)),
        )
        for name in peers
    ]
    return rows, ""


class WatchedTokenizer(ModelTokenizer):
    """Notes how many prompts it was given to count, whatever the cache says of itself."""

    asked = 0

    def count(self, prompt: Prompt) -> int:
        self.asked += 1
        return super().count(prompt)


def counting_rows(turns: int, documents: int) -> list[Row]:
    """A task normalized for the first time, and again by another experiment."""
    records = [dict(record) for record in make_records(TASK, documents, 256, 512, 1)]
    # Without texts that occur twice, a count of records would look like one of texts.
    records += [{**record, "_id": f"{record['_id']}-again"} for record in records[: documents // 5]]
    distinct = len({(record["input"], record["context"]) for record in records})
    protocol = own_protocol(TASK)
    spent: tuple[list[float], list[float]] = ([], [])
    asked: tuple[list[int], list[int]] = ([], [])
    for _ in range(turns):
        with tempfile.TemporaryDirectory(prefix="counts_") as folder:
            for times, numbers in zip(spent, asked, strict=True):
                tokenizer = WatchedTokenizer(ROOT / "resources" / "tiny-reader")
                start = time.process_time()
                counts = TokenCounts(folder, tokenizer, protocol, None, "benchmark")
                normalize_records(records, TASK, tokenizer, protocol, counts=counts)
                counts.save()
                times.append(1e3 * (time.process_time() - start))
                numbers.append(tokenizer.asked)
    first, again = (f"{spread(n)} ({spread(ms, 'CPU ms')})" for n, ms in zip(asked, spent, strict=True))
    work = f"prompts tokenised to count {len(records)} records with {distinct} distinct texts"
    return [
        Row(f"{work}, the first time", first, bar=f"== {distinct}", met=set(asked[0]) == {distinct}),
        Row(
            f"{work}, again by another experiment",
            again,
            first,
            "the first time",
            tuple(b / a for a, b in zip(spent[1], spent[0], strict=True)),
            "== 0",
            set(asked[1]) == {0},
        ),
    ]


def main() -> int:
    """Measure and keep; 0 if each text was tokenised once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="see that it works: 20 texts, 2 turns")
    options = parser.parse_args()
    turns = 2 if options.quick else options.turns
    rows, missing = speed_rows(turns, 20 if options.quick else 400)
    rows += counting_rows(turns, 20 if options.quick else 300)
    note = (
        f"{missing}A prompt is tokenised once for its length, which is kept by content in `cache/token_counts`, and once for its "
        "answers: one prefill serves all methods and budgets of a local engine."
    )
    save("tokenise_cost", rows, ["tiktoken", "tokenizers"], note)
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
