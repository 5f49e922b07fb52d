"""A table of scores from anywhere (Parquet or CSV), checked row by row, in the form the analysis takes.

One row for each request:

    example_id, cluster_id  text; questions about the same context share a cluster, else the cluster is the example
    bin_idx, token_len      length bin (0, 1, ...) and prompt length; each example has one of both
    method                  `full` is the uncompressed reference, `no_context` the prompt with an empty context
    budget                  whole tokens (256), the share kept (0.25), or the text of either ("256", "f0.25"); empty for
                            `full` and `no_context`
    score                   from 0 to 1; empty only for TIMEOUT and ENGINE_ERROR, or where there is no result (the row
                            then counts as absent)
    failure                 a failure label or empty

Optional: dataset (default: the file's name without its suffix), press_len, active, truncated, em, f1, metric, protocol,
length_unit. Other columns are ignored. The name of the dataset is part of the bootstrap's key, and the clusters that are
resampled are those of the table, by bin.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.analysis.tables import ABOUT
from kv_transition.budgets import UNCOMPRESSED, budget_label, parse_budget
from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import INFRASTRUCTURE, LABELS

if TYPE_CHECKING:
    import pandas as pd

#: Largest bin index and prompt length: the tables hold them as 32-bit numbers.
LARGEST_WHOLE = 2**31 - 1
#: Columns of a table as lists of plain values.
Values = dict[str, list[Any]]


@dataclass(frozen=True)
class ScoreTable:
    """A checked table.

    Attributes
    ----------
    rows : one row for each request, as `cells.datasets` takes them.
    clusters : (dataset, bin_idx) -> sorted cluster ids of the table.
    n_absent : rows without a score and without a failure label, which count as absent.
    n_failed_references : `full` and `no_context` rows that timed out or failed in the engine.
    """

    rows: pd.DataFrame
    clusters: dict[tuple[str, int], list[str]]
    n_absent: int
    n_failed_references: int


def read_score_table(path: str | Path) -> ScoreTable:
    """Read and check a table of scores.

    Raises
    ------
    UserError
        One line that names file, row (from 1, without the header), example and column, and says what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a table of scores, .parquet or .csv")
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: neither .parquet nor .csv; convert the table to one of them")
    raw = readers[path.suffix.lower()](path)
    missing = [name for name in REQUIRED if name not in raw]
    if missing:
        remedy = (
            "; repeat example_id there if no two questions share a context"
            if missing[0] == "cluster_id"
            else ""
        )
        raise UserError(
            f"{path}: column {missing[0]} is missing; a table of scores has {', '.join(REQUIRED)}{remedy}"
        )
    if not raw["example_id"]:
        raise UserError(f"{path}: the table has no rows; give one row for each request")
    return _Checked(path, raw).table()


def _read_csv(path: Path) -> Values:
    """The columns of a CSV file as text, None where empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save the table as UTF-8"
        ) from None
    except (csv.Error, OSError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); save the table again") from None
    if not lines:
        raise UserError(f"{path}: the file is empty; give a header and one row for each request")
    header, rows = _named(path, [name.strip() for name in lines[0]]), lines[1:]
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise UserError(
                f"{path}: row {i + 1} has {len(row)} values, the header {len(header)}; quote values that hold a comma"
            )
    return {name: [row[k] or None for row in rows] for k, name in enumerate(header)}


def _read_parquet(path: Path) -> Values:
    """The known columns of a Parquet file as plain values, None where null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = _named(path, file.schema_arrow.names)
        table = file.read(columns=[name for name in names if name in COLUMNS])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{path}: not a Parquet table ({reason}); save the table again") from None
    try:
        return {name: table[name].to_pylist() for name in table.column_names}
    except UnicodeDecodeError:
        raise UserError(f"{path}: holds text that is not UTF-8; save the table again as UTF-8") from None


