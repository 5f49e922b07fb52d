"""The finished tables of an experiment, read once and asked for what the report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.analysis.figures.canvas import METRIC_WORDS, finite, sorted_budgets
from kv_transition.analysis.figures.cells import POOLED, LengthBin, length_bins, one_token_share
from kv_transition.analysis.figures.palette import in_order
from kv_transition.budgets import UNCOMPRESSED, Budget
from kv_transition.files import read_parquet
from kv_transition.methods import TEXT_METHODS
from kv_transition.report.wording import Curve

if TYPE_CHECKING:
    import pandas as pd


#: The analysis tables that a report is made of.
TABLES = (
    *("bin_stats", "retention", "transition", "paired_tests", "lossless", "effect_models", "macro", "costs"),
)
#: The table that only experiments in half precision have.
NOISE_FLOOR = "noise_floor"


@dataclass(frozen=True)
class Claim:
    """What is shown of "loses less than delta" for one method on one task.

    Attributes
    ----------
    status : "ok", "not_demonstrated", "not_tested", or why the task cannot be judged.
    budget, every_length : the smallest budget shown with all lengths together, and in every length bin; None without one.
    mde : the smallest loss that the last test would have found with power 0.8.
    n_needed : examples with which the spread seen here would show it of a budget without any loss; n : those there were.
    failed_at, loss : the budget at which the last test failed and the limits of the loss there, where these lie beyond delta
        as a whole; None elsewhere.
    unreliable : no budget was tested, because too many requests failed at the largest.
    p_over_methods : p-value of the claim after Holm's correction over the task's methods.
    """

    status: str
    budget: str | None
    every_length: str | None = None
    mde: float | None = None
    n_needed: int | None = None
    p_over_methods: float | None = None
    n: int | None = None
    failed_at: str | None = None
    loss: tuple[float, float] | None = None
    unreliable: bool = False


@dataclass(frozen=True)
class Study:
    """Settings, manifests (by task) and the tables of scores and analysis, all tasks together."""

    settings: Mapping[str, Any]
    manifests: Mapping[str, Mapping[str, Any]]
    scores: pd.DataFrame
    bin_stats: pd.DataFrame
    retention: pd.DataFrame
    transition: pd.DataFrame
    paired_tests: pd.DataFrame
    lossless: pd.DataFrame
    effect_models: pd.DataFrame
    macro: pd.DataFrame
    costs: pd.DataFrame
    noise_floor: pd.DataFrame | None = None

    @property
    def policy(self) -> str:
        """The leading failure policy."""
        return str(self.settings["analysis"]["policy"])

    @property
    def conf(self) -> float:
        """Confidence level of the intervals."""
        return float(self.settings["analysis"]["conf"])

    @property
    def taus(self) -> list[float]:
        """Retention levels; the first leads."""
        return [float(tau) for tau in self.settings["analysis"]["tau"]]

    @property
    def delta(self) -> float:
        """The margin of "lossless", an absolute difference of scores."""
        return float(self.settings["analysis"]["delta"])

    @property
    def min_active_share(self) -> float:
        """Share of prompts longer than the budget below which a cell is no evidence."""
        return float(self.settings["analysis"]["min_active_share"])

    @property
    def max_failures(self) -> float:
        """Share of failed requests above which a cell is unreliable."""
        return float(self.settings["analysis"]["max_infrastructure_failures"])

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks in the order of the configuration, those with results."""
        found = set(self.bin_stats["task"])
        named = [task for task in self.settings["dataset"]["tasks"] if task in found]
        return named + sorted(found - set(named))

    @cached_property
    def methods(self) -> list[str]:
        """Methods with a budget, in the order of the figures."""
        return in_order(set(self.bin_stats["method"]) - set(UNCOMPRESSED))

    @cached_property
    def budgets(self) -> list[Budget]:
        """All budgets with results."""
        return sorted_budgets(list(self.bin_stats["budget"].unique()))

    @property
    def budget_unit(self) -> str:
        """What follows a budget: "tokens", or of what it is a share, which only the source of published results knows."""
        if not any(isinstance(budget, float) for budget in self.budgets):
            return "tokens"
        return (
            "as the source counts it" if self.settings["engine"]["kind"] == "published" else "of the prompt"
        )

    @property
    def text_methods(self) -> list[str]:
        """Methods with results that shortened the text instead of a cache."""
        published = self.settings["engine"]["kind"] == "published"
        return [] if published else [name for name in self.methods if name in TEXT_METHODS]

    def methods_on(self, task: str) -> list[str]:
        """Methods with a budget that are applicable to a task."""
        passed_over = self.not_applicable(task)
        return [name for name in self.methods if name not in passed_over]

    def not_applicable(self, task: str) -> list[str]:
        """Methods that need something which the records of a task do not have."""
        stats = self.pooled(self.stats(task))
        found = set(stats.loc[stats["status"] == "not_applicable", "method"])
        return [name for name in self.methods if name in found]

    def metric(self, task: str) -> str:
        """The name of a task's score in words."""
        names = self.scores.loc[self.scores["task"] == task, "metric"].dropna().unique()
        return METRIC_WORDS.get(names[0], str(names[0])) if len(names) == 1 else "score"

    def protocol(self, task: str) -> str:
        """Name and version of the task's prompts."""
        return str(self.manifests[task]["protocol"]) if task in self.manifests else "unknown"

    def stats(self, task: str, policy: str | None = None) -> pd.DataFrame:
        """The rows of `bin_stats` of a task under a policy (the leading one)."""
        return _of(self.bin_stats, task, policy or self.policy)

    def bins(self, task: str) -> list[LengthBin]:
        """The length bins of a task."""
        if task not in self._bins:
            self._bins[task] = length_bins(self.stats(task))
        return list(self._bins[task])

    @cached_property
    def _bins(self) -> dict[str, list[LengthBin]]:
        """The length bins of the tasks that were asked for."""
        return {}

    def pooled(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows over all lengths; those of the only bin where nothing was pooled."""
        rows = table[table["bin_idx"] == POOLED]
        return rows if len(rows) or table["bin_idx"].nunique() != 1 else table

    def reference(self, task: str, method: str, policy: str | None = None) -> pd.Series | None:
        """The pooled row of `full` or `no_context`, None where it was not run."""
        rows = self.pooled(self.stats(task, policy))
        rows = rows[rows["method"] == method]
        return rows.iloc[0] if len(rows) and finite(rows.iloc[0]["mean"]) else None

    def ratios(self, task: str, policy: str | None = None) -> pd.DataFrame:
        """The rows of `retention` of a task under a policy (the leading one)."""
        return _of(self.retention, task, policy or self.policy)

    def sized(self, task: str) -> pd.DataFrame:
        """The rows of `retention` whose smallest loss that would be found means something.

        Not those without compression or with failures, under a gate, or without any spread.
        """
        rows = self.ratios(task)
        inactive = rows["active_frac"].astype(float) < self.min_active_share
        usable = (rows["status"] == "ok") & ~inactive & ~rows["unreliable"].astype(bool)
        return rows[usable & rows["mde"].notna()]

    def curves(self, task: str, tau: float, policy: str | None = None) -> list[Curve]:
        """The transition rows of a task at one tau, by method and bin; none of a method that is not applicable."""
        rows = _of(self.transition, task, policy or self.policy)
        rows = rows[(rows["tau"] - tau).abs() < 1e-9]
        order = {method: rank for rank, method in enumerate(self.methods)}
        rows = rows[rows["status"] != "not_applicable"]
        if POOLED in set(rows["bin_idx"]) and len(self.bins(task)) == 1:
            rows = rows[rows["bin_idx"] == POOLED]  # the only bin is all lengths: one curve, not two
        curves = [_curve(row) for _, row in rows.iterrows()]
        return sorted(curves, key=lambda curve: (order.get(curve.method, len(order)), curve.bin_idx))

    def curve_rows(self, task: str, tau: float) -> pd.DataFrame:
        """The rows of `transition` of a task at one tau, under the leading policy."""
        rows = _of(self.transition, task, self.policy)
        return rows[(rows["tau"] - tau).abs() < 1e-9]

    def pooled_curves(self, task: str, tau: float, policy: str | None = None) -> list[Curve]:
        """The curves over all lengths; those of the only bin where nothing was pooled."""
        curves = self.curves(task, tau, policy)
        bins = {curve.bin_idx for curve in curves}
        wanted = POOLED if POOLED in bins or len(bins) != 1 else next(iter(bins))
        return [curve for curve in curves if curve.bin_idx == wanted]

    def claim(self, task: str, method: str, policy: str | None = None) -> Claim | None:
        """From which budget on a method is shown to lose less than delta, all lengths pooled; None without a row."""
        rows = self.pooled(_of(self.lossless, task, policy or self.policy))
        rows = rows[rows["method"] == method]
        if rows.empty:
            return None
        found = _claim(rows.iloc[0])
        cells = self.pooled(self.ratios(task, policy))
        return _with_loss(found, rows.iloc[0], cells[cells["method"] == method])

    def models(self, task: str) -> pd.DataFrame:
        """The terms of the fitted models of a task under the leading policy."""
        return _of(self.effect_models, task, self.policy)

    def comparisons(self, task: str, kind: str, bin_idx: int = POOLED) -> pd.DataFrame:
        """The paired tests of one kind in one bin of a task, those with a p-value."""
        rows = _of(self.paired_tests, task, self.policy)
        return rows[(rows["kind"] == kind) & (rows["bin_idx"] == bin_idx) & rows["p_adjusted"].notna()]

    def shortened(self, task: str) -> str:
        """How many prompts were cut to the model's length, as "k of n"; empty where none was."""
        rows = self.scores[(self.scores["task"] == task) & (self.scores["method"] == "full")]
        cut = int((rows["dropped_tokens"].fillna(0) > 0).sum())
        return f"{cut} of {len(rows)}" if cut else ""

    def one_token_share(self, task: str) -> float:
        """The share of a task's answers with a budget whose scored text is one token."""
        return one_token_share(self.scores, task)


def _of(table: pd.DataFrame, task: str, policy: str) -> pd.DataFrame:
    return table[(table["task"] == task) & (table["policy"] == policy)]


def _curve(row: pd.Series) -> Curve:
    flags = str(row["flags"] or "").split(",")
    return Curve(
        task=row["task"],
        method=row["method"],
        bin_idx=int(row["bin_idx"]),
        status=str(row["status"]),
        point=str(row["T_point"]),
        lower=str(row["T_lower"]),
        upper=str(row["T_upper"]),
        point_inactive="point_inactive" in flags,
        upper_inactive="upper_inactive" in flags,
        unreliable="unreliable" in flags,
        incomplete=bool({"missing_budget", "infeasible"} & set(flags)),
    )


def _claim(row: pd.Series) -> Claim:
    def number(name: str) -> float | None:
        return float(row[name]) if finite(row[name]) else None

    def label(name: str) -> str | None:
        return str(row[name]) if isinstance(row[name], str) and row[name] else None

    needed = number("n_needed")
    return Claim(
        status=str(row["status"]),
        budget=label("smallest_lossless"),
        every_length=label("all_bins"),
        mde=number("mde"),
        n_needed=None if needed is None else int(needed),
        p_over_methods=number("p_holm_methods"),
        unreliable=row["stopped_by"] == "unreliable" and not len(row["tested"]),
        n=int(row["n_pairs_min"]) if finite(row["n_pairs_min"]) else None,
    )


def _with_loss(claim: Claim, row: pd.Series, cells: pd.DataFrame) -> Claim:
    """The claim, with the loss where the last tested budget loses more than delta for sure."""
    if claim.status != "not_demonstrated" or row["tested"] is None or not len(row["tested"]):
        return claim
    last = cells[cells["budget_value"] == float(row["tested"][-1])]
    if (
        last.empty
        or not finite(last.iloc[0]["diff_hi"])
        or -float(last.iloc[0]["diff_hi"]) <= float(row["delta"])
    ):
        return claim
    loss = -float(last.iloc[0]["diff_hi"]), -float(last.iloc[0]["diff_lo"])
    return replace(claim, failed_at=str(last.iloc[0]["budget"]), loss=loss)


def read_study(
    settings: Mapping[str, Any],
    manifests: Sequence[str | Path],
    scores: Sequence[str | Path],
    tables: Mapping[str, str | Path],
) -> Study:
    """Read the files of a finished analysis.

    Parameters
    ----------
    tables : the analysis tables by name.
    """
    import pandas as pd

    documents = [json.loads(Path(path).read_text(encoding="utf-8")) for path in manifests]
    return Study(
        settings=settings,
        manifests={document["task"]: document for document in documents},
        scores=pd.concat([read_parquet(path) for path in scores], ignore_index=True),
        **{name: read_parquet(tables[name]) for name in TABLES},
        noise_floor=read_parquet(tables[NOISE_FLOOR]) if NOISE_FLOOR in tables else None,
    )
