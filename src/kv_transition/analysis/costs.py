"""What every cell took and kept: `costs.parquet`, read off the responses.

One row for each (dataset, method, budget, bin); bin_idx -1 is all bins pooled. Costs do not depend on the failure policy.
What an engine does not say is null: nothing is derived from settings or from other cells.

Beside the keys
    n                   requests (examples times replicates) that were put to the engine or copied
    n_not_asked         rows where nothing was asked (infeasible, not applicable, absent from published results)
    n_examples, n_clusters   examples and source contexts behind `n`
    n_failed            of n: timed out or failed in the engine. They have no latency, and no answer whose tokens could count
    n_copied            of n: the budget took nothing away, the full cache's answer stands here and cost nothing of its own
    n_timed             of n: answered on their own, with a latency; quantiles are over these
    latency_*, ttfb_*   seconds of a request and to its first text: median and 95th percentile (linear quantiles) with
                        bootstrap percentile limits (clusters resampled within bins); null limits for fewer than 2 clusters
    decode_tokens_per_s_*   median over requests of (answer tokens - 1) / (latency - time to first text)
    prompt_tokens_mean, completion_tokens_mean, kept_mean, peak_tokens_mean   over the answers that say so, copies included
    bytes_kept_*        mean bytes of the kept keys and values with a t interval over clusters; it has no width where all
                        answers kept the same
    attempts_*          over requests with a row of their own, failed ones included
    timing_scope        of these: "request" (each was timed), "sweep" (all cells of an example share one run, so that no
                        request has a latency); null where nobody says
    engine, host        class of the engine, and where its client ran; several are joined with "+"
    status              "ok"; "too_few" (timed in one cluster: no limits); "not_timed"; "all_copied"; "all_failed";
                        "no_requests"; or why nothing was asked

Metric is "" in this table: no score is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kv_transition.analysis.aggregate import reduced
from kv_transition.analysis.bootstrap import resample_counts, stream_key
from kv_transition.analysis.cells import POOLED, Array, Indices
from kv_transition.analysis.intervals import cluster_codes, clustered_variance, percentile_limits, t_quantile
from kv_transition.analysis.queries import cluster_lists
from kv_transition.analysis.tables import ABOUT, Columns, Row, columns, frame, write_table
from kv_transition.data.manifest import Manifest, read_manifest
from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import INFRASTRUCTURE
from kv_transition.eval.shards import read_shard

if TYPE_CHECKING:
    import pandas as pd

Counts = NDArray[np.int32]
#: Columns of the requests of a dataset, (n,) each.
Requests = Mapping[str, NDArray[Any]]

#: Replicates of a quantile that are computed at once, so that the running counts stay in the cache.
_BLOCK = 512
#: The columns of a response file that are read.
RESPONSE_COLUMNS = (
    *("task", "example_id", "method", "budget", "budget_value", "replicate", "status", "protocol", "failure"),
    *("copied_from", "timing_scope", "latency_s", "ttfb_s", "attempts", "prompt_tokens", "completion_tokens"),
    *("kept_mean", "bytes_kept", "peak_tokens", "engine", "host"),
)
KEYS: Columns = {
    **columns("string", "dataset task method"),
    "bin_idx": "int32",
    "budget": "string",
    "budget_value": "float64",
}
#: Measure -> the quantiles of it that are reported.
QUANTILES = {
    "latency": {"median": 0.5, "p95": 0.95},
    "ttfb": {"median": 0.5, "p95": 0.95},
    "decode_tokens_per_s": {"median": 0.5},
}
_NAMES = [f"{measure}_{name}" for measure, levels in QUANTILES.items() for name in levels]
#: Column of the responses -> the column with its mean.
_MEANS = {
    "prompt_tokens": "prompt_tokens_mean",
    "completion_tokens": "completion_tokens_mean",
    "kept_mean": "kept_mean",
    "peak_tokens": "peak_tokens_mean",
}
COSTS: Columns = {
    **KEYS,
    **columns("int64", "n n_not_asked n_examples n_clusters n_failed n_copied n_timed"),
    **columns("float64", " ".join(f"{name} {name}_lo {name}_hi" for name in _NAMES)),
    **columns("float64", "prompt_tokens_mean completion_tokens_mean attempts_mean attempts_max kept_mean"),
    **columns("float64", "bytes_kept_mean bytes_kept_lo bytes_kept_hi peak_tokens_mean"),
    **columns("string", "timing_scope engine host status"),
    **ABOUT,
}


@dataclass(frozen=True)
class _Resamples:
    """How often each cluster of a dataset is drawn: (replicates, clusters) for each bin, drawn when first needed."""

    seed: int
    replicates: int
    dataset: str
    clusters: Mapping[int, Sequence[str]]
    drawn: dict[int, Counts]

    def counts(self, bin_idx: int) -> Counts:
        """Counts of a bin's clusters; of all bins' side by side for POOLED, each drawn within its bin."""
        if bin_idx not in self.drawn:
            if bin_idx == POOLED:
                self.drawn[bin_idx] = np.concatenate([self.counts(one) for one in self.clusters], axis=1)
            else:
                key = stream_key(self.seed, self.dataset, bin_idx)
                blocks = resample_counts(key, len(self.clusters[bin_idx]), self.replicates)
                self.drawn[bin_idx] = np.concatenate([block.astype(np.int32) for block in blocks])
        return self.drawn[bin_idx]


def costs(responses: pd.DataFrame, manifests: Sequence[Manifest], cfg: Mapping[str, Any]) -> pd.DataFrame:
    """What every cell took and kept; see the module's page for the columns.

    Parameters
    ----------
    responses : rows of response files, with RESPONSE_COLUMNS.
    manifests : of their tasks.
    cfg : conf, seed, bootstrap_replicates.

    Raises
    ------
    UserError
        A row belongs to no manifest or to no example of it, or stands twice.
    """
    unknown = sorted(set(responses["task"]) - {manifest.task for manifest in manifests})
    if unknown:
        raise UserError(
            f"responses: no manifest of task {unknown[0]}; give the manifest the task was run with"
        )
    ordered = sorted(manifests, key=lambda manifest: manifest.dataset_id)
    rows = [row for manifest in ordered for row in _of_dataset(responses, manifest, cfg)]
    return frame(rows, COSTS)


def _of_dataset(responses: pd.DataFrame, manifest: Manifest, cfg: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one dataset, cell by cell and bin by bin, the pooled one last."""
    table = _placed(responses[responses["task"] == manifest.task], manifest)
    requests = _requests(table)
    lists = {idx: ids for (_, idx), ids in cluster_lists([manifest]).items()}
    filled = {idx: ids for idx, ids in lists.items() if ids}
    resamples = _Resamples(cfg["seed"], cfg["bootstrap_replicates"], manifest.dataset_id, filled, {})
    for (method, budget), bins in table.groupby(["method", "budget"], sort=True)["bin_idx"]:
        cell = bins.index.to_numpy()
        keys: Row = {"dataset": manifest.dataset_id, "task": manifest.task, "method": method}
        keys |= {"budget": budget, "budget_value": requests["budget_value"][cell[0]]}
        about = {"protocol": manifest.protocol, "metric": "", "length_unit": manifest.length_unit}
        for bin_idx in (*lists, POOLED):
            inside = cell if bin_idx == POOLED else cell[bins == bin_idx]
            values = _values(requests, inside, bin_idx, resamples, cfg["conf"])
            yield keys | {"bin_idx": bin_idx} | values | about


