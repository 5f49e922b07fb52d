"""The analysis tables as files: fixed columns and types, key order, floats rounded to 10 significant digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_transition.files import canonical_json, float_round, write_parquet

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
#: Column name -> type: "string", "int32", "int64", "bool", "float64" or "list" (of float64).
Columns = Mapping[str, str]

#: Keys of the tables with a row for each cell.
CELL_KEYS: Columns = {
    "dataset": "string",
    "task": "string",
    "method": "string",
    "bin_idx": "int32",
    "budget": "string",
    "budget_value": "float64",
    "policy": "string",
}
#: What every row says about how its numbers came about: prompts, score, unit of token_len.
ABOUT: Columns = {"protocol": "string", "metric": "string", "length_unit": "string"}


def columns(kind: str, names: str) -> dict[str, str]:
    """Columns of one type, from their names in one text."""
    return dict.fromkeys(names.split(), kind)


def frame(rows: Sequence[Row], schema: Columns) -> pd.DataFrame:
    """Rows as a data frame with the table's columns, also where there is no row."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(schema))
    return table.astype({name: kind for name, kind in schema.items() if kind not in ("string", "list")})


def write_table(
    table: pd.DataFrame, schema: Columns, sort_by: Sequence[str], cfg: Mapping[str, Any], out: str | Path
) -> None:
    """Write a table; the analysis settings go into the file's metadata.

    Rounding makes the file independent of the order in which threads add; nan is written as null.
    """
    import pyarrow as pa

    types = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "bool": pa.bool_()}
    types |= {"float64": pa.float64(), "list": pa.list_(pa.float64())}
    arrays = {}
    for name, kind in schema.items():
        values = table[name].tolist()
        if kind == "float64":
            values = float_round(np.array(values, dtype=np.float64))
        elif kind == "list":
            values = [[_null(float_round(value)) for value in row] for row in values]
        arrays[name] = pa.array(values, type=types[kind], from_pandas=True)
    write_parquet(
        out, pa.table(arrays), sort_by=list(sort_by), metadata={"analysis": canonical_json(dict(cfg))}
    )


def _null(value: float) -> float | None:
    return None if np.isnan(value) else value
