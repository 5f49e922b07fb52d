"""A cell's numbers do not hang on row order, on what else is in the table, or on threads: to the last written digit.

Where they must (a family of tests that grows, a model of all methods) the columns are named here.
"""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from example_tables import example_rows, graded
from hypothesis import given, settings
from hypothesis import strategies as st
from written_tables import KEYS, contents

from kv_transition.files import read_parquet

METHODS = ("snapkv", "streaming_llm")
BUDGETS = (64, 256, 1024)
BINS = (0, 1, 2)


def study(methods=METHODS, budgets=BUDGETS, bins=BINS, dataset="d", n=14):
    """Curves of several methods in bins of growing length; each cell is the same whatever else is asked for."""
    parts = []
    for bin_idx in bins:
        full, length = graded(n, bin_idx), 2000 * 2**bin_idx
        parts.append(example_rows("full", None, full, bin_idx=bin_idx, token_len=length, dataset=dataset))
        for method in methods:
            for budget in budgets:
                seed = [bin_idx, budget, *method.encode()]
                kept = np.random.default_rng(seed).random(n) < (budget / 2048) ** 0.4
                scores = np.where(kept, full, 0.0)
                parts.append(
                    example_rows(method, budget, scores, bin_idx=bin_idx, token_len=length, dataset=dataset)
                )
    table = pd.concat(parts, ignore_index=True)
    failing = table["example_id"].str.endswith("3") & (table["budget"] == "256")
    table.loc[failing, ["score", "failure"]] = [np.nan, "TIMEOUT"]
    return table


@pytest.fixture(scope="module")
def before():
    return contents(study())


def assert_unchanged(before, after, may_change=lambda name, row: ()):
    """Every row of `before` is in `after` with the same values, but for the columns in may_change(table, row)."""
    assert set(before) <= set(after)
    for key, values in before.items():
        row = dict(zip(KEYS[key[0]], key[1:], strict=True))
        free = set(may_change(key[0], row))
        if "*" not in free:
            changed = {name for name, value in values.items() if after[key][name] != value} - free
            assert changed == set(), (key, {name: (values[name], after[key][name]) for name in changed})


# Order


