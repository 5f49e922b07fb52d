"""The manifest: which examples of a task are run, in which length bin; all that a run needs to start."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from kv_transition.data.binning import assign_bins, bin_edges, eligible, select
from kv_transition.data.longbench_tasks import task_facts
from kv_transition.data.normalize import CountedExample, Example
from kv_transition.errors import UserError
from kv_transition.files import write_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

VERSION = 1

#: What bins are cut by: the prompt's tokens, or the record's own `length` (words; characters in Chinese).
BinBy = Literal["token_len", "length"]


@dataclass(frozen=True)
class Entry:
    """An example that is run."""

    example_id: str
    bin_idx: int
    token_len: int


@dataclass(frozen=True)
class Bin:
    """A length bin from `lower` to `upper`, both included, in the unit of `Manifest.bin_by` (`lower` > `upper`: empty).

    `available` examples are eligible, `selected` of them are run; the token_len of both is null in an empty bin.
    """

    bin_idx: int
    lower: int
    upper: int
    available: int
    selected: int
    available_min: int | None
    available_median: float | None
    available_max: int | None
    selected_min: int | None
    selected_median: float | None
    selected_max: int | None


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes
    ----------
    tokenizer : what counted the lengths.
    protocol : name and version of the prompts.
    bin_edges : inclusive upper edges of the bins, in the unit of `bin_by`.
    entries : sorted by (token_len, example_id).
    examples : in the order of `entries`.
    clusters : bin index (as text) -> sorted cluster ids of the bin's entries.
    warnings : what a reader of the results has to know about the selection.
    n_records : records of the task before any was left out; None in manifests that do not say.
    """

    version: int
    experiment: str
    dataset: str
    dataset_id: str
    task: str
    tokenizer: str
    protocol: str
    n_bins: int
    n_per_bin: int
    selection_seed: int
    bin_edges: list[int]
    bins: list[Bin]
    entries: list[Entry]
    clusters: dict[str, list[str]]
    examples: list[Example]
    warnings: list[str] = field(default_factory=list)
    bin_by: BinBy = "token_len"
    n_records: int | None = None

    @property
    def length_unit(self) -> str:
        """The unit of token_len."""
        return self._record_unit if self.tokenizer == "length" else "tokens"

    @property
    def bin_names(self) -> list[str]:
        """What each bin is called where its limits are not token_len; "" where they are."""
        if self.bin_by == "token_len" or self.tokenizer == "length":
            return [""] * self.n_bins
        return [f"{one.lower}–{one.upper} {self._record_unit}" for one in self.bins]

    @property
    def _record_unit(self) -> str:
        """What the records' own `length` counts: words, in Chinese characters."""
        facts = task_facts(self.task)
        return "characters" if facts and facts.language == "zh" else "words"


def build_manifest(
    examples: Sequence[CountedExample],
    *,
    experiment: str,
    dataset: str,
    task: str,
    tokenizer: str,
    protocol: str,
    n_bins: int,
    n_per_bin: int | None,
    selection_seed: int,
    by: BinBy = "token_len",
    edges: Sequence[int] = (),
    min_tokens: int | None = None,
    max_tokens: int | None = None,
) -> Manifest:
    """Cut the eligible examples into length bins and choose up to `n_per_bin` of each (None: all).

    Parameters
    ----------
    examples : of one task, in any order.
    tokenizer : name of the counter behind token_len.
    protocol : name and version of the prompts.
    by, edges : what bins are cut by, and the upper edges of all bins but the last; without edges quantiles.
    min_tokens, max_tokens : bounds of the eligible prompt lengths, both included.

    Raises
    ------
    UserError
        When no example is eligible, or bins are cut by a length that a record does not have.
    """
    kept = eligible(examples, min_tokens, max_tokens)
    ids = [example.example_id for example in kept]
    lengths = np.array([measured(example, by, example.token_len, task) for example in kept])
    upper = [*edges, max(int(lengths.max()), *edges)] if edges else bin_edges(lengths, n_bins)
    bins = assign_bins(lengths, upper)
    if n_per_bin is None:
        n_per_bin = int(np.bincount(bins).max())
        full_size = 1
    else:
        full_size = n_per_bin
    chosen = set(select(ids, bins, n_per_bin, selection_seed))
    rows = sorted(
        (
            (Entry(example.example_id, int(index), example.token_len), example.uncounted())
            for example, index in zip(kept, bins, strict=True)
            if example.example_id in chosen
        ),
        key=lambda row: (row[0].token_len, row[0].example_id),
    )
    entries = [entry for entry, _ in rows]
    summaries = _summaries(upper, int(lengths.min()), np.array([e.token_len for e in kept]), bins, entries)
    return Manifest(
        version=VERSION,
        experiment=experiment,
        dataset=dataset,
        dataset_id=f"{dataset}__{task}",
        task=task,
        tokenizer=tokenizer,
        protocol=protocol,
        n_bins=n_bins,
        n_per_bin=n_per_bin,
        selection_seed=selection_seed,
        bin_edges=upper,
        bins=summaries,
        entries=entries,
        clusters=_clusters(n_bins, entries, [example for _, example in rows]),
        examples=[example for _, example in rows],
        warnings=[
            f"bin {b.bin_idx} ({by} up to {b.upper}): {b.available} examples, {full_size} asked for"
            if b.available
            else f"bin {b.bin_idx} ({by} from {b.lower} on) is empty"
            for b in summaries
            if b.available < full_size
        ],
        bin_by=by,
        n_records=len(examples),
    )


