"""How score depends on budget, prompt length and method: `effect_models.parquet`, one row for each model and term.

Rows are (dataset, task, policy, model, method, term); `method` is "" for a model of all methods. Bins in which more than
half of the prompts were cut to the model's limit are left out of every model (flag "truncated_bins"): their length is
the limit, not the document's.

model "collapse" (see `collapse`), for each method, over the bins whose gate is "ok"
    alpha1          by how many octaves the transition's midpoint moves with an octave of prompt length; its row has the
                    `label` "relative" (the interval holds 1 and not 0: the transition is a share of the prompt),
                    "absolute" (0 and not 1: a number of tokens), "neither" or "not_distinguishable" (both)
    midpoint        log2 budget of the midpoint at the length z_center (log2, mean over examples)
    width, floor_frac   octaves from 5 to 95 % of the rise; the floor as a fraction of the full cache's score
    rss, rss_alpha1_0, rss_alpha1_1     sums of squares with alpha1 free, 0 and 1
    lo, hi          bootstrap percentiles (clusters within bins); se, p and df are null
    status          "ok"; "length_not_in_tokens" (budgets in tokens, lengths in words); the gate of all bins together where
                    no bin's gate is "ok"; "too_few_bins" (fewer than 3 bins that can be used, or all of one length);
                    "not_applicable", "infeasible", "no_pairs", "not_tested" as in the transition table; "too_few_budgets"
                    (fewer than 3); "no_transition_detected" (the smallest budget loses score in fewer than 2 bins);
                    "outside_grid" (the midpoint ends where the search does: the budgets do not show the transition).
                    Where it is not "ok" every number is null
    flags           "truncated_bins", "bins_left_out", "missing_budget", "infeasible", "unreliable", "inactive_budgets" as in
                    the transition table; "midpoint_outside_grid" (beyond the budgets), "midpoint_at_bound", "width_at_bound",
                    "alpha1_at_bound" (the estimate ends where the search does); "width_interval_at_bound" (so does a
                    limit of the width); "interval_at_bound", "midpoint_interval_at_bound" (so do more than 2.5 % of the
                    replicates of alpha1, of the midpoint: in the latter case alpha1 has neither limits nor label);
                    "rests_on_inactive_budgets" (alpha1 says something else, or nothing, without the cells in which some
                    prompts fit the budget and so score as the full cache does: it has neither limits nor label);
                    "interval_degenerate" (resampling cannot move an estimate: its limits are null)

model "gee" (see `gee`), all methods: score on xc * zc * method with xc = log2 effective budget - x_center (mean of the
budget grid), zc = log2 prompt length - z_center (mean over examples), the first method being the reference
    terms           Intercept, xc, zc, xc:zc and the same for each other method: method[streaming_llm], xc:method[...];
                    estimates are log odds, `df` is null where limits and p come from the normal distribution
    status          "ok" or what `gee.fit_gee` says; "length_not_in_tokens"; "no_scores"

model "gee_length_ratio", for each method, from score on xc + zc
    length_ratio    - beta_zc / beta_xc: a descriptive ratio, not the exponent alpha1; "slope_not_significant" as `status`
                    leaves it without limits

With budgets given as shares (f0.25) the collapse model takes the share of the bin's median prompt as the budget, so that
alpha1 keeps its meaning: 1 where the share decides, 0 where the number of tokens does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_transition.analysis.cells import Clusters, DatasetScores, datasets
from kv_transition.analysis.gates import bin_gate
from kv_transition.analysis.length_law import collapse_rows
from kv_transition.analysis.marginal_effects import gee_rows
from kv_transition.analysis.model_sample import Sample, usable_bins
from kv_transition.analysis.pairs import pair_scores
from kv_transition.analysis.queries import read_examples
from kv_transition.analysis.tables import ABOUT, Columns, Row, columns, frame, write_table

if TYPE_CHECKING:
    import pandas as pd

KEYS: Columns = columns("string", "dataset task policy model method term")
EFFECT_MODELS: Columns = {
    **KEYS,
    **columns("float64", "estimate se lo hi p df"),
    **columns("int64", "n_obs n_clusters n_bins"),
    **columns("string", "status label flags"),
    **columns("float64", "x_center z_center"),
    **ABOUT,
}


def effect_models(table: pd.DataFrame, clusters: Clusters, cfg: Mapping[str, Any]) -> pd.DataFrame:
    """The collapse model and the marginal effects of every dataset; columns and statuses on the module's page.

    Parameters
    ----------
    table : one row for each cell and example, as `queries.example_table` gives it.
    clusters : (dataset, bin_idx) -> sorted cluster ids of the bin in the manifest.
    cfg : conf, seed, collapse_replicates, max_infrastructure_failures, min_active_share, policies.
    """
    rows = [row for data in datasets(table, clusters) for row in _rows(data, cfg)]
    return frame(rows, EFFECT_MODELS)


def _rows(data: DatasetScores, cfg: Mapping[str, Any]) -> Iterator[Row]:
    groups = data.policy_groups(cfg["policies"])
    pairs = {policy: pair_scores(data, policy) for policy in groups}
    sums = np.concatenate([np.concatenate(one.sums()) for one in pairs.values()])
    lengths = usable_bins(data)
    totals = {
        idx: np.split(block, len(groups))
        for idx, block in data.resampled(sums, cfg["seed"], cfg["collapse_replicates"])
        if idx in lengths
    }
    for i, (policy, same) in enumerate(groups.items()):
        inside = {idx: pairs[policy].of(data.members(idx)) for idx in lengths}
        used = {
            idx: bin_gate(one.full, one.no_context, one.clusters, cfg["conf"])[0]
            for idx, one in inside.items()
        }
        blocks = {idx: block[i] for idx, block in totals.items()}
        sample = Sample(data, pairs[policy], used, blocks, cfg)
        rows = [*collapse_rows(sample), *gee_rows(sample)]
        for name in same:
            for row in rows:
                yield {"dataset": data.dataset, "task": data.task, "policy": name} | row | data.about


def write_effect_models(
    score_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Scores and manifests in, `effect_models.parquet` out."""
    table = effect_models(*read_examples(score_paths, manifest_paths), cfg)
    write_table(table, EFFECT_MODELS, list(KEYS), cfg, out)