def _placed(rows: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """Rows with bin, cluster, and the cluster's places: in the bin's list, and in all lists one behind the other.

    A cluster with examples in two bins is drawn in each of them. Sorted by what names a request, so that sums do not depend
    on the order of files.
    """
    place: dict[tuple[int, str], tuple[int, int]] = {}
    offset = 0
    lists = cluster_lists([manifest])
    for (_, bin_idx), ids in lists.items():
        place |= {(bin_idx, cluster): (index, offset + index) for index, cluster in enumerate(ids)}
        offset += len(ids)
    where = {
        entry.example_id: (entry.bin_idx, example.cluster_id, *place[entry.bin_idx, example.cluster_id])
        for entry, example in zip(manifest.entries, manifest.examples, strict=True)
    }
    foreign = set(rows["example_id"]) - set(where)
    if foreign:
        raise UserError(
            f"responses of {manifest.task}: example {min(foreign)} is not in the manifest; run the task again"
        )
    key = ["method", "budget", "example_id", "replicate"]
    doubled = rows.duplicated(key)
    if doubled.any():
        method, budget, example, _ = rows[doubled].iloc[0][key]
        raise UserError(
            f"responses of {manifest.task}: example {example} stands twice under {method} {budget}; "
            "delete the files of this cell and run the inference again"
        )
    found = [where[example] for example in rows["example_id"]]
    names = ("bin_idx", "cluster_id", "place", "place_in_all")
    table = rows.assign(**{name: [one[i] for one in found] for i, name in enumerate(names)})
    return table.sort_values(["bin_idx", *key], ignore_index=True)


def _requests(table: pd.DataFrame) -> Requests:
    """The columns of a placed table as arrays: numbers with nan, and texts with None, for what is not said."""
    numbers = ["budget_value", "latency_s", "ttfb_s", "attempts", "bytes_kept", *_MEANS]
    texts = table[["status", "timing_scope", "host", "engine"]].astype(object)
    texts = texts.where(texts.notna(), None)
    classes = {text: engine_class(text) for text in texts["engine"].unique() if text is not None}
    failed = table["failure"].isin(INFRASTRUCTURE)
    return {
        **{name: _numbers(table[name]) for name in numbers},
        **{name: table[name].to_numpy(dtype=np.int64) for name in ("place", "place_in_all")},
        **{name: cluster_codes(table[f"{name}_id"].tolist()) for name in ("example", "cluster")},
        **{name: texts[name].to_numpy() for name in ("status", "timing_scope", "host")},
        "engine": np.array([classes.get(text) for text in texts["engine"]], dtype=object),
        "asked": (table["status"] == "ok").to_numpy(dtype=bool),
        "failed": failed.to_numpy(dtype=bool),
        "copied": (~failed & table["copied_from"].notna()).to_numpy(dtype=bool),
    }


def _values(requests: Requests, rows: Indices, bin_idx: int, resamples: _Resamples, conf: float) -> Row:
    """Everything about one cell in one bin, from its rows of the requests."""
    asked = rows[requests["asked"][rows]]
    failed, copied = requests["failed"][asked], requests["copied"][asked]
    answers, own = asked[~failed], asked[~copied]
    timed = asked[~failed & ~copied & ~np.isnan(requests["latency_s"][asked])]
    values: Row = {
        "n": len(asked),
        "n_not_asked": len(rows) - len(asked),
        "n_examples": len(np.unique(requests["example"][asked])),
        "n_clusters": len(np.unique(requests["cluster"][asked])),
        "n_failed": int(failed.sum()),
        "n_copied": int(copied.sum()),
        "n_timed": len(timed),
    }
    values |= _quantiles(requests, timed, bin_idx, resamples, conf)
    values |= {column: reduced(np.mean, requests[name][answers]) for name, column in _MEANS.items()}
    attempts = requests["attempts"][own]
    values |= {"attempts_mean": reduced(np.mean, attempts), "attempts_max": reduced(np.max, attempts)}
    names = ("bytes_kept_mean", "bytes_kept_lo", "bytes_kept_hi")
    limits = mean_t(requests["bytes_kept"][answers], requests["cluster"][answers], conf)
    values |= dict(zip(names, limits, strict=True))
    values |= {name: _joined(requests[name][own]) for name in ("timing_scope", "engine", "host")}
    statuses = set(requests["status"][rows])
    return values | {"status": _status(statuses, values, len(np.unique(requests["cluster"][timed])))}


def _status(statuses: set[str], values: Row, timed_clusters: int) -> str:
    if not values["n"]:
        return "+".join(sorted(statuses)) or "no_requests"
    if values["n_failed"] == values["n"]:
        return "all_failed"
    if not values["n_timed"]:
        return "all_copied" if values["n_failed"] + values["n_copied"] == values["n"] else "not_timed"
    return "ok" if timed_clusters > 1 else "too_few"


def _quantiles(requests: Requests, timed: Indices, bin_idx: int, resamples: _Resamples, conf: float) -> Row:
    """Quantiles of each measure over the timed requests, with their bootstrap limits."""
    latency, ttfb = requests["latency_s"][timed], requests["ttfb_s"][timed]
    measures = {
        "latency": latency,
        "ttfb": ttfb,
        "decode_tokens_per_s": decode_rates(requests["completion_tokens"][timed], latency, ttfb),
    }
    places = requests["place_in_all" if bin_idx == POOLED else "place"][timed]
    values: Row = {}
    for measure, numbers in measures.items():
        known = ~np.isnan(numbers)
        names = [f"{measure}_{name}" for name in QUANTILES[measure]]
        levels = list(QUANTILES[measure].values())
        if not known.any():
            values |= dict.fromkeys([f"{name}{end}" for name in names for end in ("", "_lo", "_hi")], nan)
            continue
        points = np.quantile(numbers[known], levels)
        low, high = [nan] * len(levels), [nan] * len(levels)
        if len(np.unique(places[known])) > 1:
            counts = resamples.counts(bin_idx)
            replicates = resampled_quantiles(numbers[known], places[known], counts, levels)
            low, high = (side.tolist() for side in percentile_limits(replicates, conf))
        for i, name in enumerate(names):
            values |= {name: float(points[i]), f"{name}_lo": low[i], f"{name}_hi": high[i]}
    return values


def resampled_quantiles(values: Array, places: Indices, counts: Counts, levels: Sequence[float]) -> Array:
    """Quantiles of resamples of clusters, each value drawn as often as its cluster.

    Parameters
    ----------
    values, places : (n,) numbers, and the column of `counts` that each belongs to.
    counts : (replicates, clusters).

    Returns
    -------
    (levels, replicates) linear quantiles (numpy's default); nan where a resample holds none of the values.
    """
    order = np.argsort(values, kind="stable")
    ordered, columns_of = values[order], places[order]
    out = np.full((len(levels), len(counts)), nan)
    for start in range(0, len(counts), _BLOCK):
        # One running count over all replicates of the block; each begins where the one before it ended.
        reached = np.cumsum(counts[start : start + _BLOCK, columns_of], dtype=np.int64)
        ends = reached[len(values) - 1 :: len(values)]
        begins = np.concatenate([[0], ends[:-1]])
        for row, level in zip(out, levels, strict=True):
            position = level * (ends - begins - 1)
            below = np.floor(position)
            low, high = (
                ordered[np.searchsorted(reached, begins + rank.astype(np.int64), side="right") % len(values)]
                for rank in (below, np.ceil(position))
            )
            drawn = low + (position - below) * (high - low)
            row[start : start + _BLOCK] = np.where(ends > begins, drawn, nan)
    return out


def decode_rates(completion_tokens: Array, latency: Array, ttfb: Array) -> Array:
    """Answer tokens per second after the first text; nan where there is no second token or no time between."""
    seconds = latency - ttfb
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((seconds > 0) & (completion_tokens > 1), (completion_tokens - 1) / seconds, nan)


def mean_t(values: Array, clusters: Indices, conf: float) -> tuple[float, float, float]:
    """Mean of a measured quantity that is not negative, with a t interval over clusters; nan values are left out.

    Fewer than two clusters have no limits. Without spread the limits are the mean: kept bytes are counted, not sampled
    from a scale that ends, so that there is nothing to steady.
    """
    known = ~np.isnan(values)
    if not known.any():
        return nan, nan, nan
    mean = float(values[known].mean())
    variance, n_clusters = clustered_variance(values[known], clusters[known])
    if n_clusters < 2:
        return mean, nan, nan
    half = t_quantile(conf, n_clusters - 1) * sqrt(variance)
    return mean, max(mean - half, 0.0), mean + half


def engine_class(provenance: str) -> str:
    """The class in the text with which a response says what answered it."""
    return str(json.loads(provenance).get("class", "unknown"))


def _numbers(values: pd.Series) -> Array:
    return np.asarray(values.astype("Float64").to_numpy(na_value=np.nan), dtype=np.float64)


def _joined(texts: NDArray[Any]) -> str | None:
    return "+".join(sorted({str(text) for text in texts if text is not None})) or None


def read_responses(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of response files, as `costs` takes them.

    Raises
    ------
    UserError
        A file is absent, broken or no response file, or there is none.
    """
    import pyarrow as pa

    if not paths:
        raise UserError("no responses to read the costs from; run the inference of at least one task first")
    table: pd.DataFrame = pa.concat_tables(
        read_shard(Path(path), RESPONSE_COLUMNS) for path in paths
    ).to_pandas()
    return table


def write_costs(
    response_paths: Sequence[str | Path],
    manifest_paths: Sequence[str | Path],
    cfg: Mapping[str, Any],
    out: str | Path,
) -> None:
    """Responses and manifests in, `costs.parquet` out."""
    table = costs(read_responses(response_paths), [read_manifest(path) for path in manifest_paths], cfg)
    write_table(table, COSTS, list(KEYS), cfg, out)
