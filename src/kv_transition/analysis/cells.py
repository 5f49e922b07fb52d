"""The scores of one dataset as matrices: a row for each cell (method, budget), a column for each example.

Columns are ordered by (bin, example_id) and rows by (method, budget), whatever the order of the table's rows, so that
every sum adds the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from kv_transition.analysis.bootstrap import resampled_sums, stream_key
from kv_transition.analysis.intervals import cluster_codes
from kv_transition.analysis.tables import ABOUT
from kv_transition.budgets import UNCOMPRESSED, budget_from_label, kept_tokens
from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import INFRASTRUCTURE, LABELS

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

#: The bin index of all bins of a dataset together.
POOLED = -1
#: Share of examples whose prompt cannot be made to fit a budget above which the cell says nothing: those that fit are
#: no fair sample of the task.
MAX_INFEASIBLE = 0.05
#: Codes beside the indices of LABELS.
NO_LABEL, ABSENT = -1, -2
#: The cluster ids of each bin in the manifest: (dataset, bin_idx) -> sorted ids.
Clusters = Mapping[tuple[str, int], Sequence[str]]


class Place(Protocol):
    """Puts one value for each row of the table in its place in a (cells, examples) matrix."""

    def __call__(self, values: Array, fill: float = ...) -> Array: ...


@dataclass(frozen=True)
class Cell:
    """A method at a budget; `value` is nan for methods without a budget."""

    method: str
    budget: str
    value: float


@dataclass(frozen=True)
class DatasetScores:
    """All cells of one dataset; matrices are (cells, examples) with nan where a value is absent.

    Attributes
    ----------
    bins : bin indices of the manifest, ascending; a bin may have no examples.
    bin_of, clusters, cluster_in_bin, token_len : (examples,) bin, cluster number within the dataset, position of the
        cluster in its bin's manifest list, prompt tokens.
    cluster_lists : manifest clusters of each bin.
    score : the metric without infrastructure failures; `failed` : share of the replicates that failed so.
    active, press_len : 1 where compression is active (nan without a budget); positions that the eviction sees.
    extra : em, f1, kept_min, kept_mean, kept_max, measured (1 where the kept tokens were measured); infeasible,
        not_applicable (1 where nothing was asked for that reason, else 0).
    label : index into LABELS of the failure label, NO_LABEL without one, ABSENT where there is no such row.
    truncated : (examples,) 1 where the prompt lost its middle to the model's limit, nan where that is not known.
    reference_failed : (bins) -> examples left out of every cell because `full` or `no_context` failed for them.
    about : protocol, metric and length_unit, "" where the table does not say.
    bin_names : what a bin is called where its limits are not token_len.
    """

    dataset: str
    task: str
    cells: list[Cell]
    bins: list[int]
    bin_of: Indices
    clusters: Indices
    cluster_in_bin: Indices
    token_len: Array
    cluster_lists: dict[int, Sequence[str]]
    score: Array
    failed: Array
    label: Indices
    active: Array
    press_len: Array
    extra: dict[str, Array]
    truncated: Array
    reference_failed: dict[int, int]
    about: dict[str, str]
    bin_names: dict[int, str]

    def row(self, method: str) -> int | None:
        """The row of a method without a budget, None where it was not run."""
        return next((i for i, cell in enumerate(self.cells) if cell.method == method), None)

    def compressed(self) -> list[int]:
        """The rows of all cells with a budget."""
        return [i for i, cell in enumerate(self.cells) if cell.method not in UNCOMPRESSED]

    def members(self, bin_idx: int) -> Indices:
        """The examples of a bin, of all bins for POOLED."""
        inside = self.bin_of == bin_idx if bin_idx != POOLED else np.ones(len(self.bin_of), dtype=bool)
        return np.flatnonzero(inside)

    def under(self, policy: str, measure: str = "score") -> Array:
        """Scores (or "em", "f1") under a failure policy.

        "zero" counts a request that never got an answer as 0, "exclude" as missing. Of several replicates of an
        example, "zero" averages the failed ones in as 0 and "exclude" averages those that answered. Rows that are
        absent are missing in both.
        """
        values = self.score if measure == "score" else self.extra[measure]
        if policy == "exclude":
            return values
        if policy != "zero":
            raise UserError(f"analysis.policies: {policy!r} is no failure policy; give zero or exclude")
        if measure != "score" and np.isnan(values).all():
            return values  # a measure that was not taken: no failure makes it 0
        return np.where(self.failed == 1, 0.0, values * (1 - self.failed))

    def policy_groups(self, policies: Sequence[str]) -> dict[str, list[str]]:
        """Group the policies that give the same scores, so that each group is computed once."""
        groups: dict[str, list[str]] = {}
        for policy in policies:
            same = (p for p in groups if np.array_equal(self.under(p), self.under(policy), equal_nan=True))
            groups.setdefault(next(same, policy), []).append(policy)
        return groups

    def active_share(self, row: int, members: Indices) -> float:
        """Share of the bin's examples in which the cell's compression is active; nan without a budget or examples."""
        return float(self.active[row, members].mean()) if len(members) else float("nan")

    def infrastructure_share(self, row: int, members: Indices) -> float:
        """Share of a cell's present examples that ended in a timeout or an engine error."""
        present = self.label[row, members] != ABSENT
        return float(self.failed[row, members][present].mean()) if present.any() else 0.0

    def nothing_asked(self, row: int, members: Indices) -> str | None:
        """Why a cell as a whole says nothing in a bin: "not_applicable", "infeasible", or None where it may.

        It is infeasible where more than MAX_INFEASIBLE of the bin's examples are; not applicable where all are.
        """
        chosen = members if len(members) else np.arange(len(self.bin_of))
        if len(chosen) and self.extra["not_applicable"][row, chosen].all():
            return "not_applicable"
        share = self.extra["infeasible"][row, members].mean() if len(members) else 0.0
        return "infeasible" if share > MAX_INFEASIBLE else None

    def n_reference_failed(self, bin_idx: int) -> int:
        """Examples of a bin that are left out because their reference failed."""
        if bin_idx == POOLED:
            return sum(self.reference_failed.values())
        return self.reference_failed.get(bin_idx, 0)

    def straddling_clusters(self) -> int:
        """Clusters that have examples in more than one bin."""
        ids = [cluster for clusters in self.cluster_lists.values() for cluster in set(clusters)]
        return len(ids) - len(set(ids))

    def resampled(self, columns: Array, seed: int, replicates: int) -> Iterator[tuple[int, Array]]:
        """Bootstrap totals of (columns, examples) values: (columns, replicates) for each bin, then for POOLED.

        Resampling is stratified by bin: a cluster that straddles an edge is one cluster in each of its bins.
        """
        pooled = np.zeros((len(columns), replicates))
        for bin_idx in self.bins:
            members = self.members(bin_idx)
            sums = np.zeros((len(columns), len(self.cluster_lists[bin_idx])))
            position = self.cluster_in_bin[members]
            for total, values in zip(sums, columns[:, members], strict=True):
                np.add.at(total, position, values)
            totals = resampled_sums(sums, stream_key(seed, self.dataset, bin_idx), replicates)
            pooled += totals
            yield bin_idx, totals
        yield POOLED, pooled


