"""Rows of the analysis tables that a figure draws, and the sentences its caption owes the reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from kv_transition.analysis.figures.canvas import FigureContext, finite
from kv_transition.budgets import UNCOMPRESSED
from kv_transition.errors import UserError
from kv_transition.methods import TEXT_METHODS

if TYPE_CHECKING:
    import pandas as pd

    from kv_transition.analysis.tables import Row

POOLED = -1
#: Scope and first token of results that were not made here.
UNKNOWN = "unknown"
#: Share of cut prompts above which a bin's `full` is not the whole document.
MAX_TRUNCATED = 0.5

POLICY_WORDS = {
    "zero": "An empty answer, a timeout or an engine error scores 0.",
    "exclude": "Timeouts and engine errors are left out; an empty answer scores 0.",
}
SCOPE_WORDS = {
    "prompt": "the whole prompt is compressed, question included (scope prompt)",
    "context": "the context is compressed before the question is seen (scope context)",
}
FIRST_TOKEN_WORDS = {
    "full": "the first answer token still comes from the full cache (first_token full)",
    "compressed": "the first answer token already comes from the compressed cache (first_token compressed)",
}


@dataclass(frozen=True)
class LengthBin:
    """One length bin of a task, as a panel or a row names it."""

    bin_idx: int
    token_len_min: float
    token_len_max: float
    n: int
    n_clusters: int
    unit: str = "tokens"
    name: str = ""

    @property
    def lengths(self) -> str:
        """The prompt lengths in words; the bin's own limits where these are not prompt lengths."""
        if self.n == 0:
            return "no examples"
        if self.name:
            return self.name
        low, high = f"{self.token_len_min:.0f}", f"{self.token_len_max:.0f}"
        prefix = "all lengths, " if self.bin_idx == POOLED else ""
        return f"{prefix}{low} {self.unit}" if low == high else f"{prefix}{low}–{high} {self.unit}"

    @property
    def size(self) -> str:
        """The number of examples, and of contexts where they are fewer."""
        return f"n = {self.n}" if self.n == self.n_clusters else f"n = {self.n} ({self.n_clusters} contexts)"


def each_row(table: pd.DataFrame) -> list[Row]:
    """The rows of a table, one after the other; several times as fast as its own `iterrows`."""
    return cast("list[Row]", table.to_dict("records"))


def rows_of(table: pd.DataFrame, task: str, context: FigureContext, name: str) -> pd.DataFrame:
    """The rows of one task under the context's failure policy.

    Raises
    ------
    UserError
        When there are none.
    """
    rows = table[(table["task"] == task) & (table["policy"] == context.policy)]
    if rows.empty:
        known = ", ".join(sorted(table["task"].unique())) or "none"
        raise UserError(
            f"{name}: no rows for task {task!r} and policy {context.policy!r}; its tasks are: {known}; "
            "run the analysis for this task first"
        )
    return rows


def _number(value: Any) -> float:
    return float(value) if finite(value) else float("nan")


def length_unit(rows: pd.DataFrame) -> str:
    """The unit of prompt lengths in rows of one task of an analysis table."""
    units = sorted(set(rows["length_unit"]) - {""}) if "length_unit" in rows else []
    return units[0] if units else "tokens"


def length_bins(bin_stats: pd.DataFrame) -> list[LengthBin]:
    """The bins of one task's rows in order of length; the pooled one only where there is no other.

    n is the number of examples of the `full` rows, or of the fullest cell where `full` is absent.
    """
    rows = bin_stats[bin_stats["bin_idx"] != POOLED]
    rows = bin_stats if rows.empty else rows
    bins = []
    for bin_idx, group in rows.groupby("bin_idx", sort=True):
        reference = group[group["method"] == "full"]
        row = (group if reference.empty else reference).sort_values("n", ascending=False).iloc[0]
        bins.append(
            LengthBin(
                bin_idx=int(str(bin_idx)),
                token_len_min=_number(row["token_len_min"]),
                token_len_max=_number(row["token_len_max"]),
                n=int(row["n"]),
                n_clusters=int(row["n_clusters"]),
                unit=length_unit(group),
                name=str(row["bin_name"]) if "bin_name" in row else "",
            )
        )
    return bins


