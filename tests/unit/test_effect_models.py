"""The models of budget, length and method: what they find, when they stay silent, and that nothing else moves them."""

import warnings
from math import log, nan

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from example_tables import CFG, clusters_of, example_rows
from scipy.special import expit

from kv_transition.analysis.effect_models import EFFECT_MODELS, KEYS, effect_models, write_effect_models
from kv_transition.analysis.gee import fit_gee
from kv_transition.analysis.queries import read_examples
from kv_transition.data.manifest import build_manifest, write_manifest
from kv_transition.data.normalize import CountedExample
from kv_transition.files import float_round, read_parquet, write_parquet

CFG = CFG | {"collapse_replicates": 100}
BUDGETS = (64, 128, 256, 512, 1024, 2048)
LENGTHS = (2000, 4000, 8000, 16000)


def study(alpha1=1.0, methods=("snapkv",), budgets=BUDGETS, lengths=LENGTHS, n=40, seed=0, width=3.0, **more):
    """`full` and methods whose midpoint is 256 tokens at 5,657 tokens of prompt and moves with length by `alpha1`."""
    parts = []
    for idx, length in enumerate(lengths):
        rng = np.random.default_rng([seed, idx])
        lens = rng.integers(int(0.9 * length), int(1.1 * length), n)
        full = np.where(rng.random(n) < 0.2, 0.0, np.round(rng.uniform(0.3, 1, n), 3))
        parts.append(example_rows("full", None, full, bin_idx=idx, token_len=lens, **more))
        middle = 8 + alpha1 * (np.log2(lens) - np.log2(5657))
        for i, method in enumerate(methods):
            for budget in budgets:
                draw = np.random.default_rng([seed, idx, i, int(1000 * float(str(budget).strip("f")))])
                tokens = np.log2(float(str(budget).strip("f")) * (lens if isinstance(budget, str) else 1))
                kept = 0.1 + 0.9 * expit(2 * log(19) / width * (tokens - middle - i))
                scores = np.where(draw.random(n) < kept, full, 0.0)
                parts.append(example_rows(method, budget, scores, bin_idx=idx, token_len=lens, **more))
    return pd.concat(parts, ignore_index=True)


