"""Which runs a source of published results holds, in whatever layout, and their rows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kv_transition.budgets import budget_from_label
from kv_transition.data.excerpts import first_few
from kv_transition.data.published import folders, kvpress, scores
from kv_transition.data.published.rows import Cell, Row, Run, json_rows
from kv_transition.errors import UserError
from kv_transition.methods import KNOWN_METHODS

logger = logging.getLogger(__name__)

#: The method here that descends from H2O; as an engine's name h2o is an alias of it, as a source's name it is itself.
OBSERVED = "observed_attention"


def source_files(published: Mapping[str, Any], task: str, cells: Collection[Cell]) -> list[Path]:
    """The files that hold the rows of these cells. Reads no rows.

    Parameters
    ----------
    published : the settings' section `published`.
    cells : (method, budget label) of the cells that are asked for.

    Raises
    ------
    UserError
        When the source is missing, or in a layout of folders lacks a task or a cell.
    """
    if published["layout"] == "scores":
        scores.check_columns(Path(published["path"]))
        return [Path(published["path"])]
    files = _run_files(published, task)
    _check_cells(cells, files, published, task)
    return [file for cell in dict.fromkeys(cells) for file in files[cell]]


def read_runs(published: Mapping[str, Any], task: str, cells: Collection[Cell]) -> dict[Cell, Run]:
    """The runs of a task at these cells; a run that the source holds beside them is only named in the log.

    Raises
    ------
    UserError
        Naming the file, and the line where there is one: what cannot be read, two runs of one cell (for full: two that
        differ), or a cell that the source lacks.
    """
    path = Path(published["path"])
    if published["layout"] == "scores":
        runs = scores.read_runs(path, task, published["methods"])
        _check_cells(cells, runs, published, task)
        there: Collection[Cell] = runs
        asked = {cell: runs[cell] for cell in cells}
    else:
        files = _run_files(published, task)
        _check_cells(cells, files, published, task)
        there, asked = files, {}
        for cell in cells:
            asked[cell] = _the_one(cell, [Run(file, _rows(published, file, task)) for file in files[cell]])
    beside = [" ".join(cell) for cell in sorted(there) if cell not in asked]
    if beside:
        logger.info("%s: not asked for and left out: %s", task, ", ".join(beside))
    return asked


def _run_files(published: Mapping[str, Any], task: str) -> dict[Cell, list[Path]]:
    root, methods = Path(published["path"]), published["methods"]
    if not root.is_dir():
        raise UserError(f"published.path: there is no folder {root}; name the folder that holds the results")
    if published["layout"] == "longbench":
        return folders.longbench_files(root, task, methods, published["runs"])
    if published["layout"] == "kvcache_factory":
        return folders.kvcache_factory_files(root, task, methods)
    return kvpress.files(root, task, methods)


def _rows(published: Mapping[str, Any], file: Path, task: str) -> list[Row]:
    return kvpress.read_rows(file, task) if published["layout"] == "kvpress" else json_rows(file)


def _the_one(cell: Cell, runs: list[Run]) -> Run:
    """The run of a cell. The one without compression may be there several times, if they say the same."""
    first = runs[0]
    for other in runs[1:]:
        same = [row.content_hash for row in first.rows] == [row.content_hash for row in other.rows]
        if cell[0] != "full" or not same:
            what = "answers that differ" if cell[0] == "full" else "answers"
            raise UserError(
                f"{first.file} and {other.file} both hold {what} of {cell[0]} at {cell[1]}; keep one of them, and each model "
                "in a folder of its own"
            )
    return first


def _check_cells(
    cells: Collection[Cell], there: Collection[Cell], published: Mapping[str, Any], task: str
) -> None:
    missing = [cell for cell in cells if cell not in there]
    if not missing:
        return
    budgets: dict[str, list[str]] = {}
    for method, budget in sorted(there, key=lambda cell: (cell[0], budget_from_label(cell[1]) or 0)):
        budgets.setdefault(method, []).append(budget)
    held = "; ".join(f"{method} at {', '.join(values)}" for method, values in budgets.items())
    names = first_few([" ".join(cell) for cell in missing])
    if ("no_context", "full") in missing:
        advice = "set kv.no_context: false where the source has no run without context"
    elif ("full", "full") in missing:
        advice = "say with published.methods which of its methods is full"
    elif other := _taken_for_another([method for method, _ in missing], budgets):
        advice = other
    else:
        advice = (
            "adapt kv.methods, kv.budgets or kv.budgets_by_method, or name its methods with published.methods"
        )
    raise UserError(
        f"{published['path']}: {task} has no results of {names}; it has {held or 'none'}; {advice}"
    )


def _taken_for_another(missing: Collection[str], there: Collection[str]) -> str | None:
    """What to do where one of H2O and observed attention is asked for and the source has the other one only."""
    for asked, held in (("h2o", OBSERVED), (OBSERVED, "h2o")):
        if asked in missing and asked not in there and held in there:
            return (
                f"h2o and {OBSERVED} are two methods in published results ({OBSERVED} is {KNOWN_METHODS[OBSERVED].differs}): set "
                f"kv.methods: [{held}], or published.methods: {{{held}: {asked}}} if that is what ran"
            )
    return None
