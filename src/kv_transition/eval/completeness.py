"""Whether a predictions file holds every record once: rows that come twice, and rows against the official records.

The files have no ids, and records may rightly look alike: a benchmark holds a question twice, or two questions on one
document share the answer. So without the official records a repetition is only reported, as a warning, where chance does
not explain it; with them every row is paired with its record, and a second row of one is doubled for certain. Published
results that become records (`data.published.matching`) are refused for a repeated block, so they have a stricter rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log, sqrt

from kv_transition.data.doubled_rows import Block, numbered, pair_rows, repeated_blocks, span
from kv_transition.data.excerpts import first_few
from kv_transition.data.predictions import Gold, Prediction

#: A block of rows is called repeated if unrelated rows gave one of its length less than once in so many files.
FILES_PER_FALSE_ALARM = 1000
#: Single rows are called repeated from so many on, and this share of the file.
MIN_SINGLES, MIN_SINGLES_SHARE = 3, 0.02


@dataclass(frozen=True)
class Doubles:
    """Rows that come twice. False where there are none.

    Attributes
    ----------
    blocks : runs of rows with the reference answers and lengths of an earlier run, whatever the predictions.
    singles : (row, earlier row) outside of them that are equal in everything.
    """

    blocks: tuple[Block, ...] = ()
    singles: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.blocks or self.singles)

    def __str__(self) -> str:
        parts = first_few([str(block) for block in self.blocks])
        singles = first_few([f"{row} repeats {first}" for row, first in self.singles])
        return "; ".join(part for part in (parts, singles) if part)


def doubled_rows(predictions: Sequence[Prediction]) -> Doubles:
    """Find the rows of a file that were written twice.

    A block counts when it is so long that among unrelated rows, of which as many pairs are equal as in this file, one
    is expected in less than one of FILES_PER_FALSE_ALARM files. Single rows, which a file of several writers holds in
    any order, count when there are clearly more of them than answers and lengths that agree independently would give.
    """
    golds = numbered(prediction.gold for prediction in predictions)
    blocks = _repeated_blocks(golds)
    inside = {row for block in blocks for row, _ in block.pairs()}
    return Doubles(tuple(blocks), tuple(_repeated_singles(predictions, inside)))


def _equal_pairs(values: Iterable[Hashable]) -> int:
    return sum(count * (count - 1) // 2 for count in Counter(values).values())


def _repeated_blocks(golds: Sequence[int]) -> list[Block]:
    n = len(golds)
    pairs, equal = n * (n - 1) // 2, _equal_pairs(golds)
    if equal in (0, pairs):
        return []
    shortest = max(2, ceil(log(FILES_PER_FALSE_ALARM * pairs) / log(pairs / equal)))
    return repeated_blocks(golds, shortest)


def _repeated_singles(predictions: Sequence[Prediction], left_out: set[int]) -> list[tuple[int, int]]:
    kept = [prediction for prediction in predictions if prediction.row not in left_out]
    seen: dict[Hashable, int] = {}
    found = []
    for prediction in kept:
        first = seen.setdefault((prediction.gold, prediction.pred), prediction.row)
        if first != prediction.row:
            found.append((prediction.row, first))
    n = len(kept)
    if len(found) < max(MIN_SINGLES, MIN_SINGLES_SHARE * n):
        return []
    pairs = n * (n - 1) // 2
    texts = _equal_pairs((prediction.answers, prediction.pred) for prediction in kept)
    lengths = _equal_pairs(prediction.length for prediction in kept)
    expected = texts * lengths / pairs
    observed = _equal_pairs((prediction.gold, prediction.pred) for prediction in kept)
    return found if observed > expected + 5 * sqrt(expected) else []


@dataclass(frozen=True)
class GoldCheck:
    """How a file's rows relate to the official records (all numbers from 0).

    Attributes
    ----------
    expected : number of records.
    missing : records without a row.
    doubled : rows of records that an earlier row answers already.
    foreign : rows that belong to no record.
    moved : rows that stand behind the row of a later record.
    """

    expected: int
    missing: tuple[int, ...] = ()
    doubled: tuple[int, ...] = ()
    foreign: tuple[int, ...] = ()
    moved: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every record has exactly one row, in whatever order."""
        return not (self.missing or self.doubled or self.foreign)

    def __str__(self) -> str:
        findings = (
            ("missing", "records", self.missing),
            ("doubled", "rows", self.doubled),
            ("of no record", "rows", self.foreign),
            ("out of order", "rows", self.moved),
        )
        parts = [f"{len(rows)} {what} ({unit} {_spans(rows)})" for what, unit, rows in findings if rows]
        return f"{'; '.join(parts) or 'complete and in order'}, of {self.expected} records"


def check_against_gold(predictions: Sequence[Prediction], gold: Sequence[Gold]) -> GoldCheck:
    """Compare a file row by row with the records' reference answers and lengths in their official order."""
    paired = pair_rows((prediction.gold for prediction in predictions), gold)
    doubled, foreign, moved = (
        tuple(predictions[place].row for place in places)
        for places in (paired.doubled, paired.foreign, paired.moved)
    )
    return GoldCheck(len(gold), paired.missing, doubled, foreign, moved)


def _spans(rows: Sequence[int]) -> str:
    """Ascending numbers as "0-33, 40", the first few of them."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and row == sum(spans[-1]):
            spans[-1][1] += 1
        else:
            spans.append([row, 1])
    return first_few([span(start, count) for start, count in spans])
