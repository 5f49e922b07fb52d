"""Long values and lists in messages: short, whole where they fit, and always text that can be written."""

from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.excerpts import first_few, shown


@given(st.text() | st.lists(st.text()))
def test_what_is_shown_is_short_and_can_be_written(value: object) -> None:
    assert len(shown(value)) <= 40
    shown(value).encode("utf-8")


def test_a_short_value_is_shown_whole_and_a_long_one_by_its_beginning() -> None:
    assert shown(["猫", 1, None]) == '["猫", 1, null]'
    assert shown("\ud83d") == '"\\ud83d"'
    assert shown("a" * 50) == '"' + "a" * 36 + "..."


def test_a_long_list_ends_with_how_many_more_there_are() -> None:
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert first_few([]) == ""
