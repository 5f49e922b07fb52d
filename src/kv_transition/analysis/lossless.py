"""From which budget on a method is shown to lose less than delta: `lossless.parquet`.

One row for each (dataset, method, bin, policy); bin_idx -1 is all bins pooled. The budgets of a method are tested for
non-inferiority from the largest down ("loses delta or more" is rejected), and the first that is not shown ends the sequence,
so no adjustment for the number of budgets is needed. A budget that fewer than `min_active_share` of the prompts exceeded is
passed over, neither tested nor failed: nothing was compressed there. That a difference is not significant is never evidence.

    delta               the margin, an absolute difference of scores
    smallest_lossless, smallest_lossless_value      the last budget shown, null where none is
    smallest_by_test    the same by the non-inferiority tests alone, whatever else keeps from a claim
    status              "ok" (one is shown); "not_demonstrated" (none is); "not_tested" (nothing was compressed at any budget);
                        the bin's gate ("no_reference", "too_few", "reference_too_weak", "context_not_needed");
                        "not_applicable", "infeasible", "no_pairs" (so is every budget)
    tested, p, p_exact  budgets tested, largest first, their p-values (`ni_p` of the retention table), and the chance of
                        seeing this if answers were lost whole, one in 1 / delta (see `rare_loss_p`). Both have to be small:
                        rare whole losses leave a small sample without spread, and the t test then takes that for evidence
    stopped_by          why the sequence ended: "p" (not shown), "p_exact" (shown, but not against rare losses), "unreliable" (too many requests of the cell, or of `full`,
                        timed out or failed: no claim rests on it), "infeasible", "not_applicable", "no_test" (fewer than two clusters of
                        pairs); "" where no budget was left
    n_pairs_min         pairs of the tested budget that has fewest
    sd_d, mde           at the smallest budget tested: spread of a single paired difference (se times sqrt(n), so that
                        clusters are reckoned with), and smallest loss that its test would find with power 0.8
    n_needed            examples (as independent contexts) with which a one-sided 5 % test with power 0.8 and that spread would show a loss under
                        delta if there is none, and at least as many as could show it against rare losses
    all_bins            (bin_idx -1) the last budget shown in every bin that has examples, by the same sequence with the
                        largest p of the bins: an intersection-union test. A budget that is inactive in one bin is passed over;
                        null also where a bin may not be judged
    p_holm_methods      (bin_idx -1) Holm over the methods of the task that were tested, of the largest p on the way down to
                        smallest_lossless; null where there is none. Methods without one count in the family too: otherwise
                        only the lucky ones would be counted
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isnan, log, log1p, nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import bdtr, ndtri

from kv_transition.analysis.cells import POOLED, Array, Clusters, DatasetScores, Indices, datasets
from kv_transition.analysis.compare import holm
from kv_transition.analysis.gates import bin_gate
from kv_transition.analysis.intervals import (
    NO_SPREAD,
    cluster_codes,
    cluster_sums,
    difference_interval,
    equivalence_tests,
    minimum_detectable_effect,
)
from kv_transition.analysis.pairs import PairScores, pair_scores
from kv_transition.analysis.queries import read_examples
from kv_transition.analysis.tables import ABOUT, Columns, Row, columns, frame, write_table

if TYPE_CHECKING:
    import pandas as pd

KEYS: Columns = {
    "dataset": "string",
    "task": "string",
    "method": "string",
    "bin_idx": "int32",
    "policy": "string",
}
LOSSLESS: Columns = {
    **KEYS,
    **columns("float64", "delta"),
    **columns("string", "smallest_lossless"),
    **columns("float64", "smallest_lossless_value"),
    **columns("string", "status"),
    **columns("string", "smallest_by_test"),
    **columns("list", "tested p p_exact"),
    **columns("string", "stopped_by"),
    **columns("float64", "n_pairs_min sd_d mde n_needed"),
    **columns("string", "all_bins"),
    **columns("float64", "p_holm_methods"),
    **ABOUT,
}
#: Level and power behind `mde` and `n_needed`.
ONE_SIDED_LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class LosslessCell:
    """What the claim needs of one (method, budget) cell.

    Attributes
    ----------
    inactive : compression was active in too few prompts.
    barred : why no claim may rest on the cell ("unreliable", "infeasible", "not_applicable"), "" where one may.
    p : p-value of "loses delta or more"; nan where there was no test. p_exact : the same against rare losses of whole answers.
    n_pairs, sd_d, mde : pairs, spread of a single difference, smallest difference found with power 0.8.
    """

    budget: str
    value: float
    p: float
    p_exact: float = 0.0
    inactive: bool = False
    barred: str = ""
    n_pairs: int = 0
    sd_d: float = nan
    mde: float = nan


@dataclass(frozen=True)
class Descent:
    """A fixed sequence of tests: the cells tested, how many of them are shown, why it ended ("" with the last budget)."""

    tested: tuple[LosslessCell, ...]
    n_shown: int
    stopped_by: str

    @property
    def shown(self) -> LosslessCell | None:
        """The smallest budget that is shown."""
        return self.tested[self.n_shown - 1] if self.n_shown else None

    @property
    def p(self) -> float:
        """The largest p on the way down to the smallest budget shown; nan where none is."""
        return max((max(cell.p, cell.p_exact) for cell in self.tested[: self.n_shown]), default=nan)


def rare_loss_p(differences: Array, clusters: Indices, delta: float) -> float:
    """Chance of a net loss as small as the observed one if each context lost its whole answer with probability delta.

    Of all losses with mean delta, rare whole ones are the hardest to see: without one in the sample there is no spread.
    Where every difference is a whole answer or none, this is the binomial chance of at most the net number of contexts lost.
    Elsewhere the differences show their spread, and it is the chance (1 - delta)^C that no whole answer is lost in C
    contexts: the least it can be. nan without pairs.

    References
    ----------
    Clopper and Pearson (1934), Biometrika 26:404.
    """
    if not len(differences):
        return nan
    codes = cluster_codes(clusters)
    sizes = np.bincount(codes)
    means = cluster_sums(differences, codes) / sizes[sizes > 0]
    whole = bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
    net_loss = max(ceil(-float(means.sum()) - NO_SPREAD * len(means)), 0) if whole else 0
    return float(bdtr(float(net_loss), len(means), delta))


def contexts_needed(delta: float, alpha: float = ONE_SIDED_LEVEL) -> int:
    """The fewest contexts in which the absence of rare whole losses shows a mean loss under delta."""
    return ceil(log(alpha) / log1p(-delta))


def descend(cells: Iterable[LosslessCell], alpha: float = ONE_SIDED_LEVEL, exact: bool = True) -> Descent:
    """Test the budgets of a method from the largest down until one is not shown.

    Parameters
    ----------
    exact : whether the loss has to be small against rare losses too.

    References
    ----------
    Hsu and Berger (1999), J. Am. Stat. Assoc. 94:468 (no adjustment for the number of budgets).
    """
    tested: list[LosslessCell] = []
    for cell in sorted(cells, key=lambda cell: -cell.value):
        if cell.inactive:
            continue
        if cell.barred or isnan(cell.p):
            return Descent(tuple(tested), len(tested), cell.barred or "no_test")
        tested.append(cell)
        if cell.p > alpha or (exact and not cell.p_exact <= alpha):
            return Descent(tuple(tested), len(tested) - 1, "p" if cell.p > alpha else "p_exact")
    return Descent(tuple(tested), len(tested), "")


def in_every_bin(bins: Sequence[Sequence[LosslessCell]]) -> list[LosslessCell]:
    """The cells of the claim "in every bin": at each budget the largest p, and whatever keeps one bin from a claim.

    `bins` holds, for each bin, the cells of the same budgets in the same order.

    References
    ----------
    Berger (1982), Technometrics 24:295 (intersection-union test).
    """
    return [
        LosslessCell(
            budget=at_budget[0].budget,
            value=at_budget[0].value,
            p=float(np.max([cell.p for cell in at_budget])),
            p_exact=float(np.max([cell.p_exact for cell in at_budget])),
            inactive=any(cell.inactive for cell in at_budget),
            barred=next((cell.barred for cell in at_budget if cell.barred), ""),
        )
        for at_budget in zip(*bins, strict=True)
    ]


def examples_needed(sd_d: float, delta: float) -> float:
    """Examples with which a one-sided 5 % test has power 0.8 against a loss of `delta`; nan without a spread."""
    if not sd_d > 0:
        return nan
    quantiles = float(ndtri(1 - ONE_SIDED_LEVEL) + ndtri(POWER))
    return float(ceil((quantiles * sd_d / delta) ** 2))


def lossless(table: pd.DataFrame, clusters: Clusters, cfg: Mapping[str, Any]) -> pd.DataFrame:
    """The claims of all methods; see the module's page for the columns.

    Parameters
    ----------
    table : one row for each cell and example, as `queries.example_table` gives it.
    clusters : (dataset, bin_idx) -> sorted cluster ids of the bin in the manifest.
    cfg : conf, delta, policies, max_infrastructure_failures, min_active_share. Tests are at the level 1 - conf.
    """
    rows = [row for data in datasets(table, clusters) for row in _rows(data, cfg)]
    return frame(rows, LOSSLESS)


def _rows(data: DatasetScores, cfg: Mapping[str, Any]) -> Iterator[Row]:
    alpha = 1 - cfg["conf"]
    for policy, same in data.policy_groups(cfg["policies"]).items():
        pairs = pair_scores(data, policy)
        gates = {bin_idx: _gate(pairs, data.members(bin_idx), cfg) for bin_idx in [*data.bins, POOLED]}
        by_bin = {bin_idx: _cells(data, pairs.of(data.members(bin_idx)), bin_idx, cfg) for bin_idx in gates}
        for bin_idx, methods in by_bin.items():
            gate, descents = gates[bin_idx], {m: descend(cells, alpha) for m, cells in methods.items()}
            rows = {m: _claim(cells, descents[m], gate, cfg["delta"], alpha) for m, cells in methods.items()}
            if bin_idx == POOLED:
                filled = [idx for idx in data.bins if len(data.members(idx))]
                judged = bool(filled) and all(gates[idx] == "ok" for idx in filled)
                for method, row in rows.items():
                    cells = in_every_bin([by_bin[idx][method] for idx in filled]) if judged else []
                    shown = descend(cells, alpha).shown
                    row["all_bins"] = shown.budget if shown else None
                _adjust_over_methods(rows, descents)
            for method, row in rows.items():
                for name in same:
                    keys = (data.dataset, data.task, method, bin_idx, name)
                    yield dict(zip(KEYS, keys, strict=True)) | row | data.about


def _gate(pairs: PairScores, members: Indices, cfg: Mapping[str, Any]) -> str:
    inside = pairs.of(members)
    return bin_gate(inside.full, inside.no_context, inside.clusters, cfg["conf"])[0]


def _cells(
    data: DatasetScores, inside: PairScores, bin_idx: int, cfg: Mapping[str, Any]
) -> dict[str, list[LosslessCell]]:
    """The cells of each method in one bin, budgets ascending; `inside` holds the bin's pairs."""
    members = data.members(bin_idx)
    full = data.row("full")
    limit = cfg["max_infrastructure_failures"]
    # A failed reference that counts 0 makes every cell look better than it is.
    weak_reference = full is not None and data.infrastructure_share(full, members) > limit
    found: dict[str, list[LosslessCell]] = {}
    for i, row in enumerate(data.compressed()):
        at = inside.paired(i)
        y, f, clusters = inside.compressed[i, at], inside.full[at], inside.clusters[at]
        difference = difference_interval(y, f, clusters, cfg["conf"])
        failed = weak_reference or data.infrastructure_share(row, members) > limit
        cell = LosslessCell(
            budget=data.cells[row].budget,
            value=data.cells[row].value,
            p=equivalence_tests(y - f, clusters, cfg["delta"])[0],
            p_exact=rare_loss_p(y - f, clusters, cfg["delta"]),
            inactive=data.active_share(row, members) < cfg["min_active_share"],
            barred=data.nothing_asked(row, members) or ("unreliable" if failed else ""),
            n_pairs=len(at),
            sd_d=difference.se * sqrt(len(at)),
            mde=minimum_detectable_effect(difference, len(np.unique(clusters)), cfg["conf"]),
        )
        found.setdefault(data.cells[row].method, []).append(cell)
    return found