def datasets(table: pd.DataFrame, clusters: Clusters) -> Iterator[DatasetScores]:
    """Split an example table (see `queries.example_table`) into its datasets, in the order of their names."""
    for (name, task), rows in table.groupby(["dataset", "task"], sort=True):
        yield dataset_scores(rows, clusters, str(name), str(task))


def dataset_scores(rows: pd.DataFrame, clusters: Clusters, dataset: str, task: str) -> DatasetScores:
    """Arrange the rows of one dataset.

    Required columns: example_id, cluster_id, bin_idx, token_len, method, budget, budget_value, score, failure.
    Optional: status (default "ok"), infrastructure_failed (default: from `failure`), reference_failed, press_len (default token_len), active
    (default: budget below press_len), verified, em, f1, kept_min, kept_mean, kept_max, protocol, metric, length_unit.

    Raises
    ------
    UserError
        A row is doubled, or a cluster or bin is not in the manifest.
    """
    about = {name: str(rows[name].iloc[0]) if name in rows else "" for name in ABOUT}
    cluster_lists = {idx: ids for (name, idx), ids in sorted(clusters.items()) if name == dataset}
    cells = _cells(rows)
    examples, reference_failed = _judged_examples(rows)
    rows = rows[rows["example_id"].isin(examples["example_id"])]
    matrix = _placement(rows, cells, examples["example_id"].tolist(), dataset)
    score, failed, label = _outcomes(rows)
    token_len = examples["token_len"].to_numpy(dtype=np.float64)
    press_len = matrix(_column(rows, "press_len"))
    press_len = np.where(np.isnan(press_len), token_len, press_len)
    extra = {name: matrix(_column(rows, name)) for name in ("em", "f1", "kept_min", "kept_mean", "kept_max")}
    status = np.asarray(rows["status"] if "status" in rows else ["ok"] * len(rows), dtype=object)
    for name in ("infeasible", "not_applicable"):
        extra[name] = matrix((status == name).astype(np.float64), 0.0)
    verified = rows["verified"].eq("measured") if "verified" in rows else np.nan
    extra["measured"] = matrix(np.where(failed == 1, np.nan, verified))
    bin_of = examples["bin_idx"].to_numpy(dtype=np.int64)
    cluster_ids = examples["cluster_id"].tolist()
    return DatasetScores(
        dataset=dataset,
        task=task,
        cells=cells,
        bins=sorted(cluster_lists),
        bin_of=bin_of,
        clusters=cluster_codes(cluster_ids),
        cluster_in_bin=_positions(dataset, bin_of, cluster_ids, cluster_lists),
        token_len=token_len,
        cluster_lists=cluster_lists,
        score=matrix(score),
        failed=matrix(failed, 0.0),
        label=matrix(label, ABSENT).astype(np.int64),
        active=_active(
            cells, matrix(_column(rows, "active")), press_len, about["length_unit"] in ("", "tokens")
        ),
        press_len=press_len,
        extra=extra,
        truncated=examples["truncated"].to_numpy(dtype=np.float64)
        if "truncated" in examples
        else np.full(len(examples), np.nan),
        reference_failed=reference_failed,
        about=about,
        bin_names=dict(zip(rows["bin_idx"], rows["bin_name"], strict=True)) if "bin_name" in rows else {},
    )


