"""`kv-transition analyze --scores`: every table of the analysis, and one JSON document, from a table of scores."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.commands.console import warn
from kv_transition.errors import ConfigError, UserError
from kv_transition.files import write_json
from kv_transition.schema import POLICIES
from kv_transition.settings import from_mapping

if TYPE_CHECKING:
    import pandas as pd

    from kv_transition.analysis.score_table import ScoreTable

DOCUMENT = "analysis.json"
#: Key of the configuration -> option, where they have different names.
OPTIONS = {"analysis.bootstrap_replicates": "--replicates"}


def analyze(
    scores: str,
    *,
    out: str,
    policy: str | None = None,
    seed: int | None = None,
    tau: Sequence[float] | None = None,
    delta: float | None = None,
    conf: float | None = None,
    replicates: int | None = None,
) -> int:
    """Analyse a table of scores: tables with both failure policies, and the document of one.

    Parameters
    ----------
    scores : the table (see `analysis.score_table`). out : folder for the tables and analysis.json, written whole or not
        at all.
    policy, seed, tau, delta, conf, replicates : as in the configuration's section `analysis`, whose defaults hold; fits
        and interpolated transitions take at most `replicates` too.
    """
    from kv_transition.analysis.documents import document
    from kv_transition.analysis.score_table import read_score_table

    options: dict[str, Any] = {"policy": policy, "seed": seed, "delta": delta, "conf": conf}
    options |= {"tau": None if tau is None else list(tau), "bootstrap_replicates": replicates}
    cfg, chosen = _settings({name: value for name, value in options.items() if value is not None})
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out: {out} is a file; name a folder")
    read = read_score_table(scores)
    if read.n_absent:
        warn(Path(scores), f"{read.n_absent} rows have neither score nor failure; they count as absent")
    if read.n_failed_references and chosen == "zero":
        warn(
            Path(scores),
            f"{read.n_failed_references} full or no_context rows failed; counted as 0 they raise the retention, compare "
            "with --policy exclude",
        )
    tables = make_tables(read, cfg)
    _write(tables, document(tables, chosen, cfg), cfg, Path(out))
    sys.stdout.write(_words(read, tables, chosen, cfg))
    sys.stdout.write(f"written to {out}: {', '.join(f'{name}.parquet' for name in tables)}, {DOCUMENT}\n")
    return 0


def _settings(options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The analysis settings without the chosen policy (the tables hold all), and that policy."""
    replicates = options.get("bootstrap_replicates")
    analysis = dict(options)
    if replicates is not None:
        defaults = from_mapping({}).analysis
        for name in ("transition_replicates", "fit_replicates", "collapse_replicates"):
            analysis[name] = min(replicates, getattr(defaults, name))
    try:
        settings = from_mapping({"analysis": analysis}).analysis
    except ConfigError as error:
        key, _, problem = str(error).partition(": ")
        key = ".".join(key.split(".")[:2])
        raise UserError(f"{OPTIONS.get(key, key.replace('analysis.', '--'))}: {problem}") from None
    values = settings.model_dump(mode="json")
    chosen = str(values.pop("policy"))
    return {"policies": list(POLICIES), **values}, chosen


def make_tables(read: ScoreTable, cfg: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every table of the analysis, by the name of its file."""
    return {name: make(read.rows, read.clusters, cfg) for name, (make, _, _) in steps().items()}


def steps() -> dict[str, tuple[Any, Mapping[str, str], list[str]]]:
    """Name of a table -> the function that makes it, its columns, and what orders its rows."""
    from kv_transition.analysis import (
        aggregate,
        effect_models,
        lossless,
        macro,
        paired_tests,
        tables,
        transition,
    )

    cells = list(tables.CELL_KEYS)
    return {
        "bin_stats": (aggregate.bin_stats, aggregate.BIN_STATS, cells),
        "retention": (aggregate.retention, aggregate.RETENTION, cells),
        "transition": (transition.transition, transition.TRANSITION, list(transition.KEYS)),
        "paired_tests": (paired_tests.paired_tests, paired_tests.PAIRED_TESTS, list(paired_tests.SORTED_BY)),
        "lossless": (lossless.lossless, lossless.LOSSLESS, list(lossless.KEYS)),
        "effect_models": (effect_models.effect_models, effect_models.EFFECT_MODELS, list(effect_models.KEYS)),
        "macro": (macro.macro, macro.MACRO, list(macro.KEYS)),
    }


def _write(
    tables: Mapping[str, pd.DataFrame], whole: Mapping[str, Any], cfg: Mapping[str, Any], out: Path
) -> None:
    """Write all files beside their places and then move them there, so that a failure leaves none of them."""
    from kv_transition.analysis.tables import write_table

    shapes = {name: (schema, keys) for name, (_, schema, keys) in steps().items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".analyze.", dir=out) as folder:
            for name, table in tables.items():
                write_table(table, *shapes[name], cfg, Path(folder) / f"{name}.parquet")
            write_json(Path(folder) / DOCUMENT, whole)
            for file in (*(f"{name}.parquet" for name in tables), DOCUMENT):
                os.replace(Path(folder) / file, out / file)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); name another folder with --out"
        ) from None


def _words(read: ScoreTable, tables: Mapping[str, pd.DataFrame], policy: str, cfg: Mapping[str, Any]) -> str:
    """What was analysed, and the transition of every method over all bins."""
    lines = []
    for dataset, rows in read.rows.groupby("dataset", sort=True):
        counts = (
            _count(len(rows), "row"),
            _count(rows["example_id"].nunique(), "example"),
            _count(rows["bin_idx"].nunique(), "bin"),
        )
        lines.append(f"{dataset}: {', '.join(counts)}; failure policy {policy}")
        curves = tables["transition"].query("dataset == @dataset and bin_idx == -1 and policy == @policy")
        for method, curve in curves.groupby("method", sort=True):
            found = "; ".join(_transition(row, cfg["conf"]) for row in curve.to_dict("records"))
            lines.append(f"  {method}, all bins: {found}")
    return "".join(f"{line}\n" for line in lines)


def _transition(row: Mapping[Any, Any], conf: float) -> str:
    if row["status"] != "ok":
        return f"T at {row['tau']:g}: {row['status']}"
    flags = f" [{row['flags']}]" if row["flags"] else ""
    return f"T at {row['tau']:g} is {row['T_point']} ({100 * conf:g} % limits {row['T_lower']} to {row['T_upper']}){flags}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
