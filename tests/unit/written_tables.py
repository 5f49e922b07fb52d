"""All analysis tables of an example table, written and read back: what a user has in hand."""

import tempfile
from pathlib import Path

from example_tables import CFG, clusters_of

from kv_transition.analysis.score_table import ScoreTable
from kv_transition.analysis.tables import write_table
from kv_transition.commands.analyze import make_tables, steps
from kv_transition.files import read_parquet

KEYS = {
    "bin_stats": ("dataset", "method", "bin_idx", "budget", "policy"),
    "retention": ("dataset", "method", "bin_idx", "budget", "policy"),
    "transition": ("dataset", "method", "bin_idx", "policy", "tau"),
    "paired_tests": (
        *("dataset", "kind", "bin_idx", "policy"),
        *("method_a", "budget_a", "method_b", "budget_b"),
    ),
    "lossless": ("dataset", "method", "bin_idx", "policy"),
    "effect_models": ("dataset", "model", "method", "term", "policy"),
    "macro": ("method", "budget", "policy"),
}


def written(table, **changes):
    """Name of a table -> its data frame as it stands in the file."""
    cfg = CFG | changes
    tables = make_tables(ScoreTable(table, clusters_of(table), 0, 0), cfg)
    with tempfile.TemporaryDirectory() as folder:
        for name, frame in tables.items():
            write_table(frame, *steps()[name][1:], cfg, Path(folder) / f"{name}.parquet")
        return {name: read_parquet(Path(folder) / f"{name}.parquet") for name in tables}


def contents(table, **changes):
    """(table, key columns ...) -> {column: the value's exact text}, of all tables."""
    found = {}
    for name, frame in written(table, **changes).items():
        for row in frame.to_dict("records"):
            key = (name, *(row[column] for column in KEYS[name]))
            assert key not in found
            found[key] = {column: repr(value) for column, value in row.items()}
    return found