def measured(example: Example, by: BinBy, token_len: int, task: str) -> int:
    """The length of an example that bins are cut by."""
    if by == "token_len":
        return token_len
    length = example.meta.get("length")
    if length is None:
        raise UserError(
            f"task {task}: example {example.example_id} has no length, which binning.by: length asks for; set binning.by "
            "to token_len or add the column length to the records"
        )
    return int(length)


def _summaries(
    edges: Sequence[int],
    shortest: int,
    lengths: npt.NDArray[np.int_],
    bins: npt.NDArray[np.int_],
    entries: Sequence[Entry],
) -> list[Bin]:
    lowers = [shortest, *(edge + 1 for edge in edges[:-1])]
    result = []
    for index, (lower, upper) in enumerate(zip(lowers, edges, strict=True)):
        available = lengths[bins == index]
        selected = np.array([entry.token_len for entry in entries if entry.bin_idx == index])
        result.append(
            Bin(index, lower, upper, len(available), len(selected), *_spread(available), *_spread(selected))
        )
    return result


def _spread(lengths: npt.NDArray[np.int_]) -> tuple[int | None, float | None, int | None]:
    """Shortest, median and longest."""
    if len(lengths) == 0:
        return None, None, None
    return int(lengths.min()), float(np.median(lengths)), int(lengths.max())


def _clusters(n_bins: int, entries: Sequence[Entry], examples: Sequence[Example]) -> dict[str, list[str]]:
    clusters: dict[str, set[str]] = {str(index): set() for index in range(n_bins)}
    for entry, example in zip(entries, examples, strict=True):
        clusters[str(entry.bin_idx)].add(example.cluster_id)
    return {index: sorted(members) for index, members in clusters.items()}


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write manifest.json; equal manifests give equal bytes."""
    write_json(path, asdict(manifest))


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest, and check that it can carry a run.

    Raises
    ------
    UserError
        Naming the file and what is wrong: missing, not JSON, another version, a missing or mistyped field, doubled
        ids, or parts that contradict each other.
    """
    from pydantic import ValidationError

    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such manifest; build it with the command prepare") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as a manifest ({error}); build it again") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(
            f"{path}: not a manifest of version {VERSION} (its version is {version!r}); build it again"
        )
    try:
        manifest: Manifest = _checked_form().validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not a manifest: {where}: {first['msg']}; build it again") from None
    wrong = _contradiction(manifest)
    if wrong:
        raise UserError(f"{path}: {wrong}; build it again")
    return manifest


@cache
def _checked_form() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _contradiction(m: Manifest) -> str | None:
    """What is wrong with a manifest whose fields are all there; None for a sound one."""
    if not m.entries:
        return "entries: there is none"
    if not len(m.bin_edges) == len(m.bins) == m.n_bins or not m.bin_edges:
        return "bin_edges and bins do not have n_bins items"
    ids = [entry.example_id for entry in m.entries]
    doubled = [example_id for example_id, count in Counter(ids).items() if count > 1]
    order = [(entry.token_len, entry.example_id) for entry in m.entries]
    lengths = [
        measured(example, m.bin_by, entry.token_len, m.task)
        for entry, example in zip(m.entries, m.examples, strict=False)
    ]
    bins = [entry.bin_idx for entry in m.entries]
    checks = {
        f"entries: doubled example_id {', '.join(doubled)}": not doubled,
        "entries and examples do not hold the same ids in the same order": ids
        == [e.example_id for e in m.examples],
        "entries are not sorted by (token_len, example_id)": order == sorted(order),
        "bin_edges fall": m.bin_edges == sorted(m.bin_edges),
        "bins: bin_idx or upper differs from bin_edges": [(b.bin_idx, b.upper) for b in m.bins]
        == list(enumerate(m.bin_edges)),
        f"entries: {m.bin_by} lies beyond the last of bin_edges": max(lengths, default=0) <= m.bin_edges[-1],
        f"entries: bin_idx does not follow from {m.bin_by} and bin_edges": bins
        == assign_bins(lengths, m.bin_edges).tolist(),
        "bins: selected does not count the entries": [b.selected for b in m.bins]
        == [bins.count(index) for index in range(m.n_bins)],
        "dataset_id is not <dataset>__<task>": m.dataset_id == f"{m.dataset}__{m.task}",
    }
    broken = next((message for message, sound in checks.items() if not sound), None)
    if broken is None and m.clusters != _clusters(m.n_bins, m.entries, m.examples):
        return "clusters do not follow from entries and examples"
    return broken
