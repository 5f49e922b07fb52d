"""The one place that writes files: whole or not at all, and the same bytes for the same content."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

#: Fixed, because the row-group size is visible in a file's bytes.
ROW_GROUP_ROWS = 65_536


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it into place when the block ends well, else remove it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON with sorted keys, one value a line, newline at the end."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, fit for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_text(text: str) -> str:
    """Hex digest of a text's UTF-8 bytes (lone surrogates kept)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_parquet(
    path: str | Path,
    table: Any,
    sort_by: Sequence[str | tuple[str, str]] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a table so that equal rows give equal bytes (for equal pyarrow versions).

    Parameters
    ----------
    table : pyarrow.Table, pandas.DataFrame or dict of columns. The data frame's index is dropped.
    sort_by : columns that order the rows, ("column", "ascending" | "descending") where it matters; nulls first.
    metadata : text pairs stored in the file's schema.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not isinstance(table, pa.Table):
        table = (
            pa.table(table)
            if isinstance(table, Mapping)
            else pa.Table.from_pandas(table, preserve_index=False)
        )
    if sort_by:
        keys = [
            (key, "ascending", "at_start") if isinstance(key, str) else (*key, "at_start") for key in sort_by
        ]
        table = table.take(pc.sort_indices(table, sort_keys=keys))
    table = table.replace_schema_metadata(dict(sorted(metadata.items())) if metadata else None)
    with atomic_path(path) as temporary:
        pq.write_table(table.combine_chunks(), temporary, use_dictionary=False, row_group_size=ROW_GROUP_ROWS)


class _Hidden(MetaPathFinder):
    """Python's answer to `import pandas` while this is asked first: there is no such package."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def arrow_without_pandas() -> None:
    """Keep pyarrow from importing pandas in this process, which takes half a second of every job.

    It does so when it is first given a list, to see whether it is one of pandas' series, and remembers what it finds. From
    here on it refuses to convert from and to pandas. Where pandas is imported already nothing is gained, and nothing done.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(hidden)


def read_parquet(path: str | Path) -> pd.DataFrame:
    """Read a table written by :func:`write_parquet`."""
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.ParquetFile(path).read().to_pandas()
    return frame


def float_round(value: Any, digits: int = 10) -> Any:
    """Round to significant digits, so that the order of floating-point sums cannot change a file.

    Parameters
    ----------
    value : a number or an array of any shape; nan and infinities pass through.
    """
    array = np.asarray(value, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.floor(np.log10(np.abs(array)))
        usable = np.isfinite(magnitude)
        scale = 10.0 ** (digits - 1 - np.where(usable, np.maximum(magnitude, -290.0), 0.0))
        rounded = np.where(usable, np.round(array * scale) / scale, array)
    return float(rounded) if rounded.ndim == 0 else rounded