def models(table, clusters=None, **changes):
    """The table's rows; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return effect_models(table, clusters or clusters_of(table), CFG | changes)


def row(frame, model="collapse", term="alpha1", method="snapkv", policy="zero"):
    keys = {"model": model, "term": term, "method": method, "policy": policy}
    found = frame[np.logical_and.reduce([frame[k] == v for k, v in keys.items()])]
    assert len(found) == 1
    return found.iloc[0]


def content(frame, model=None):
    """Exact content by key."""
    frame = frame if model is None else frame[frame["model"] == model]
    return {
        tuple(r[k] for k in KEYS): {k: repr(v) for k, v in r.items() if k not in KEYS}
        for r in frame.to_dict("records")
    }


class TestLengthLaw:
    @pytest.mark.parametrize(("alpha1", "label"), [(1.0, "relative"), (0.0, "absolute")])
    def test_the_law_behind_the_scores_is_named(self, alpha1, label):
        found = row(models(study(alpha1, n=80)))
        assert (found["status"], found["label"]) == ("ok", label)
        assert found["lo"] < alpha1 < found["hi"]
        assert found["lo"] < found["estimate"] < found["hi"]

    def test_few_examples_tell_no_law_from_another(self):
        found = row(models(study(0.5, n=20, lengths=(4000, 5000, 6000))))
        assert found["label"] == "not_distinguishable"
        assert found["lo"] <= 0
        assert found["hi"] >= 1

    def test_only_the_row_of_alpha1_has_a_label(self):
        frame = models(study(1.0))
        assert set(frame.loc[frame["term"] != "alpha1", "label"]) == {""}

    def test_budgets_as_shares_keep_the_meaning_of_alpha1(self):
        shares = ("f0.0156", "f0.0312", "f0.0625", "f0.125", "f0.25", "f0.5")
        found = row(models(study(1.0, n=80, budgets=shares)))
        assert found["label"] == "relative"
        assert found["estimate"] == pytest.approx(1, abs=0.3)

    def test_words_and_tokens_cannot_be_compared(self):
        frame = models(study().assign(length_unit="words"))
        assert set(frame["status"]) == {"length_not_in_tokens"}
        assert frame["estimate"].isna().all()

    def test_words_can_be_compared_with_shares(self):
        shares = ("f0.0156", "f0.0312", "f0.0625", "f0.125", "f0.25", "f0.5")
        table = study(1.0, n=80, budgets=shares).assign(length_unit="words")
        assert row(models(table))["label"] == "relative"

    def test_two_lengths_are_too_few(self):
        found = row(models(study(lengths=LENGTHS[:2])))
        assert (found["status"], found["n_bins"]) == ("too_few_bins", 2)

    def test_bins_of_one_length_are_too_few(self):
        assert row(models(study(lengths=(4000,) * 4)))["status"] == "too_few_bins"

    def test_bins_with_mostly_truncated_prompts_are_left_out(self):
        table = study()
        cut = table["bin_idx"] == 3
        some = models(table.assign(truncated=cut.astype(float)))
        assert row(some)["n_bins"] == 3
        assert "truncated_bins" in row(some)["flags"]
        assert row(some, "gee", "xc", "")["n_bins"] == 3
        assert "truncated_bins" in row(some, "gee", "xc", "")["flags"]
        without = models(table[~cut])
        assert row(some)["estimate"] == row(without)["estimate"]
        most = models(table.assign(truncated=(table["bin_idx"] >= 2).astype(float)))
        assert row(most)["status"] == "too_few_bins"

    def test_half_of_the_prompts_may_be_truncated(self):
        table = study()
        number = table["example_id"].str[-3:].astype(int)
        frame = models(table.assign(truncated=((table["bin_idx"] == 3) & (number < 20)).astype(float)))
        assert row(frame)["n_bins"] == 4
        assert row(frame)["flags"] == row(models(table))["flags"]

    def test_an_unknown_truncation_leaves_nothing_out(self):
        assert row(models(study().assign(truncated=nan)))["n_bins"] == 4

    def test_a_bin_with_a_weak_reference_is_left_out(self):
        table = study()
        weak = table["bin_idx"] == 0
        found = row(models(table.assign(score=table["score"].where(~weak, 0.0))))
        assert (found["status"], found["n_bins"]) == ("ok", 3)
        assert "bins_left_out" in found["flags"]

    def test_without_any_reference_the_gate_is_told(self):
        table = study()
        assert row(models(table[table["method"] != "full"], clusters_of(table)))["status"] == "no_reference"
        assert row(models(table.assign(score=0.0)))["status"] == "reference_too_weak"
        assert row(models(study(n=2)))["status"] == "too_few"

    def test_nothing_lost_is_no_transition(self):
        table = study()
        full = table[table["method"] == "full"].set_index("example_id")["score"]
        found = row(models(table.assign(score=full[table["example_id"]].to_numpy())))
        assert found["status"] == "no_transition_detected"
        assert np.isnan(found["estimate"])

    def test_a_loss_in_one_bin_alone_is_no_transition(self):
        table = study()
        full = table[table["method"] == "full"].set_index("example_id")["score"]
        scores = np.where(table["bin_idx"] == 1, table["score"], full[table["example_id"]])
        assert row(models(table.assign(score=scores)))["status"] == "no_transition_detected"

    def test_two_budgets_are_too_few(self):
        assert row(models(study(budgets=(64, 1024))))["status"] == "too_few_budgets"

    def test_compression_that_never_happened_is_not_tested(self):
        assert row(models(study(budgets=(32768, 65536, 131072))))["status"] == "not_tested"

    @pytest.mark.parametrize("kept", [0.0, 0.1])
    def test_a_curve_that_never_rises_is_outside_the_grid(self, kept):
        table = study()
        full = table[table["method"] == "full"].set_index("example_id")["score"]
        flat = full[table["example_id"]].to_numpy() * np.where(table["method"] == "full", 1.0, kept)
        frame = models(table.assign(score=flat))
        collapse = frame[frame["model"] == "collapse"]
        assert set(collapse["status"]) == {"outside_grid"}
        assert collapse[["estimate", "lo", "hi"]].isna().all(axis=None)
        assert set(collapse["label"]) == {""}
        assert row(frame)["n_bins"] == 4

    def test_the_law_is_seen_where_only_some_lengths_cross_within_the_budgets(self):
        found = row(
            models(study(1.0, n=80, budgets=(128, 256, 512, 1024), lengths=(1000, 4000, 16000, 64000)))
        )
        assert (found["status"], found["label"]) == ("ok", "relative")

    def test_answers_that_resampling_cannot_move_have_no_interval(self):
        table = study()
        limit = table["bin_idx"].map(lambda idx: 100 * 2.0**idx)
        scores = np.where((table["method"] == "full") | (table["budget_value"] > limit), 1.0, 0.0)
        found = row(models(table.assign(score=scores)))
        assert found["status"] == "ok"
        assert np.isnan([found["lo"], found["hi"]]).all()
        assert "interval_degenerate" in found["flags"]
        assert found["label"] == ""

    def test_a_missing_budget_in_one_bin_is_told_and_not_fatal(self):
        table = study()
        gone = (table["bin_idx"] == 2) & (table["budget"] == "128")
        found = row(models(table[~gone], clusters_of(table)))
        assert found["status"] == "ok"
        assert found["lo"] < 1 < found["hi"]


class TestMarginalEffects:
    def test_they_are_those_of_the_formula(self):
        table = study(methods=("snapkv", "streaming_llm"), lengths=LENGTHS[:3])
        frame = models(table)
        rows = table[table["method"] != "full"].copy()
        rows["xc"] = np.log2(np.minimum(rows["budget_value"], rows["token_len"])) - 8.5
        per_example = table.drop_duplicates("example_id")["token_len"]
        rows["zc"] = np.log2(rows["token_len"]) - np.log2(per_example).mean()
        model = smf.gee(
            "score ~ xc * zc * C(method)",
            "cluster_id",
            rows.sort_values("cluster_id"),
            family=sm.families.Binomial(),
            cov_struct=sm.cov_struct.Independence(),
        )
        fit = model.fit(cov_type="bias_reduced")
        for name, value in fit.params.items():
            term = name.replace("C(method)[T.streaming_llm]", "method[streaming_llm]")
            found = row(frame, "gee", term, "")
            assert found["estimate"] == pytest.approx(value, abs=1e-7)
            assert found["se"] == pytest.approx(fit.bse[name], abs=1e-7)
        assert len(frame[(frame["model"] == "gee") & (frame["policy"] == "zero")]) == len(fit.params)

    def test_fewer_than_100_clusters_take_students_t(self):
        few = row(models(study(n=20, lengths=LENGTHS)), "gee", "xc", "")
        assert (few["n_clusters"], few["df"]) == (80, 76)
        assert few["hi"] - few["estimate"] == pytest.approx(1.99167 * few["se"], rel=1e-5)
        many = row(models(study(n=40)), "gee", "xc", "")
        assert np.isnan(many["df"])
        assert many["hi"] - many["estimate"] == pytest.approx(1.95996 * many["se"], rel=1e-5)
        assert many["p"] < 1e-6

    def test_the_budget_in_effect_is_never_longer_than_the_prompt(self):
        table = study(budgets=(*BUDGETS, 4096), lengths=(1000, 2000, 4000))
        larger = table.replace({"budget_value": {4096.0: 65536.0}, "budget": {"4096": "65536"}})
        long = table["token_len"] > 4096
        assert not (long & (table["bin_idx"] < 2)).any()
        short = [t[t["bin_idx"] < 2] for t in (table, larger)]
        ratios = [row(models(t), "gee_length_ratio", "length_ratio") for t in short]
        assert ratios[0]["estimate"] == pytest.approx(ratios[1]["estimate"], abs=1e-9)

    def test_the_length_ratio_is_positive_where_longer_prompts_need_more(self):
        found = row(models(study(1.0, n=80)), "gee_length_ratio", "length_ratio")
        assert (found["status"], found["lo"] > 0) == ("ok", True)

    def test_without_an_effect_of_the_budget_the_ratio_has_no_limits(self):
        table = study()
        rng = np.random.default_rng(1)
        found = row(models(table.assign(score=rng.random(len(table)))), "gee_length_ratio", "length_ratio")
        assert found["status"] == "slope_not_significant"
        assert np.isnan([found["lo"], found["hi"], found["se"]]).all()

    def test_a_task_without_methods_has_no_rows(self):
        table = study()
        assert len(models(table[table["method"] == "full"])) == 0

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            (lambda t: t.assign(score=0.0), "constant_scores"),
            (lambda t: t.assign(score=1.0), "constant_scores"),
            (lambda t: t.assign(score=nan, failure="TIMEOUT"), "no_scores"),
            (lambda t: t.assign(token_len=4000), "singular_design"),
            (lambda t: t[t["budget"].isin(["full", "64"])], "singular_design"),
            (lambda t: t[t["example_id"].str[-3:] < "002"], "too_few"),
            (lambda t: t.assign(cluster_id="one"), "too_few"),
            (lambda t: t.assign(score=(t["budget_value"] > 300).astype(float)), "separated"),
            (lambda t: t.assign(score=t["score"].where(t["method"] != "tova", 0.0)), "separated"),
        ],
    )
    def test_what_cannot_be_estimated_has_a_status(self, change, status):
        table = change(study(methods=("snapkv", "tova")))
        frame = models(table, policies=["exclude"])
        effects = frame[frame["model"] == "gee"]
        assert set(effects["status"]) == {status}
        assert effects[["estimate", "se", "lo", "hi", "p"]].isna().all(axis=None)

    def test_clusters_of_several_examples_widen_the_interval(self):
        table = study(n=40)
        singles = row(models(table), "gee", "Intercept", "")
        number = table["example_id"].str[-3:].astype(int) // 4
        grouped = table.assign(cluster_id=table["bin_idx"].astype(str) + "-" + number.astype(str))
        doubled = row(models(grouped), "gee", "Intercept", "")
        assert doubled["n_clusters"] == singles["n_clusters"] / 4
        assert doubled["estimate"] == pytest.approx(singles["estimate"], abs=1e-9)
        assert doubled["se"] != singles["se"]


def test_a_singular_fit_says_so_without_a_crash():
    clusters = np.repeat(np.arange(12), 2)
    scores = np.tile([0.0, 1.0], 12)
    design = np.stack([np.ones(24), np.tile([0.0, 1.0], 12), np.tile([1.0, 0.0], 12)], axis=1)
    assert fit_gee(scores, design, clusters).status == "singular_design"
    assert fit_gee(scores, design[:, :2], clusters).status == "separated"


class TestInvariance:
    def test_the_order_of_rows_changes_nothing(self):
        table = study(methods=("snapkv", "tova"))
        shuffled = table.sample(frac=1, random_state=3, ignore_index=True)
        assert content(models(shuffled)) == content(models(table))

    def test_another_method_leaves_the_models_of_one_method_alone(self):
        both = study(methods=("snapkv", "tova"), n=30)
        alone = models(both[both["method"] != "tova"])
        for model in ("collapse", "gee_length_ratio"):
            after = content(models(both), model)
            for key, values in content(alone, model).items():
                assert after[key] == values, key

    def test_another_task_leaves_a_task_alone(self):
        one, other = study(), study(seed=5, dataset="e")
        after = content(models(pd.concat([one, other], ignore_index=True)))
        for key, values in content(models(one)).items():
            assert after[key] == values

    def test_policies_that_agree_have_the_same_rows(self):
        frame = models(study())
        sides = [frame[frame["policy"] == p].drop(columns="policy") for p in ("zero", "exclude")]
        pd.testing.assert_frame_equal(*(side.reset_index(drop=True) for side in sides))

    def test_failed_requests_count_as_zero_or_as_missing(self):
        table = study()
        failed = (table["budget"] == "1024") & (table["example_id"].str[-1] == "0")
        table = table.assign(
            failure=table["failure"].mask(failed, "TIMEOUT"), score=table["score"].mask(failed)
        )
        frame = models(table)
        zero, exclude = (row(frame, policy=policy) for policy in ("zero", "exclude"))
        assert zero["n_obs"] == exclude["n_obs"] + failed.sum()
        assert "unreliable" in zero["flags"]
        assert zero["estimate"] != exclude["estimate"]


def test_a_method_that_fails_wherever_it_compresses_follows_no_law():
    # Prompts that fit the budget score as the full cache does, so the curves jump at the prompt's length.
    parts = []
    for idx, length in enumerate((150, 300, 600, 1200, 2400)):
        rng = np.random.default_rng(idx)
        lens = rng.integers(int(0.8 * length), int(1.25 * length), 40)
        full = np.where(rng.random(40) < 0.2, 0.0, 1.0)
        parts.append(example_rows("full", None, full, bin_idx=idx, token_len=lens))
        for budget in BUDGETS:
            scores = np.where((lens <= budget) | (rng.random(40) < 0.15), full, 0.0)
            parts.append(example_rows("snapkv", budget, scores, bin_idx=idx, token_len=lens))
    found = row(models(pd.concat(parts, ignore_index=True)))
    assert found["label"] == ""
    assert np.isnan([found["lo"], found["hi"]]).all()
    assert "rests_on_inactive_budgets" in found["flags"].split(",")


def test_scores_and_manifest_give_the_file(tmp_path):
    table = study()
    examples = table[table["method"] == "full"]
    manifest = build_manifest(
        [
            CountedExample(one.example_id, "q", one.example_id, ["a"], {}, one.cluster_id, int(one.token_len))
            for one in examples.itertuples()
        ],
        experiment="x",
        dataset="d",
        task="task",
        tokenizer="t",
        protocol="own-1",
        n_bins=len(LENGTHS),
        n_per_bin=None,
        selection_seed=1,
    )
    write_manifest(tmp_path / "manifest.json", manifest)
    scores = table[["task", "example_id", "method", "budget", "budget_value", "score", "failure"]]
    write_parquet(tmp_path / "scores.parquet", scores.assign(replicate=0, metric="f1"))
    paths = [tmp_path / "scores.parquet"], [tmp_path / "manifest.json"]
    write_effect_models(*paths, CFG, tmp_path / "effect_models.parquet")
    read = read_parquet(tmp_path / "effect_models.parquet")
    assert list(read.columns) == list(EFFECT_MODELS)
    assert row(read)["label"] == "relative"
    assert row(read)["metric"] == "f1"
    assert not np.isinf(read.select_dtypes("number").to_numpy(float)).any()
    expected = effect_models(*read_examples(*paths), CFG)
    assert row(read)["estimate"] == float_round(row(expected)["estimate"])
