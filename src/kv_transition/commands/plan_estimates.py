"""What a run would take: time and disk, from what earlier answers of the same model and engine took, never from a guess."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_transition.paths import runs_dir

#: Journal rows and response files that are looked at.
MOST_ROWS = 5_000
MOST_FILES = 200


@dataclass(frozen=True)
class Measured:
    """What the journal tells of one model and engine.

    Attributes
    ----------
    rows : answers that were looked at. bytes_per_row : in the journal.
    prefill_s_per_token : of the prompts that a sweep reads once. answer_s : compressing and decoding, per answer.
    latency_s : mean of a whole request, where requests are sent to a server. longest_prompt : tokens.
    """

    rows: int
    bytes_per_row: float
    prefill_s_per_token: float | None
    answer_s: float | None
    latency_s: float | None
    longest_prompt: int

    def seconds(self, prompt_tokens: int, answers: int, concurrency: int = 0) -> float | None:
        """Time of the engine for prompts to read and answers to compute; None where it was never measured.

        Parameters
        ----------
        concurrency : requests in flight at a server; 0 for an engine in the job itself.
        """
        if answers == 0:
            return 0.0
        if concurrency:
            return None if self.latency_s is None else self.latency_s * answers / concurrency
        if self.prefill_s_per_token is None or self.answer_s is None:
            return None
        return self.prefill_s_per_token * prompt_tokens + self.answer_s * answers


def measured(folder: Path, engine: Mapping[str, Any]) -> Measured | None:
    """What the newest answers in a model's journal took; None without any.

    Parameters
    ----------
    engine : settled settings of the engine; answers of another dtype or device are left out.
    """
    rows, size = [], 0
    for length, row in _newest(folder):
        own = row["engine"]
        if all(own.get(name, engine.get(name)) == engine.get(name) for name in ("dtype", "device")):
            rows.append(row["result"])
            size += length
    if not rows:
        return None
    # 0.0 stands where the context had been read for another question.
    prefills = [row for row in rows if row["timings"]["prefill_s"] and row["prompt_tokens"]]
    computed = [row for row in rows if row["copied_from"] is None and row["failure"] is None]
    latencies = [row["timings"]["latency_s"] for row in computed if row["timings"]["latency_s"] is not None]
    read = sum(row["prompt_tokens"] for row in prefills)
    swept = [row for row in computed if row["timings"]["timing_scope"] == "sweep"]
    spent = sum((row["timings"]["compress_s"] or 0) + (row["timings"]["decode_s"] or 0) for row in swept)
    return Measured(
        rows=len(rows),
        bytes_per_row=size / len(rows),
        prefill_s_per_token=sum(row["timings"]["prefill_s"] for row in prefills) / read if read else None,
        answer_s=spent / len(swept) if swept else None,
        latency_s=sum(latencies) / len(latencies) if latencies else None,
        longest_prompt=max((row["prompt_tokens"] or 0 for row in rows), default=0),
    )


def _newest(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Bytes and content of whole rows, newest file first."""
    left = MOST_ROWS
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        with path.open("rb") as lines:
            for line in lines:
                if left == 0:
                    return
                try:
                    row = json.loads(line.decode("utf-8", "surrogatepass"))
                    row["engine"], row["result"]["timings"]
                except (ValueError, KeyError, TypeError):
                    continue
                left -= 1
                yield len(line), row


def response_bytes_per_row(own: Sequence[str]) -> float | None:
    """Mean bytes of a row of the experiment's response files, else of any experiment's; None where there are none."""
    import pyarrow.parquet as pq

    files = [Path(file) for file in own if Path(file).is_file()][:MOST_FILES]
    if not files:
        found = runs_dir().glob("*/responses/**/*.parquet")
        files = [file for file, _ in zip(found, range(MOST_FILES), strict=False)]
    size = rows = 0
    for file in files:
        try:
            rows += pq.read_metadata(file).num_rows
        except (OSError, ValueError):
            continue
        size += file.stat().st_size
    return size / rows if rows else None


def orphans(folder: Path, files: Mapping[str, bool]) -> list[str]:
    """Files of an experiment's folder that its configuration does not make; what is told of jobs is left out."""
    told = {folder / "logs", folder / "benchmarks"}
    return sorted(
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not told.intersection(path.parents) and str(path) not in files
    )
