"""All figures of a task, from files to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kv_transition.analysis.figures.canvas import FigureContext
from kv_transition.analysis.figures.cells import one_token_share
from kv_transition.analysis.figures.heatmap import plot_heatmap
from kv_transition.analysis.figures.score import plot_score_vs_budget
from kv_transition.analysis.figures.transition import plot_transition_vs_length
from kv_transition.files import read_parquet, write_text

#: Figure -> its title, in the order in which a report shows them.
TITLES = {
    "score_vs_budget": "Score against budget",
    "transition_vs_length": "Transition budget against prompt length",
    "heatmap": "Retention in every cell",
}


def draw_task(
    task: str,
    *,
    tables: Mapping[str, str | Path],
    scores: str | Path,
    folder: str | Path,
    settings: Mapping[str, Any],
) -> None:
    """Draw a task's figures: `<figure>__<task>.svg`, `.png`, `.csv` and the caption in `.txt`, all in `folder`.

    Parameters
    ----------
    tables : paths of bin_stats, retention and transition.
    scores : the task's score file.
    settings : resolved configuration, or the part of it that :meth:`FigureContext.from_settings` reads.
    """
    stats, retention, transition = (
        read_parquet(tables[name]) for name in ("bin_stats", "retention", "transition")
    )
    share = {task: one_token_share(read_parquet(scores), task)}
    about = stats[stats["task"] == task].iloc[0]
    context = FigureContext.from_settings(
        settings, metrics={task: about["metric"]}, protocol=about["protocol"], one_token_share=share
    )
    stems = {name: Path(folder) / f"{name}__{task}" for name in TITLES}
    captions = {
        "score_vs_budget": plot_score_vs_budget(stats, task, stems["score_vs_budget"], context),
        "heatmap": plot_heatmap(stats, task, stems["heatmap"], context, retention),
        "transition_vs_length": plot_transition_vs_length(
            transition, task, stems["transition_vs_length"], context
        ),
    }
    for name, caption in captions.items():
        write_text(f"{stems[name]}.txt", caption + "\n")