def _claim(cells: Sequence[LosslessCell], descent: Descent, gate: str, delta: float, alpha: float) -> Row:
    """The columns of one method in one bin, with those of the pooled row empty."""
    by_test = descend([replace(cell, barred="") for cell in cells], alpha, exact=False).shown
    if gate != "ok":
        descent, by_test = Descent((), 0, ""), None
    shown, tested = descent.shown, descent.tested
    spread = tested[-1].sd_d if tested else nan
    return {
        "delta": delta,
        "smallest_lossless": shown.budget if shown else None,
        "smallest_lossless_value": shown.value if shown else nan,
        "status": gate if gate != "ok" else _status(cells, descent),
        "smallest_by_test": by_test.budget if by_test else None,
        "tested": [cell.value for cell in tested],
        "p": [cell.p for cell in tested],
        "p_exact": [cell.p_exact for cell in tested],
        "stopped_by": descent.stopped_by,
        "n_pairs_min": min((float(cell.n_pairs) for cell in tested), default=nan),
        "sd_d": spread,
        "mde": tested[-1].mde if tested else nan,
        "n_needed": float(np.fmax(examples_needed(spread, delta), contexts_needed(delta, alpha)))
        if tested
        else nan,
        "all_bins": None,
        "p_holm_methods": nan,
    }


def _status(cells: Sequence[LosslessCell], descent: Descent) -> str:
    if descent.shown:
        return "ok"
    for reason in ("not_applicable", "infeasible"):
        if all(cell.barred == reason for cell in cells):
            return reason
    if not any(cell.n_pairs for cell in cells):
        return "no_pairs"
    return "not_demonstrated" if descent.stopped_by else "not_tested"


def _adjust_over_methods(rows: Mapping[str, Row], descents: Mapping[str, Descent]) -> None:
    """Fill in p_holm_methods; a method that was tested without success counts with p = 1."""
    family = [method for method, row in rows.items() if row["status"] in ("ok", "not_demonstrated")]
    adjusted = holm([descents[m].p if rows[m]["status"] == "ok" else 1.0 for m in family])
    for method, p in zip(family, adjusted, strict=True):
        rows[method]["p_holm_methods"] = p if rows[method]["status"] == "ok" else nan


def write_lossless(
    score_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Scores and manifests in, `lossless.parquet` out."""
    table = lossless(*read_examples(score_paths, manifest_paths), cfg)
    write_table(table, LOSSLESS, list(KEYS), cfg, out)