def truncated_bins(bin_stats: pd.DataFrame) -> set[int]:
    """Bins of one task's rows in which more than half of the prompts were cut; none where that is not known."""
    if "truncated_frac" not in bin_stats:
        return set()
    shares = zip(bin_stats["bin_idx"], bin_stats["truncated_frac"], strict=True)
    return {int(idx) for idx, share in shares if finite(share) and float(share) > MAX_TRUNCATED}


def mostly_inactive(active_frac: Any, context: FigureContext) -> bool:
    """Too few prompts were longer than the budget for the cell to say anything about it."""
    return finite(active_frac) and float(active_frac) < context.min_active_share


def is_hollow(row: Row, context: FigureContext) -> bool:
    """A cell that is no evidence about the budget: mostly inactive, or too many infrastructure failures."""
    return bool(row["unreliable"]) or mostly_inactive(row["active_frac"], context)


def cannot_show_budget(method: str, task: str, context: FigureContext) -> bool:
    """The method's answers on the task were mostly chosen before anything was evicted."""
    return context.cannot_show_budget(task) and method not in TEXT_METHODS


def one_token_share(scores: pd.DataFrame, task: str) -> float:
    """The share of a task's answers from a compressed cache whose scored text is one token; 0 where there are none.

    A text method's first token comes from a prompt that is shorter itself, so it feels the budget.
    """
    rows = scores[(scores["task"] == task) & ~scores["method"].isin([*UNCOMPRESSED, *TEXT_METHODS])]
    return float(rows["one_token"].astype(float).mean()) if len(rows) else 0.0


def how_compressed(context: FigureContext) -> str:
    """What was compressed, and when, in one sentence."""
    if context.scope == UNKNOWN:
        return "Published results: what was compressed, and the budgets, are the word of their source."
    scope = SCOPE_WORDS.get(context.scope, f"scope is {context.scope}")
    first = FIRST_TOKEN_WORDS.get(context.first_token, f"first_token is {context.first_token}")
    return f"In this run {scope}, and {first}."


def drawn_methods(table: pd.DataFrame) -> list[str]:
    """The methods of one task's rows in an analysis table, without those that are not applicable to it."""
    rows = table[table["status"] != "not_applicable"]
    return sorted(set(rows["method"]))


def nothing_asked_words(table: pd.DataFrame) -> list[str]:
    """Why cells of one task's rows are not drawn, one sentence for each reason; empty where all are."""
    words = []
    left_out = sorted(set(table["method"]) - set(drawn_methods(table)))
    if left_out:
        words.append(f"Not applicable, because the records have no question: {', '.join(left_out)}.")
    if (table["status"] == "infeasible").any():
        words.append(
            "Not drawn: budgets that template, instruction and question alone fill in more than 5% of the prompts."
        )
    return words


def caption_tail(task: str, bins: list[LengthBin], context: FigureContext) -> str:
    """Sample size, failure policy, scope and first token: the same sentences under every figure."""
    sizes = [length_bin.n for length_bin in bins if length_bin.n] or [0]
    many = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    per = "per length bin" if len(bins) > 1 else "in all"
    parts = [
        f"n = {many} examples {per}.",
        POLICY_WORDS.get(context.policy, f"Failure policy: {context.policy}."),
        *([f"Prompts: protocol {context.protocol}."] if context.protocol else []),
        how_compressed(context),
    ]
    units = {length_bin.unit for length_bin in bins} - {"tokens"}
    if units:
        parts.append(
            f"Prompt lengths are in {' and '.join(sorted(units))}, not in tokens: budgets cannot be read as parts of them, and "
            "which prompts were longer than a budget is not known."
        )
    if context.cannot_show_budget(task):
        share = context.one_token_share[task]
        parts.append(
            f"{share:.0%} of the scored answers are one token, chosen before anything was evicted: "
            "these curves cannot show the budget."
        )
    return " ".join(parts)
