"""Small made-up studies in the columns of the analysis tables, for the tests of figures and report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kv_transition.analysis.costs import COSTS
from kv_transition.analysis.effect_models import EFFECT_MODELS
from kv_transition.analysis.lossless import LOSSLESS
from kv_transition.analysis.macro import MACRO
from kv_transition.analysis.paired_tests import PAIRED_TESTS
from kv_transition.budgets import Budget, budget_label, kept_tokens
from kv_transition.files import write_json, write_parquet
from kv_transition.schema import Settings

#: How much later than the best method each one recovers, in octaves.
SHIFT = {
    "snapkv": 0.0,
    "streaming_llm": 2.2,
    "observed_attention": 0.8,
    "tova": 1.0,
    "knorm": 3.0,
    "random": 3.5,
}


@dataclass
class FakeStudy:
    """Scores drawn from logistic curves whose midpoint moves with the prompt length."""

    tasks: tuple[str, ...] = ("phrasebook_qa",)
    methods: tuple[str, ...] = ("snapkv", "streaming_llm", "random")
    budgets: tuple[Budget, ...] = (16, 32, 64, 128, 256, 512)
    edges: tuple[int, ...] = (64, 118, 260, 520, 1024)
    n: int = 40
    full_score: float = 0.95
    taus: tuple[float, ...] = (0.9, 0.95)
    policies: tuple[str, ...] = ("zero", "exclude")
    missing: set[tuple[str, str, int]] = field(default_factory=set)  # (method, budget label, bin)
    failing: dict[tuple[str, str, int], float] = field(default_factory=dict)  # share of engine errors
    answer: str = "amber river stone"
    scope: str = "prompt"
    first_token: str = "compressed"
    protocol: str = "own-1"
    metric: str = "f1"
    published: bool = False

    @property
    def about(self) -> dict[str, str]:
        """What every row of an analysis table says about its numbers."""
        return {"protocol": self.protocol, "metric": self.metric, "length_unit": "tokens"}

    def scores(self) -> pd.DataFrame:
        """One row per request."""
        rows = []
        rng = np.random.default_rng(11)
        cells: list[tuple[str, Budget | None]] = [("full", None), ("no_context", None)]
        cells += [(method, budget) for method in self.methods for budget in self.budgets]
        for task in self.tasks:
            for bin_idx, (low, high) in enumerate(pairwise(self.edges)):
                for index in range(self.n):
                    length = int(low + 1 + (high - low - 1) * index / max(self.n - 1, 1))
                    level = rng.uniform(-0.08, 0.08)
                    for method, budget in cells:
                        label = budget_label(budget)
                        if (method, label, bin_idx) in self.missing:
                            continue
                        score = self._mean(method, budget, length) + level * (method != "no_context")
                        score = float(np.clip(round(score + rng.normal(0, 0.05), 2), 0, 1))
                        failed = index < self.n * self.failing.get((method, label, bin_idx), 0.0)
                        rows.append(self._row(task, bin_idx, index, length, method, budget, score, failed))
        return pd.DataFrame(rows)

    def _mean(self, method: str, budget: Budget | None, length: int) -> float:
        if method == "full":
            return self.full_score
        if method == "no_context":
            return 0.1 * self.full_score
        assert budget is not None
        kept = min(kept_tokens(budget, length), length)
        if kept >= length:
            return self.full_score
        middle = math.log2(length) - 3.5 + SHIFT.get(method, len(method) % 4)
        return self.full_score * (0.1 + 0.9 / (1 + math.exp(-2.2 * (math.log2(kept) - middle))))

    def _row(
        self, task: str, bin_idx: int, index: int, length: int, method: str, budget: Budget | None, score: float, failed: bool
    ) -> dict[str, Any]:  # fmt: skip
        compressed = budget is not None
        kept = float(min(kept_tokens(budget, length), length)) if budget is not None else float(length)
        example = f"{task}-{bin_idx}-{index:03d}"
        return {
            "request_id": f"{example}-{method}-{budget_label(budget)}", "run_id": f"demo__{task}__{method}__{budget_label(budget)}",
            "task": task, "example_id": example, "cluster_id": example, "bin_idx": bin_idx, "token_len": length,
            "method": method, "budget": budget_label(budget), "budget_value": None if budget is None else float(budget),
            "replicate": 0, "metric": self.metric, "score": 0.0 if failed else score, "em": float(score > 0.98), "f1": score,
            "pred_norm": self.answer, "gold_norm": "amber river stone",
            "failure": "ENGINE_ERROR" if failed else ("TRUNCATED" if score < 0.1 else None),
            "flag_timeout": False, "flag_engine_error": failed, "flag_empty_output": False, "flag_refusal": False,
            "flag_truncated": score < 0.1, "flag_format_error": False, "prompt_tokens": length, "completion_tokens": 4,
            "kept_mean": kept, "kept_min": kept, "kept_max": kept, "press_len": length, "bytes_kept": int(kept) * 768,
            "active": compressed and kept < length, "verified": "measured", "one_token": False,
            "status": "ok", "protocol": self.protocol, "length": length // 2, "dropped_tokens": 0, "recursion_artefact": False,
        }  # fmt: skip

    def bin_stats(self) -> pd.DataFrame:
        """Means with t intervals (the real table has better ones)."""
        out = []
        for policy in self.policies:
            for bin_idx, group in self._strata():
                keys = ["task", "method", "budget"]
                for (task, method, budget), cell in group.groupby(keys, sort=True):
                    out.append(self._stat(policy, bin_idx, task, method, budget, cell))
        return pd.DataFrame(out)

    def _strata(self) -> list[tuple[int, pd.DataFrame]]:
        scores = self.scores()
        return [(-1, scores), *((int(key), group) for key, group in scores.groupby("bin_idx"))]

    def _stat(
        self, policy: str, bin_idx: int, task: str, method: str, budget: str, cell: pd.DataFrame
    ) -> dict[str, Any]:
        used = cell if policy == "zero" else cell[~cell["flag_engine_error"]]
        n = len(used)
        mean = float(used["score"].mean()) if n else math.nan
        se = float(used["score"].std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        errors = int(cell["flag_engine_error"].sum())
        return {
            "dataset": f"demo__{task}", "task": task, "method": method, "bin_idx": bin_idx, "budget": budget,
            "budget_value": cell["budget_value"].iloc[0], "policy": policy, "n": n, "n_clusters": n,
            "n_missing": len(cell) - n, "n_infeasible": 0, "n_not_applicable": 0, "infeasible_frac": 0.0, "status": "ok", "n_empty_output": 0, "n_refusal": 0, "n_truncated": int((cell["flag_truncated"] & ~cell["flag_engine_error"]).sum()),
            "n_format_error": 0, "n_timeout": 0, "n_engine_error": errors,
            "active_frac": float(cell["active"].mean()) if cell["budget_value"].notna().all() else math.nan,
            "unreliable": errors > 0.05 * len(cell), "verified_frac": float((cell["verified"] == "measured").mean()),
            "kept_min": cell["kept_min"].min(), "kept_mean": cell["kept_mean"].mean(), "kept_max": cell["kept_max"].max(),
            "token_len_min": cell["token_len"].min(), "token_len_median": float(cell["token_len"].median()), "bin_name": "",
            "token_len_max": cell["token_len"].max(), "mean": mean, "se": se, "lo": max(0.0, mean - 2 * se) if n > 1 else math.nan,
            "hi": min(1.0, mean + 2 * se) if n > 1 else math.nan, "boot_lo": math.nan, "boot_hi": math.nan,
            "mean_missing_0": mean, "mean_missing_1": mean, "truncated_frac": 0.0, "n_reference_failed": 0, "n_straddling_clusters": 0,
            "em_mean": float(used["em"].mean()) if n else math.nan, "f1_mean": mean, **self.about,
        }  # fmt: skip

    def retention(self, status: str = "ok") -> pd.DataFrame:
        """Ratios of means, with intervals that are only roughly right."""
        stats = self.bin_stats()
        keys = ["dataset", "task", "bin_idx", "policy"]
        full = stats[stats["method"] == "full"][[*keys, "mean", "se"]].rename(
            columns={"mean": "full", "se": "full_se"}
        )
        cells = stats[stats["budget_value"].notna()].merge(full, on=keys)
        ratio = cells["mean"] / cells["full"]
        spread = 2 * cells["se"] / cells["full"]
        diff, diff_se = cells["mean"] - cells["full"], cells["se"]
        ok = status in ("ok", "ok_degenerate")
        out = cells[
            [
                "dataset",
                "task",
                "method",
                "bin_idx",
                "budget",
                "budget_value",
                "policy",
                "n_clusters",
                "active_frac",
            ]
        ].copy()
        out["n_pairs"], out["unreliable"] = cells["n"], cells["unreliable"]
        out["R"], out["status"], out["gate"] = ratio, status, "ok" if ok else status
        out["R_lo"] = (ratio - spread).clip(lower=0) if ok else math.nan
        out["R_hi"] = ratio + spread if ok else math.nan
        out["R0"], out["R0_lo"], out["R0_hi"], out["R0_status"] = ratio, out["R_lo"], out["R_hi"], status
        out["diff"], out["diff_se"], out["diff_lo"], out["diff_hi"] = (
            diff,
            diff_se,
            diff - 2 * diff_se,
            diff + 2 * diff_se,
        )
        out["diff_p"], out["degenerate"], out["delta"] = 0.5, False, 0.05
        out["ni_p"] = np.where(diff + 0.05 > 2 * diff_se, 0.001, 0.9)
        out["tost_p"], out["mde"] = out["ni_p"], 2.5 * diff_se
        out["boot_lo"] = out["boot_hi"] = math.nan
        out["boot_zero_den_frac"] = 0.0
        return out.assign(**self.about)

    def transition(self, status: str = "ok") -> pd.DataFrame:
        """Labels read off the retention: the point, one grid step down and one up."""
        retention = self.retention()
        lengths = (
            self.bin_stats()
            .query("method == 'full'")
            .set_index(["task", "bin_idx", "policy"])["token_len_median"]
        )
        rows = []
        for (dataset, task, method, bin_idx, policy), cell in retention.groupby(
            ["dataset", "task", "method", "bin_idx", "policy"]
        ):
            cell = cell.sort_values("budget_value")
            for tau in self.taus:
                below = [index for index, value in enumerate(cell["R"]) if not value >= tau]
                point = below[-1] + 1 if below else 0
                rows.append(
                    {
                        "dataset": dataset, "task": task, "method": method, "bin_idx": bin_idx, "policy": policy, "tau": tau,
                        **self._limit("point", point, status), **self._limit("lower", point - 1, status),
                        **self._limit("upper", point + 1, status, upper=True), "log2_T_interp": math.nan, "T_interp": math.nan,
                        "interp_label": None, "interp_lo": math.nan, "interp_hi": math.nan, "interp_lo_label": None,
                        "interp_hi_label": None, "status": status, "p_upper": [0.5] * len(cell), "p_lower": [0.5] * len(cell),
                        "budgets": [float(value) for value in cell["budget_value"]], "max_decrease": 0.0,
                        "logistic_status": status, "m": 6.2, "m_lo": 5.9, "m_hi": 6.5, "m_label": "74", "width": 2.1,
                        "width_lo": 1.2, "width_hi": 3.4, "logistic_flags": "", "gof_p": 0.4,
                        "n_pairs": int(cell["n_pairs"].max()), "token_len_median": float(lengths[(task, bin_idx, policy)]), "flags": "", **self.about,
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    def further_tables(self) -> dict[str, pd.DataFrame]:
        """The other analysis tables, as far as the report reads them."""
        return {
            "paired_tests": pd.DataFrame(self._comparisons(), columns=list(PAIRED_TESTS)),
            "lossless": pd.DataFrame(self._claims(), columns=list(LOSSLESS)),
            "effect_models": pd.DataFrame(self._laws(), columns=list(EFFECT_MODELS)),
            "macro": pd.DataFrame(self._macro(), columns=list(MACRO)),
            "costs": pd.DataFrame(self._costs(), columns=list(COSTS)),
        }

    def _comparisons(self) -> list[dict[str, Any]]:
        """Methods against each other and neighbouring budgets, all lengths together; shown from a difference of 0.1."""
        out = []
        stats = self.bin_stats()
        stats = stats[
            (stats["bin_idx"] == -1) & (stats["budget_value"].notna() | (stats["method"] == "full"))
        ]
        for (dataset, task, policy), rows in stats.groupby(["dataset", "task", "policy"]):
            cells = {(row["method"], row["budget"]): row for _, row in rows.iterrows()}
            methods, budgets = sorted(self.methods), [budget_label(b) for b in sorted(self.budgets)]
            pairs = [("method", (a, x), (b, x)) for a, b in combinations(methods, 2) for x in budgets]
            pairs += [("full", ("full", "full"), (m, x)) for m in methods for x in budgets]
            pairs += [("adjacent", (m, x), (m, y)) for m in methods for x, y in pairwise(budgets)]
            for kind, one, other in pairs:
                if one not in cells or other not in cells:
                    continue
                diff = cells[other]["mean"] - cells[one]["mean"]
                out.append(
                    {
                        "dataset": dataset, "task": task, "policy": policy, "kind": kind, "bin_idx": -1,
                        "method_a": one[0], "budget_a": one[1], "budget_value_a": cells[one]["budget_value"],
                        "method_b": other[0], "budget_b": other[1], "budget_value_b": cells[other]["budget_value"],
                        "n_pairs": cells[other]["n"], "n_clusters": cells[other]["n"], "gate": "ok", "family": f"{kind}|-1",
                        "diff_lo": diff - 0.03, "diff_hi": diff + 0.03, "p": 0.0005 if abs(diff) > 0.1 else 0.4,
                        "diff": diff, "p_adjusted": 0.001 if abs(diff) > 0.1 else 0.5, "adjustment": "holm", "mde": 0.07,
                        "status": "ok", "inactive": False, "unreliable": False, **self.about,
                    }
                )  # fmt: skip
        return out

    def _claims(self) -> list[dict[str, Any]]:
        out = []
        for keys, cells in self.retention().groupby(["dataset", "task", "method", "bin_idx", "policy"]):
            shown = None
            for _, row in cells.sort_values("budget_value", ascending=False).iterrows():
                if row["ni_p"] > 0.05:
                    break
                shown = row
            found = {"smallest_lossless": None, "status": "not_demonstrated", "mde": 0.12, "n_needed": 431.0}
            if shown is not None:
                found |= {"smallest_lossless": shown["budget"], "status": "ok", "p_holm_methods": 0.004}
            names = ("dataset", "task", "method", "bin_idx", "policy")
            out.append(
                {
                    **dict(zip(names, keys, strict=True)),
                    "delta": 0.05,
                    "tested": [],
                    "p": [],
                    **found,
                    **self.about,
                }
            )
        return out

    def _laws(self) -> list[dict[str, Any]]:
        terms = {"alpha1": 0.98, "midpoint": 6.0, "rss": 0.5, "rss_alpha1_0": 2.5, "rss_alpha1_1": 0.51}
        return [
            {
                "dataset": f"demo__{task}", "task": task, "policy": policy, "model": "collapse", "method": method,
                "term": term, "estimate": value, "status": "ok", "flags": "",
                **({"lo": 0.81, "hi": 1.1, "label": "relative"} if term == "alpha1" else {"label": ""}), **self.about,
            }
            for task in self.tasks for policy in self.policies for method in self.methods for term, value in terms.items()
        ]  # fmt: skip

    def _macro(self) -> list[dict[str, Any]]:
        if len(self.tasks) < 2:
            return []
        stats = self.bin_stats()
        stats = stats[stats["bin_idx"] == -1]
        full = stats[stats["method"] == "full"].groupby("policy")["mean"].mean()
        rows = []
        for (policy, method, budget), cells in stats.groupby(["policy", "method", "budget"]):
            mean = float(cells["mean"].mean())
            rows.append(
                {
                    "method": method, "budget": budget, "budget_value": cells["budget_value"].iloc[0], "policy": policy,
                    "n_tasks": len(cells), "tasks_missing": "", "mean": mean, "lo": mean - 0.02, "hi": mean + 0.02,
                    "R": mean / full[policy], "R_lo": mean / full[policy] - 0.03, "R_hi": mean / full[policy] + 0.03,
                    "unreliable": False, "status": "ok", **self.about,
                }
            )  # fmt: skip
        return rows

    def _costs(self) -> list[dict[str, Any]]:
        stats = self.bin_stats()
        stats = stats[stats["policy"] == self.policies[0]]
        names = ("dataset", "task", "method", "bin_idx", "budget", "budget_value", "n")
        counts = {"n_not_asked": 0, "n_failed": 0, "n_copied": 0, "n_timed": 0, "timing_scope": "sweep"}
        return [
            {
                **{name: row[name] for name in names}, **counts, "n_examples": row["n"], "n_clusters": row["n"],
                "bytes_kept_mean": 768.0 * row["kept_mean"], "bytes_kept_lo": 700.0 * row["kept_mean"],
                "bytes_kept_hi": 800.0 * row["kept_mean"], "kept_mean": row["kept_mean"], "status": "not_timed", **self.about,
            }
            for _, row in stats.iterrows()
        ]  # fmt: skip

    def _limit(self, name: str, index: int, status: str, *, upper: bool = False) -> dict[str, Any]:
        budgets = sorted(self.budgets)
        if status != "ok":
            return {f"T_{name}": status, f"T_{name}_tokens": math.nan, f"censored_{name}": None}
        if index >= len(budgets):
            label, tokens, censored = f">{budget_label(budgets[-1])}", math.nan, "right"
        elif index <= 0 and not upper:
            label, tokens, censored = f"<={budget_label(budgets[0])}", math.nan, "left"
        else:
            label, tokens, censored = budget_label(budgets[index]), float(budgets[index]), "none"
        return {f"T_{name}": label, f"T_{name}_tokens": tokens, f"censored_{name}": censored}

    def manifest(self, task: str) -> dict[str, Any]:
        """A manifest with the keys a report reads."""
        scores = (
            self.scores().query("task == @task and method == 'full'").sort_values(["token_len", "example_id"])
        )
        bins = []
        for index, (low, high) in enumerate(pairwise(self.edges)):
            lengths = scores.loc[scores["bin_idx"] == index, "token_len"]
            spread = [int(lengths.min()), float(lengths.median()), int(lengths.max())]
            names = ["min", "median", "max"]
            bins.append(
                {"bin_idx": index, "lower": low + 1, "upper": high, "available": self.n, "selected": self.n}
                | {f"available_{name}": value for name, value in zip(names, spread, strict=True)}
                | {f"selected_{name}": value for name, value in zip(names, spread, strict=True)}
            )
        examples = [
            {"example_id": key, "question": "Which phrase?", "context": "…", "answers": ["amber river stone"], "meta": {}, "cluster_id": key}
            for key in scores["example_id"]
        ]  # fmt: skip
        return {
            "version": 1, "experiment": "demo", "dataset": "demo", "dataset_id": f"demo__{task}", "task": task, "tokenizer": "tiny-reader",
            "protocol": self.protocol, "n_bins": len(bins), "n_per_bin": self.n, "selection_seed": 7, "bin_edges": list(self.edges[1:]),
            "bins": bins, "entries": scores[["example_id", "bin_idx", "token_len"]].to_dict("records"),
            "clusters": {str(index): sorted(group["cluster_id"]) for index, group in scores.groupby("bin_idx")},
            "examples": examples, "warnings": [],
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Resolved settings, as the configuration would give them."""
        return Settings.model_validate(
            {
                "experiment": {"id": "demo", "title": "Where does the tiny reader break?"},
                "dataset": {"name": "demo", "tasks": list(self.tasks)},
                "binning": {"n_bins": len(self.edges) - 1, "n_per_bin": self.n},
                "model": {"name": "tiny-reader", "path": "/somewhere/private/tiny-reader", "revision": "1"},
                "kv": {
                    "scope": self.scope, "first_token": self.first_token,
                    "budgets": list(self.budgets), "methods": list(self.methods),
                },
                "analysis": {"tau": list(self.taus)},
                "scoring": {"primary": "f1"},
                **({"engine": {"kind": "published"}, "published": {"path": "/somewhere/private/scores.csv"}, "tokenizer": {"name": "length"}} if self.published else {}),
            }
        ).resolved()  # fmt: skip

    def write(self, folder: Path) -> dict[str, Any]:
        """Every table as a file; returns the arguments of `build_report` that name files."""
        tables = {
            "bin_stats": self.bin_stats(),
            "retention": self.retention(),
            "transition": self.transition(),
        }
        tables |= self.further_tables()
        for name, table in tables.items():
            write_parquet(folder / f"analysis/{name}.parquet", table)
        scores = self.scores()
        for task in self.tasks:
            write_parquet(folder / f"scores/{task}.parquet", scores[scores["task"] == task])
            write_json(folder / f"data/{task}/manifest.json", json.loads(json.dumps(self.manifest(task))))
        return {
            "manifests": [folder / f"data/{task}/manifest.json" for task in self.tasks],
            "scores": [folder / f"scores/{task}.parquet" for task in self.tasks],
            "tables": {name: folder / f"analysis/{name}.parquet" for name in tables},
        }