def _cells(rows: pd.DataFrame) -> list[Cell]:
    """The cells that occur, methods in alphabetical order, budgets ascending."""
    keys = rows[["method", "budget", "budget_value"]].drop_duplicates(["method", "budget"])
    keys = keys.sort_values(["method", "budget_value"], na_position="first")
    values = _column(keys, "budget_value")
    return [
        Cell(str(m), str(b), float(v)) for m, b, v in zip(keys["method"], keys["budget"], values, strict=True)
    ]


def _judged_examples(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, int]]:
    """One row for each example by (bin, id), without those whose reference failed; and how many these are, by bin."""
    examples = rows.drop_duplicates("example_id").sort_values(["bin_idx", "example_id"])
    if "reference_failed" not in rows:
        return examples, {}
    left_out = examples["example_id"].isin(set(rows.loc[rows["reference_failed"].astype(bool), "example_id"]))
    bins, counts = np.unique(examples.loc[left_out, "bin_idx"].to_numpy(dtype=np.int64), return_counts=True)
    return examples[~left_out], dict(zip(bins.tolist(), counts.tolist(), strict=True))


def _placement(rows: pd.DataFrame, cells: Sequence[Cell], example_ids: Sequence[str], dataset: str) -> Place:
    """Find the place of every row of the table, once for all its columns."""
    row_of = {(cell.method, cell.budget): i for i, cell in enumerate(cells)}
    column_of = {example: i for i, example in enumerate(example_ids)}
    i = np.array([row_of[key] for key in zip(rows["method"], rows["budget"], strict=True)], dtype=np.int64)
    j = np.array([column_of[example] for example in rows["example_id"]], dtype=np.int64)
    _, first, counts = np.unique(i * len(example_ids) + j, return_index=True, return_counts=True)
    if (counts > 1).any():
        k = int(first[np.argmax(counts > 1)])
        raise UserError(
            f"{dataset}: example {example_ids[j[k]]} stands twice under {cells[i[k]].method} {cells[i[k]].budget}; "
            "give one row for each example and cell"
        )

    def matrix(values: Array, fill: float = np.nan) -> Array:
        placed = np.full((len(cells), len(example_ids)), fill)
        placed[i, j] = values
        return placed

    return matrix


