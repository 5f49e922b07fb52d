"""Files are whole or absent, and equal content is equal bytes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transition.files import (
    atomic_path,
    canonical_json,
    float_round,
    read_parquet,
    write_parquet,
    write_text,
)


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    write_text(target, "old")

    def fail_half_way() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@given(st.permutations(range(6)))
def test_row_order_and_form_of_a_table_do_not_change_its_bytes(order: list[int]) -> None:
    import tempfile

    frame = pd.DataFrame({"key": [f"k{i}" for i in range(6)], "value": [None, 1.5, 2.5, 3.5, 4.5, 5.5]})
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder, "a.parquet"), Path(folder, "b.parquet")
        write_parquet(one, frame, sort_by=["key"])
        write_parquet(other, frame.iloc[order], sort_by=["key"])
        assert one.read_bytes() == other.read_bytes()
        assert read_parquet(one)["key"].tolist() == frame["key"].tolist()


def test_canonical_json_ignores_the_order_of_keys() -> None:
    assert (
        canonical_json({"b": [1, 2], "a": "ä"})
        == canonical_json({"a": "ä", "b": [1, 2]})
        == '{"a":"ä","b":[1,2]}'
    )


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e200, max_value=1e200))
def test_rounding_keeps_ten_significant_digits(value: float) -> None:
    assert float_round(value) == pytest.approx(value, rel=1e-9, abs=1e-280)
    assert float_round(float_round(value)) == float_round(value)


def test_rounding_passes_what_is_no_number() -> None:
    rounded = float_round(np.array([np.nan, np.inf, -np.inf, 0.0, 1 / 3]))
    assert np.isnan(rounded[0])
    assert rounded[1:].tolist() == [np.inf, -np.inf, 0.0, 0.3333333333]
