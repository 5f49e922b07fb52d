"""Which row answers which record: nothing is scored unless every record has exactly one row, in the records' order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from kv_transition.data.doubled_rows import pair_rows, repeated_blocks
from kv_transition.data.excerpts import first_few, shown
from kv_transition.data.published.rows import Cell, Row, Run, cell_words
from kv_transition.errors import UserError

#: From so many equal neighbours on, rows that look like earlier rows are a block that was written twice.
SHORTEST_BLOCK = 5


@dataclass(frozen=True)
class Record:
    """What rows are compared with. `id` and `index` (from 0) are what a row may name its record by."""

    example_id: str
    id: str | None
    index: int
    answers: tuple[str, ...] | None
    length: int | None


@dataclass
class Findings:
    """What is wrong with a run's rows, in words that name them."""

    foreign: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = (
            ("doubled", self.doubled),
            ("missing", self.missing),
            ("in another order", self.moved),
            ("of no record", self.foreign),
        )
        return "; ".join(f"{len(rows)} {what} ({first_few(rows)})" for what, rows in kinds if rows)


@dataclass(frozen=True)
class Matched:
    """Rows by the example_id of their records, and what was passed over ("" if nothing was)."""

    rows: dict[str, Row]
    notes: str


def match_rows(
    task: str, cell: Cell, run: Run, records: Sequence[Record], *, allow_incomplete: bool, own: bool
) -> Matched:
    """Give every record its row.

    Parameters
    ----------
    records : all records of the task.
    allow_incomplete : rows may be missing, doubled (the first counts) or in another order.
    own : the records were made from the rows of `full`, so what is beside them is a row that `full` lacks.

    Notes
    -----
    Rows are matched by the id or number that they state, else by their place, which their reference answers (and lengths)
    have to confirm. Reference answers that differ are always refused: they are those of other records.

    Raises
    ------
    UserError
        Naming the file, the first rows of each kind by their lines, and the remedy.
    """
    name = f"{task}, {cell_words(cell)}"
    records = sorted(records, key=lambda record: record.index)
    key_of_row, key_of_record, stated = _keys(name, run, records)
    rows, findings = _assign(run.rows, records, key_of_row, key_of_record, stated)
    where = f"{run.file}, {name}"
    liftable = own and stated
    if findings.foreign and not (liftable and allow_incomplete):
        _refuse_foreign(where, findings, liftable)
    differing = [text for record, row in rows if (text := _difference(record, row))] if stated else []
    if differing:
        raise UserError(
            f"{where}: {len(differing)} of {len(rows)} rows do not fit their records ({first_few(differing)}); this is another "
            "task's file or another version of the data, so nothing was matched"
        )
    if str(findings) and not allow_incomplete:
        raise UserError(
            f"{where}: the rows are not those of the {len(records)} records, each once and in order: {findings}; mend the file, "
            "or set published.allow_incomplete: true"
        )
    if findings.ambiguous:
        raise UserError(
            f"{where}: {findings}; which row belongs to which record cannot be told for {first_few(findings.ambiguous)}, whose "
            "reference answers other records have too; add ids (_id, example_id or idx) to the rows"
        )
    return Matched({record.example_id: row for record, row in rows}, str(findings))


def check_reference(task: str, run: Run, allow_incomplete: bool) -> tuple[list[Row], str]:
    """The rows of `full` as a task's records, and what was passed over: there is nothing else to compare them with.

    Ids and numbers that come twice, numbers that are left out or fall, and blocks of rows that repeat are refused.
    """
    findings = Findings()
    stated: Callable[[Row], Hashable] = lambda row: row.example_id if row.index is None else row.index  # noqa: E731
    kept: dict[Hashable, Row] = {}
    latest = -1
    for place, row in enumerate(run.rows):
        key = stated(row)
        first = kept.setdefault(place if key is None else key, row)
        if first is not row:
            findings.doubled.append(f"line {row.line} repeats line {first.line}")
        elif row.index is not None:
            if row.index < latest:
                findings.moved.append(f"line {row.line}")
            latest = max(latest, row.index)
    numbers = [row.index for row in kept.values() if row.index is not None]
    findings.missing = [f"row {number}" for number in range(latest + 1) if number not in set(numbers)]
    rows = list(kept.values())
    if not numbers:
        rows = _without_blocks(rows, findings)
    if str(findings) and not allow_incomplete:
        raise UserError(
            f"{run.file}, {task}, full: {findings}; mend the file, give the records with dataset.path, or set "
            "published.allow_incomplete: true"
        )
    return sorted(rows, key=lambda row: -1 if row.index is None else row.index), str(findings)


