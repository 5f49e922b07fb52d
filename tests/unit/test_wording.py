"""Sentences that never say more than the tests did."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.report.claims import claim_words, p_words
from kv_transition.report.length_law import LengthLaw
from kv_transition.report.study import Claim
from kv_transition.report.wording import (
    Curve,
    answer_on_task,
    answer_over_tasks,
    estimate_symbol,
    estimate_words,
    interval_words,
    join,
    length_sentence,
    looked_at,
    percent,
    range_words,
    size_words,
    status_words,
)

GRID = ["<=16", "32", "64", "128", ">128"]


def curve(point="64", lower="32", upper="128", **changes):
    return Curve(**({"task": "qa", "method": "snapkv", "bin_idx": -1, "status": "ok", "point": point, "lower": lower, "upper": upper} | changes))  # fmt: skip


@pytest.mark.parametrize(
    ("label", "words", "symbol"),
    [
        ("64", "64 tokens", "64"),
        (">512", "above 512 tokens", "&gt;512"),
        ("<=16", "at or below 16 tokens", "≤16"),
        ("f0.25", "25% of the prompt", "25%"),
        ("<=f0.05", "at or below 5% of the prompt", "≤5%"),
    ],
)
def test_a_transition_budget_is_named_in_words_and_symbols(label, words, symbol):
    assert estimate_words(label) == words
    assert estimate_symbol(label) == symbol


@given(st.sampled_from(["<=", ">"]), st.integers(2, 10**6))
def test_a_censored_limit_is_never_written_as_a_number(sign, budget):
    label = f"{sign}{budget}"
    bound = re.compile(rf"(at or below|above|≤|&gt;) ?{budget}\b")
    assert bound.search(estimate_words(label))
    assert bound.search(estimate_symbol(label))
    text = curve(point=label, lower="<=2", upper=f">{budget + 1}").clause()
    for found in re.finditer(rf"\b{budget}\b", text):
        assert re.search(r"(at or below|above) $", text[: found.start()])


@pytest.mark.parametrize(
    ("lower", "upper", "words"),
    [
        ("32", "128", "32 to 128"),
        ("64", "64", "64 alone"),
        ("<=16", "128", "128 or less"),
        ("64", ">512", "64 or more"),
        ("<=16", ">512", "not limited by the tested budgets on either side"),
        (">512", ">512", "above 512"),
        ("<=16", "<=16", "at or below 16"),
        ("f0.05", "f0.5", "5% to 50%"),
    ],
)
def test_intervals_say_which_side_is_open(lower, upper, words):
    assert interval_words(lower, upper) == words


def test_a_curve_without_estimate_is_a_dash_and_its_labels_are_never_read():
    gated = curve("too_few", "too_few", "too_few", status="too_few")
    assert gated.cell() == "–"
    text = answer_on_task("qa", [gated], 0.9)
    assert text == "On qa, no transition budget could be determined: fewer than 10 independent examples."


def test_evidence_that_is_none_is_marked_in_cells_and_sentences():
    assert curve(point_inactive=True).cell() == "64° [32, 128]"
    assert "little was compressed" in curve(point_inactive=True).clause()
    assert curve(upper_inactive=True).cell() == "64 [32, 128°]"
    assert "not compressed" in curve(upper_inactive=True).clause()
    assert curve(incomplete=True).cell() == "64‡ [32, 128]"
    assert "no answers" in curve(incomplete=True).clause()
    assert "†" in curve(unreliable=True).cell()
    assert "requests of a cell failed" in curve(unreliable=True).clause()


def test_the_answer_names_every_method_with_its_interval():
    curves = [curve(), curve(">512", "256", ">512", method="random")]
    text = answer_on_task("qa", curves, 0.9)
    assert "**64 tokens** with snapkv (32 to 128)" in text
    assert "**above 512 tokens** with random (256 or more)" in text
    assert "at least 90%" in text


def test_many_tasks_are_counted_and_nothing_is_averaged():
    curves = [
        curve(task=f"t{index}", point=point) for index, point in enumerate(["64", "256", "<=16", ">512"])
    ]
    curves.append(curve("too_few", "too_few", "too_few", task="t9", status="too_few"))
    text = answer_over_tasks(curves, 0.9)
    assert "64 to 256 tokens on 2" in text
    assert "at or below the smallest tested budget on 1" in text
    assert "above the largest tested budget on 1" in text
    assert "not to be determined on 1 of 5 tasks (32 to 128)" in text


def test_the_uncertainty_of_many_tasks_is_how_far_their_intervals_reach():
    curves = [curve(task="a"), curve(task="b", lower="<=16", upper=">512")]
    assert "(not limited by the tested budgets on either side)" in answer_over_tasks(curves, 0.9)
    assert "(32 or more)" in answer_over_tasks([curve(task="a"), curve(task="b", upper=">512")], 0.9)


intervals = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(
    lambda pair: (GRID[min(pair)], GRID[max(pair)])
)


def budgets_inside(interval):
    """All budgets an interval admits, on a grid that reaches beyond the tested one."""
    order = {label: rank for rank, label in enumerate(GRID)}
    return set(range(order[interval[0]], order[interval[1]] + 1))


@given(intervals, intervals)
def test_a_change_with_length_is_claimed_only_where_intervals_have_nothing_in_common(first, last):
    pair = (curve("64", *first), curve("64", *last))
    text = length_sentence({"snapkv": pair}, "short prompts", "long ones")
    apart = not budgets_inside(first) & budgets_inside(last)
    assert ("is needed" in text or "is enough" in text) == apart
    assert ("no change" in text) == (not apart)
    if apart:
        assert ("larger" in text) == (max(budgets_inside(first)) < min(budgets_inside(last)))


def test_an_open_lower_limit_is_no_evidence_of_growth_even_where_bins_were_tested_differently():
    pair = (curve("<=16", "<=16", "<=16"), curve("<=32", "<=32", "64"))
    assert "no change" in length_sentence({"snapkv": pair}, "short prompts", "long ones")


def test_how_many_curves_were_looked_at_is_said():
    assert looked_at(30, 0.95).endswith("each holds 95% on its own; 30 curves were looked at.")
    assert "1 curve was" in looked_at(1, 0.95)


def test_every_status_has_words_and_unknown_ones_are_shown():
    assert "too low" in status_words("reference_too_weak")
    assert "without any context" in status_words("context_not_needed")
    assert status_words("some_new_status") == "some new status"


def test_small_words():
    assert (percent(0.9), percent(0.025), percent(0.955)) == ("90%", "2.5%", "95.5%")
    assert [join(["a", "b", "c"][:size]) for size in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_a_claim_is_a_budget_or_says_what_the_sample_could_have_seen():
    assert claim_words(Claim("ok", "192")) == "192"
    assert claim_words(Claim("not_demonstrated", None, mde=0.12)) == "not demonstrated (MDE 0.12)"
    assert claim_words(Claim("not_demonstrated", None, mde=0.0042)) == "not demonstrated (MDE 0.004)"
    assert claim_words(Claim("not_tested", None)) == "not tested: little was compressed"
    assert claim_words(Claim("too_few", None)).startswith("not tested: fewer than 10")
    assert claim_words(None) == "–"


def test_a_loss_that_is_sure_is_not_called_merely_not_demonstrated():
    lost = Claim("not_demonstrated", None, mde=0.09, failed_at="192", loss=(0.25, 0.39))
    assert claim_words(lost) == "no: loses 0.25 to 0.39 at 192"


def test_a_claim_that_failed_requests_prevented_says_so():
    assert (
        claim_words(Claim("not_demonstrated", None, unreliable=True))
        == "not tested: too many requests failed"
    )


def test_a_small_size_is_never_rounded_to_nothing():
    assert [size_words(size) for size in (0.123, 0.0042, 0.01)] == ["0.12", "0.004", "0.01"]
    assert range_words(0.0042, 0.1) == "0.004 to 0.10"
    assert range_words(0.101, 0.104) == "0.10"


def test_a_change_with_length_marks_budgets_at_which_little_was_compressed():
    pair = (curve("64", "32", "64", point_inactive=True), curve("128", "128", "128"))
    assert "snapkv (64° → 128)" in length_sentence({"snapkv": pair}, "short prompts", "long ones")


def law(low, high, label="neither", **changes):
    values = {"method": "snapkv", "alpha": (low + high) / 2, "status": "ok", "flags": ()} | changes
    return LengthLaw(low=low, high=high, label=label, **values)


@pytest.mark.parametrize(
    ("low", "high", "label", "brief", "reading"),
    [
        (0.8, 1.1, "relative", "a fixed share fits", "in proportion to the prompt is possible"),
        (-0.1, 0.4, "absolute", "a fixed number fits", "not at all is possible"),
        (-0.2, 1.2, "not_distinguishable", "both fit", "not distinguishable"),
        (0.2, 0.7, "neither", "in between", "more slowly than the prompt"),
        (1.2, 1.9, "neither", "more than a share", "faster than the prompt"),
        (-0.9, -0.2, "neither", "falls", "shrinks"),
    ],
)
def test_an_exponent_is_read_by_its_interval_alone(low, high, label, brief, reading):
    assert law(low, high, label).brief().endswith(f", {brief}")
    assert reading in law(low, high, label).reading()


def test_an_exponent_without_limits_claims_nothing():
    missing = law(float("nan"), float("nan"), "", status="too_few_bins")
    assert missing.number == "–"
    assert missing.reading().startswith("could not be determined: ")


def test_small_p_values_are_bounded_not_rounded_to_zero():
    assert [p_words(p) for p in (0.00001, 0.0134, 0.42)] == ["&lt;0.001", "0.013", "0.42"]
