"""Files of one JSON value a line: what is read, and how a broken line is named."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.data.json_lines import parse_json_lines, read_json_lines
from kv_transition.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\u2028"), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(VALUES, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\ufeff"])
)
def test_every_value_comes_back_with_its_line(values: list[object], end: str, mark: str) -> None:
    text = mark + "".join(json.dumps(value, ensure_ascii=False) + end for value in values)
    read = list(parse_json_lines(text.encode(), "f.jsonl"))
    assert read == [(value, f"f.jsonl, line {line}") for line, value in enumerate(values, start=1)]


@given(st.binary(max_size=60))
def test_any_bytes_are_values_or_one_error_that_names_the_file(content: bytes) -> None:
    try:
        assert list(parse_json_lines(content, "f.jsonl"))
    except UserError as error:
        message = str(error)
    else:
        return
    assert message.startswith("f.jsonl")
    assert "; " in message  # what to do


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "broken JSON"),
        (b" ", "the line is blank"),
        (b'{} {"second": 1}', "broken JSON"),
        (b'"caf\xe9"', "not UTF-8 (byte 4)"),
        (b"[" * 100_000, "broken JSON"),
    ],
)
def test_a_broken_line_is_named_after_the_lines_before_it_were_read(line: bytes, words: str) -> None:
    lines = parse_json_lines(b"1\n" + line + b"\n3\n", "f.jsonl")
    assert next(lines) == (1, "f.jsonl, line 1")
    with pytest.raises(UserError) as error:
        next(lines)
    assert str(error.value).startswith(f"f.jsonl, line 2: {words}")


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_what_is_no_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read .*; name a"):
        list(read_json_lines(tmp_path / name))
