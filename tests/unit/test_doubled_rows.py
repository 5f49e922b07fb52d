"""Rows that come twice: exact against known records, as long repeated blocks without."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.doubled_rows import pair_rows, repeated_blocks

KEYS = st.lists(st.sampled_from("abcde"), max_size=12)


@given(KEYS, KEYS)
def test_every_row_and_record_is_paired_or_accounted_for_once(rows: list[str], records: list[str]) -> None:
    paired = pair_rows(rows, records)
    assert all(rows[row] == records[record] for row, record in paired.record_of.items())
    assert sorted([*paired.record_of, *paired.doubled, *paired.foreign]) == list(range(len(rows)))
    assert sorted([*paired.record_of.values(), *paired.missing]) == list(range(len(records)))
    assert not {rows[row] for row in paired.foreign} & set(records)
    assert {rows[row] for row in paired.doubled} <= set(records)


@given(st.permutations(range(6)))
def test_rows_are_out_of_order_unless_they_are_in_the_records_order(order: list[int]) -> None:
    assert bool(pair_rows(order, range(6)).moved) == (order != sorted(order))


@given(KEYS)
def test_of_equal_keys_the_kth_row_has_the_kth_record(keys: list[str]) -> None:
    assert pair_rows(keys, keys).record_of == {place: place for place in range(len(keys))}


@pytest.mark.parametrize(
    ("values", "distinct", "blocks"),
    [
        ("abcdefxabcdef", False, ["7-12 repeat 0-5"]),
        ("abcdabcd", False, ["4-7 repeat 0-3"]),
        ("abcdabc", False, []),
        ("aaaaaaaaaa", False, ["4-7 repeat 0-3"]),
        ("aaaaaaaaaa", True, []),
        ("aabbxaabb", True, []),
        ("abcdabcd", True, ["4-7 repeat 0-3"]),
        ("abcddxabcdd", True, ["6-10 repeat 0-4"]),
    ],
)
def test_blocks_of_four_and_more_that_repeat_are_found(
    values: str, distinct: bool, blocks: list[str]
) -> None:
    assert [str(block) for block in repeated_blocks(values, 4, distinct=distinct)] == blocks