def _outcomes(rows: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Score (nan for infrastructure failures), share of failed replicates, and label code of each row."""
    codes = {name: code for code, name in enumerate(LABELS)}
    label = np.array([codes.get(name, NO_LABEL) for name in rows["failure"]], dtype=np.float64)
    infrastructure = np.asarray(rows["failure"].isin(INFRASTRUCTURE), dtype=np.float64)
    failed = _column(rows, "infrastructure_failed", infrastructure)
    score = np.where(failed == 1, np.nan, _column(rows, "score"))
    return score, failed, np.where(np.isnan(score) & (failed == 0), ABSENT, label)


def _column(rows: pd.DataFrame, name: str, default: Array | float = np.nan) -> Array:
    """A column as numbers, with the default where it is absent or null."""
    values = np.full(len(rows), np.nan)
    if name in rows:
        values = rows[name].astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isnan(values), default, values)


def _active(cells: Sequence[Cell], recorded: Array, press_len: Array, in_tokens: bool) -> Array:
    """1 where compression is active, 0 where not, nan for methods without a budget and where it is not known.

    Where nothing is recorded (a failed or absent row): active if the budget keeps fewer than the positions that the
    eviction sees. A budget in tokens cannot be compared with a length in words (`in_tokens` false); a share below 1 takes
    something away at any length.
    """
    active = np.full(recorded.shape, np.nan)
    for row, cell in enumerate(cells):
        budget = None if cell.method in UNCOMPRESSED else budget_from_label(cell.budget)
        if budget is not None and not in_tokens:
            active[row] = np.where(np.isnan(recorded[row]) & isinstance(budget, float), 1.0, recorded[row])
        elif budget is not None:
            by_length = [float(kept_tokens(budget, int(length)) < length) for length in press_len[row]]
            active[row] = np.where(np.isnan(recorded[row]), by_length, recorded[row])
    return active


def _positions(
    dataset: str, bin_of: Indices, cluster_ids: Sequence[str], cluster_lists: Mapping[int, Sequence[str]]
) -> Indices:
    """The position of each example's cluster in the manifest list of its bin."""
    index = {idx: {cluster: i for i, cluster in enumerate(ids)} for idx, ids in cluster_lists.items()}
    positions = np.zeros(len(bin_of), dtype=np.int64)
    for i, (bin_idx, cluster) in enumerate(zip(bin_of.tolist(), cluster_ids, strict=True)):
        position = index.get(bin_idx, {}).get(cluster)
        if position is None:
            raise UserError(
                f"{dataset}: cluster {cluster} of bin {bin_idx} is not in the manifest; score the task again with "
                "the manifest it was run with"
            )
        positions[i] = position
    return positions