def _named(path: Path, names: Sequence[str]) -> Sequence[str]:
    doubled = next((name for name in names if name in COLUMNS and list(names).count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"{path}: column {doubled} stands twice; keep one of them")
    return names


def _is_null(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and isnan(value))


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise ValueError


def _number(value: Any) -> float:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    return float(value)


def _shown(value: object) -> str:
    """A value in a message: text in quotes unless it is a number."""
    try:
        return f"{float(value):g}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return repr(value)


def _within(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        number = _number(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return parse


def _whole(low: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = _number(value)
        if not low <= number <= LARGEST_WHOLE or not number.is_integer():
            raise ValueError
        return int(number)

    return parse


def _flag(value: object) -> float:
    if _number(value) not in (0, 1):
        raise ValueError
    return _number(value)


def _scalar(value: object) -> object:
    if not isinstance(value, str | int | float):
        raise ValueError
    return value


def _label(value: object) -> str:
    if value not in LABELS:
        raise ValueError
    return str(value)


#: Column -> (how a value is read, what is expected, whether it may be empty). A share of 0 to 1 is a score.
COLUMNS: dict[str, tuple[Callable[[Any], Any], str, bool]] = {
    "example_id": (_text, "text that names the example", False),
    "cluster_id": (_text, "text, the example_id where no other question has the same context", False),
    "bin_idx": (_whole(0), "the number of the length bin, from 0", False),
    "token_len": (_whole(1), "the prompt's length as a whole number", False),
    "method": (_text, "the method's name (full for the uncompressed reference)", False),
    "budget": (_scalar, "whole tokens (256) or the share kept (0.25)", True),
    "score": (_within(0, 1), "a number from 0 to 1 (divide points out of 100 by 100)", True),
    "failure": (_label, f"one of {', '.join(LABELS)}, or nothing", True),
    "dataset": (_text, "the dataset's name, or no column dataset at all", False),
    "press_len": (_within(1, 1e12), "the number of positions that can be evicted, or nothing", True),
    "active": (_flag, "true or false, or nothing", True),
    "truncated": (_flag, "true or false, or nothing", True),
    "em": (_within(0, 1), "a number from 0 to 1, or nothing", True),
    "f1": (_within(0, 1), "a number from 0 to 1, or nothing", True),
} | dict.fromkeys(ABOUT, (_text, "text, or nothing", True))
REQUIRED = tuple(COLUMNS)[:8]
#: What an example has once.
OF_EXAMPLE = ("cluster_id", "bin_idx", "token_len", "truncated")


class _Checked:
    """The checks of one table, from values to rows."""

    def __init__(self, path: Path, raw: Values) -> None:
        self.path = path
        self.size = len(raw["example_id"])
        self.ids = raw["example_id"]
        self.columns = {name: self._parsed(name, raw[name]) for name in COLUMNS if name in raw}
        self.columns.setdefault("dataset", [path.stem] * self.size)

    def error(self, row: int, problem: str) -> UserError:
        """The error of one row; `row` counts from 0."""
        return UserError(f"{self.path}: row {row + 1} (example {self.ids[row]}): {problem}")

    def _parsed(self, name: str, values: Sequence[Any]) -> list[Any]:
        parse, wanted, may_be_empty = COLUMNS[name]
        parsed: list[Any] = []
        for row, value in enumerate(values):
            if _is_null(value):
                if not may_be_empty:
                    raise self.error(row, f"column {name} is empty; give {wanted}")
                parsed.append(None)
                continue
            try:
                parsed.append(parse(value))
            except (TypeError, ValueError, OverflowError):
                raise self.error(row, f"column {name} is {_shown(value)}; give {wanted}") from None
        return parsed

    def table(self) -> ScoreTable:
        """The rows in their form, after all checks."""
        import pandas as pd

        budgets = self._budgets()
        self._check_scores()
        self._check_doubled([label for label, _ in budgets])
        self._check_one_value("example", ("dataset", "example_id"), OF_EXAMPLE)
        self._check_one_value("dataset", ("dataset",), tuple(ABOUT))
        frame = pd.DataFrame({**self.columns, "budget": [label for label, _ in budgets]})
        frame["budget_value"] = [value for _, value in budgets]
        frame["task"] = frame["dataset"]
        for name in set(ABOUT) & set(frame):
            frame[name] = frame[name].fillna("")
        for name in ("score", "press_len", "active", "truncated", "em", "f1"):
            if name in frame:
                frame[name] = frame[name].astype("float64")
        frame["failure"] = frame["failure"].astype(object).where(frame["failure"].notna(), None)
        frame.loc[frame["failure"] == "EMPTY_OUTPUT", "score"] = 0.0
        keys = ["dataset", "method", "budget_value", "bin_idx", "example_id"]
        frame = frame.sort_values(keys, ignore_index=True)
        groups = frame.groupby(["dataset", "bin_idx"])["cluster_id"]
        failed_references = frame["method"].isin(UNCOMPRESSED) & frame["failure"].isin(INFRASTRUCTURE)
        return ScoreTable(
            rows=frame,
            clusters={(str(name), int(str(idx))): sorted(set(ids)) for (name, idx), ids in groups},
            n_absent=int((frame["score"].isna() & frame["failure"].isna()).sum()),
            n_failed_references=int(failed_references.sum()),
        )

    def _budgets(self) -> list[tuple[str, float]]:
        """(label, value) of each row's budget; nan for methods without one."""
        kinds: dict[str, bool] = {}
        known: dict[object, tuple[str, float]] = {}
        found = []
        for row, (method, value) in enumerate(
            zip(self.columns["method"], self.columns["budget"], strict=True)
        ):
            if method in UNCOMPRESSED:
                if value not in (None, "full"):
                    raise self.error(
                        row, f"method {method} has the budget {value!r}; it has none, so leave it empty"
                    )
                found.append(("full", float("nan")))
                continue
            if value is None:
                raise self.error(
                    row,
                    f"column budget is empty for method {method}; give its tokens (256) or the share kept (0.25)",
                )
            if value not in known:
                known[value] = self._budget(row, value)
            label, number = known[value]
            if kinds.setdefault(self.columns["dataset"][row], number < 1) != (number < 1):
                raise self.error(
                    row, f"budget {label}: tokens and shares are mixed in this dataset; give one kind"
                )
            found.append((label, number))
        without = [name for name in self.columns["dataset"] if name not in kinds]
        if without:
            raise UserError(
                f"{self.path}: dataset {without[0]} has no row with a budget; add compressed runs"
            )
        return found

    def _budget(self, row: int, value: object) -> tuple[str, float]:
        try:
            budget = parse_budget(value)
        except UserError:
            raise self.error(
                row,
                f"column budget is {_shown(value)}; give whole tokens from 2 up (256) or a share kept between 0 and 1 (0.25)",
            ) from None
        return budget_label(budget), float(budget)

    def _check_scores(self) -> None:
        """A score goes with every failure but those of the infrastructure, which have none."""
        for row, (score, failure) in enumerate(
            zip(self.columns["score"], self.columns["failure"], strict=True)
        ):
            if failure in INFRASTRUCTURE and score is not None:
                raise self.error(
                    row,
                    f"{failure} with the score {score:g}; a request without an answer has none, so empty it",
                )
            if score is None and failure not in (None, "EMPTY_OUTPUT", *INFRASTRUCTURE):
                raise self.error(
                    row, f"column score is empty with failure {failure}; give the score of the answer"
                )

    def _check_doubled(self, labels: Sequence[str]) -> None:
        names = ("dataset", "example_id", "method")
        first: dict[tuple[Any, ...], int] = {}
        for row, key in enumerate(zip(*(self.columns[name] for name in names), labels, strict=True)):
            if first.setdefault(key, row) != row:
                cell = key[2] if key[2] in UNCOMPRESSED else f"{key[2]} {key[3]}"
                raise self.error(
                    row,
                    f"stands under {cell} already in row {first[key] + 1}; give one row for each example, method and "
                    "budget (average repeated runs)",
                )

    def _check_one_value(self, what: str, key_names: Iterable[str], names: Sequence[str]) -> None:
        keys = list(zip(*(self.columns[name] for name in key_names), strict=True))
        for name in (name for name in names if name in self.columns):
            first: dict[tuple[Any, ...], int] = {}
            values = self.columns[name]
            for row, key in enumerate(keys):
                before = first.setdefault(key, row)
                if values[before] != values[row]:
                    raise self.error(
                        row,
                        f"column {name} is {values[row]!r}, but {values[before]!r} in row {before + 1} of the same {what}; "
                        "give one value",
                    )