def _without_blocks(rows: list[Row], findings: Findings) -> list[Row]:
    """The rows without blocks that repeat an earlier one in reference answers and lengths.

    A block is refused or left out here, so it counts only if its first rows all differ. `eval.completeness`, which only
    warns, asks how long a block chance would explain: that finds blocks of few different values too, and is mistaken
    where neighbours are alike, as are records of one nominal length that stand together.
    """
    golds = [(row.answers, row.length) for row in rows]
    blocks = repeated_blocks(golds, SHORTEST_BLOCK, distinct=True)
    repeats = dict(pair for block in blocks for pair in block.pairs())
    findings.doubled += [
        f"line {rows[place].line} repeats line {rows[first].line}" for place, first in repeats.items()
    ]
    return [row for place, row in enumerate(rows) if place not in repeats]


_KeyOfRow = Callable[[Row], Hashable]
_KeyOfRecord = Callable[[Record], Hashable]


def _keys(name: str, run: Run, records: Sequence[Record]) -> tuple[_KeyOfRow, _KeyOfRecord, bool]:
    """What names a row's record, what a record is named by, and whether the rows state it themselves."""
    ids = {row.example_id for row in run.rows}
    known = {record.id for record in records}
    if None not in ids and (ids & known or run.rows[0].answers is None):
        return (lambda row: row.example_id), (lambda record: record.id), True
    if all(row.index is not None for row in run.rows):
        return (lambda row: row.index), (lambda record: record.index), True
    if any(row.answers is None for row in run.rows) or any(record.answers is None for record in records):
        raise UserError(
            f"{run.file}, {name}: the rows name no record (_id, example_id or idx) and hold no reference answers to match them "
            "by; add one of these"
        )
    with_length = all(row.length is not None for row in run.rows) and all(
        r.length is not None for r in records
    )
    return (
        (lambda row: (row.answers, row.length if with_length else None)),
        (lambda record: (record.answers, record.length if with_length else None)),
        False,
    )


def _assign(
    rows: Sequence[Row],
    records: Sequence[Record],
    key_of_row: _KeyOfRow,
    key_of_record: _KeyOfRecord,
    stated: bool,
) -> tuple[list[tuple[Record, Row]], Findings]:
    """Pairs of record and row, the k-th row of a key with the k-th record of it, and what does not fit."""
    keys = [key_of_row(row) for row in rows]
    keys_of_records = [key_of_record(record) for record in records]
    paired = pair_rows(keys, keys_of_records)
    first_line: dict[Hashable, int] = {}
    for key, row in zip(keys, rows, strict=True):
        first_line.setdefault(key, row.line)
    findings = Findings(
        foreign=[_foreign(rows[place], stated) for place in paired.foreign],
        doubled=[
            f"line {rows[place].line} repeats line {first_line[keys[place]]}" for place in paired.doubled
        ],
        missing=[f"record {record + 1}" for record in paired.missing],
        moved=[f"line {rows[place].line}, record {paired.record_of[place] + 1}" for place in paired.moved],
    )
    if str(findings):
        counts = Counter(keys)
        findings.ambiguous = [
            f"line {first_line[key]}"
            for key, times in Counter(keys_of_records).items()
            if times > 1 and key in first_line and (counts[key] != times or findings.moved)
        ]
    return [(records[record], rows[place]) for place, record in paired.record_of.items()], findings


def _foreign(row: Row, stated: bool) -> str:
    if stated:
        return f"line {row.line}: " + (
            f"idx {row.index}" if row.example_id is None else shown(row.example_id)
        )
    length = "" if row.length is None else f", length {row.length}"
    return f"line {row.line}: answers {shown(list(row.answers or ()))}{length}"


def _refuse_foreign(where: str, findings: Findings, liftable: bool) -> None:
    rows = first_few(findings.foreign)
    if liftable:
        raise UserError(
            f"{where}: {len(findings.foreign)} rows have no counterpart in full ({rows}); mend the file, or set "
            "published.allow_incomplete: true to leave them out"
        )
    raise UserError(
        f"{where}: {len(findings.foreign)} rows belong to no record ({rows}); this is another task's file or another version "
        "of the data, so nothing was matched"
    )


def _difference(record: Record, row: Row) -> str:
    """How a row's reference answers or length differ from those of its record, "" if they do not."""
    if row.answers is not None and record.answers is not None and row.answers != record.answers:
        return f"line {row.line} has the answers {shown(list(row.answers))}, the record {shown(list(record.answers))}"
    if row.length is not None and record.length is not None and row.length != record.length:
        return f"line {row.line} has the length {row.length}, the record {record.length}"
    return ""
