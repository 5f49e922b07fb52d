"""Rows that come twice: compared with the records they answer, or, where none are known, as blocks that repeat.

There are two rules because there are two states of knowledge. With the records at hand every row has its record or has
none, and a second row of a record is doubled: that is exact. A file alone only shows rows that look alike, which rows of
different records rightly may; there only a long repeated block speaks, and how long it has to be is the caller's to say.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pairing:
    """Which row answers which record (all numbers from 0).

    Attributes
    ----------
    record_of : row -> record.
    missing : records without a row.
    doubled : rows of records that an earlier row answers already.
    foreign : rows that belong to no record.
    moved : rows that stand behind the row of a later record.
    """

    record_of: dict[int, int]
    missing: tuple[int, ...]
    doubled: tuple[int, ...]
    foreign: tuple[int, ...]
    moved: tuple[int, ...]


def pair_rows(rows: Iterable[Hashable], records: Iterable[Hashable]) -> Pairing:
    """Pair rows with records in their order, each named by a key: the k-th row of a key with the k-th record of it."""
    waiting: defaultdict[Hashable, deque[int]] = defaultdict(deque)
    for record, key in enumerate(records):
        waiting[key].append(record)
    record_of: dict[int, int] = {}
    doubled, foreign, moved = [], [], []
    latest = -1
    for row, key in enumerate(rows):
        if key not in waiting:
            foreign.append(row)
        elif not waiting[key]:
            doubled.append(row)
        else:
            record_of[row] = record = waiting[key].popleft()
            if record < latest:
                moved.append(row)
            latest = max(latest, record)
    missing = sorted(record for left in waiting.values() for record in left)
    return Pairing(record_of, tuple(missing), tuple(doubled), tuple(foreign), tuple(moved))


@dataclass(frozen=True)
class Block:
    """`rows` rows from row `start` on that repeat those from row `first` on (rows from 0)."""

    start: int
    first: int
    rows: int

    def __str__(self) -> str:
        return f"{span(self.start, self.rows)} repeat {span(self.first, self.rows)}"

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(row, earlier row that it repeats)."""
        for offset in range(self.rows):
            yield self.start + offset, self.first + offset


def repeated_blocks(values: Iterable[Hashable], shortest: int, *, distinct: bool = False) -> list[Block]:
    """Runs of values that repeat an earlier run, each as long as it goes, in order and without overlaps.

    Parameters
    ----------
    values : what tells of each row which record it belongs to.
    shortest : number of values from which on a run counts.
    distinct : a run counts only if its first `shortest` values all differ.
    """
    numbers = numbered(values)
    runs = _runs(numbers, shortest)
    blocks: list[Block] = []
    seen: dict[int, int] = {}
    row = 0
    while row < len(runs):
        counts = not distinct or len(set(numbers[row : row + shortest])) == shortest
        first = seen.setdefault(runs[row], row) if counts else row
        rows = 0
        if first + shortest <= row:
            while (
                first + rows < row
                and row + rows < len(numbers)
                and numbers[first + rows] == numbers[row + rows]
            ):
                rows += 1
            blocks.append(Block(row, first, rows))
        row += max(rows, 1)
    return blocks


def numbered(values: Iterable[Hashable]) -> list[int]:
    """Equal values as equal small numbers."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def span(start: int, rows: int) -> str:
    """The numbers of some rows in a line, as "3-5", or "3"."""
    return f"{start}-{start + rows - 1}" if rows > 1 else str(start)


def _runs(values: Sequence[int], length: int) -> list[int]:
    """For each position a number that tells the run of `length` values from there on; equal runs, equal numbers."""
    runs, covered = list(values), 1
    while covered < length and runs:
        step = min(covered, length - covered)
        runs = numbered(zip(runs, runs[step:], strict=False))
        covered += step
    return runs