@settings(max_examples=5, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_row_order_changes_nothing(before, order):
    table = study()
    rows = list(range(len(table)))
    order.shuffle(rows)
    assert_unchanged(before, contents(table.iloc[rows]))


def test_a_table_in_pieces_put_together_changes_nothing(before):
    table = study()
    pieces = [table[table["method"] == "streaming_llm"], table[table["method"] != "streaming_llm"][::-1]]
    assert_unchanged(before, contents(pd.concat(pieces)))
    assert_unchanged(before, contents(pd.concat([table[i::5] for i in range(5)])))


# Additions


def another_method(name, row):
    """Families over all methods of a task, and the one model of all methods."""
    return {
        "paired_tests": ["p_adjusted"] if row.get("kind") in ("method", "full") else [],
        "lossless": ["p_holm_methods"] if row.get("bin_idx") == -1 else [],
        "effect_models": ["*"] if row.get("model") == "gee" else [],
    }.get(name, [])


@pytest.mark.parametrize("method", ["aardvark", "random", "zebra"])
def test_another_method_changes_families_and_the_joint_model_alone(before, method):
    assert_unchanged(before, contents(study(methods=(*METHODS, method))), another_method)


def another_budget(name, row):
    """The curve of that method, what is fitted to it, and families over cells; its neighbours are other pairs now."""
    own = row.get("method") == "snapkv"
    if name == "paired_tests":
        curve = row["kind"] == "adjacent" and row["method_a"] == "snapkv"
        return ["p_adjusted"] if curve or row["kind"] in ("method", "full") else []
    if name == "effect_models":
        # The joint model has more rows; the mean of the grid, from which budgets are reckoned, is common to all.
        return ["*"] if own or row["model"] == "gee" else ["x_center"] * (row["model"] != "collapse")
    if name == "lossless":
        return ["*"] if own else ["p_holm_methods"]
    return ["*"] if name == "transition" and own else []


@pytest.mark.parametrize("budget", [32, 512, 2048])
def test_another_budget_of_one_method_changes_its_own_curve_alone(before, budget):
    more = study(budgets=(*BUDGETS, budget))
    more = more[(more["method"] == "snapkv") | (more["budget"] != str(budget))]
    after = contents(more)
    gone = {key for key in before if key not in after}
    assert all(key[0] == "paired_tests" and key[2] == "adjacent" and key[5] == "snapkv" for key in gone)
    assert_unchanged({key: value for key, value in before.items() if key in after}, after, another_budget)


def another_bin(name, row):
    """What is about all bins."""
    return ["*"] if row.get("bin_idx", -1) == -1 else []


def test_another_bin_changes_what_is_pooled_alone(before):
    assert_unchanged(before, contents(study(bins=(*BINS, 3))), another_bin)


@pytest.mark.parametrize("dataset", ["a", "z"])
def test_another_task_changes_nothing(before, dataset):
    after = contents(pd.concat([study(), study(dataset=dataset, bins=(0, 1)).assign(task=dataset)]))
    assert_unchanged(before, after)
    assert ("macro" in {key[0] for key in before}, "macro" in {key[0] for key in after}) == (False, True)


def test_another_policy_or_level_changes_nothing(before):
    one = contents(study(), policies=["zero"], tau=[0.9])
    assert_unchanged(one, before)


def test_more_replicates_for_fits_leave_the_other_tables(before):
    after = contents(study(), collapse_replicates=150)
    assert_unchanged(before, after, lambda name, row: ["*"] * (name == "effect_models"))


# Names


def renamed(values, names):
    return {column: "".join(names.get(part, part) for part in split(text)) for column, text in values.items()}


def split(text):
    for name in METHODS:
        text = text.replace(name, f"\0{name}\0")
    return text.split("\0")


def test_new_names_of_methods_change_nothing_but_the_names(before):
    names = {"snapkv": "ada", "streaming_llm": "tova"}
    table = study()
    after = contents(table.assign(method=table["method"].replace(names)))
    translated = {
        tuple(
            "".join(names.get(part, part) for part in split(key)) if isinstance(key, str) else key
            for key in keys
        ): (renamed(values, names))
        for keys, values in before.items()
    }
    assert_unchanged(translated, after)
    assert set(translated) == set(after)


def test_names_in_another_order_turn_comparisons_around_alone(before):
    """Of two methods the first by name is `a`, and the reference of the joint model."""
    names = {"snapkv": "zipkv", "streaming_llm": "streaming_llm"}
    table = study()
    after = contents(table.assign(method=table["method"].replace(names)))
    single = {
        key: renamed(values, names)
        for key, values in before.items()
        if not (key[0] == "paired_tests" and key[2] == "method")
        and not (key[0] == "effect_models" and key[2] == "gee")
    }
    translated = {tuple(names.get(part, part) for part in key): values for key, values in single.items()}
    assert_unchanged(translated, after)


# Threads


def test_the_number_of_threads_changes_no_byte(tmp_path):
    table = study(budgets=(64, 256, 1024, 4096), n=80)
    table["budget"] = table["budget_value"].astype("Int64")
    table.drop(columns=["dataset", "task", "budget_value"]).to_parquet(tmp_path / "demo.parquet")
    words = ["-m", "kv_transition", "analyze", "--scores", "demo.parquet", "--replicates", "2000", "--out"]
    found = []
    for threads in (1, 2, 8):
        count = {f"{name}_NUM_THREADS": str(threads) for name in ("OPENBLAS", "OMP", "MKL")}
        subprocess.run(
            [sys.executable, *words, f"t{threads}"], cwd=tmp_path, env=os.environ | count, check=True
        )
        found.append({file.name: file.read_bytes() for file in (tmp_path / f"t{threads}").iterdir()})
    models = read_parquet(tmp_path / "t1" / "effect_models.parquet")
    assert set(models["status"]) == {"ok"}
    assert [name for name in found[0] if any(found[0][name] != other[name] for other in found[1:])] == []
