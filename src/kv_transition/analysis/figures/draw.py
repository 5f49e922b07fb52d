"""All figures of a task, from files to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kv_transition.analysis.figures.canvas import FigureContext
from kv_transition.analysis.figures.cells import one_token_share
from kv_transition.analysis.figures.collapse import plot_collapse
from kv_transition.analysis.figures.failures import plot_failures
from kv_transition.analysis.figures.forest import plot_forest
from kv_transition.analysis.figures.heatmap import plot_heatmap
from kv_transition.analysis.figures.latency import plot_latency
from kv_transition.analysis.figures.pareto import plot_pareto
from kv_transition.analysis.figures.retention import plot_retention_vs_budget
from kv_transition.analysis.figures.score import plot_score_vs_budget
from kv_transition.analysis.figures.transition import plot_transition_vs_length
from kv_transition.files import read_parquet, write_text

#: Figure -> its title, in the order in which a report shows them.
TITLES = {
    "score_vs_budget": "Score against budget",
    "transition_vs_length": "Transition budget against prompt length",
    "collapse": "Budget in tokens, and as a share of the prompt",
    "retention_vs_budget": "Retention against budget",
    "heatmap": "Retention in every cell",
    "forest": "Differences to the full cache",
    "pareto": "Score against KV memory",
    "latency": "Time of a request",
    "failures": "Failures",
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
    tables : paths of bin_stats, retention, transition, paired_tests, effect_models and costs.
    scores : the task's score file.
    settings : what `slices.figure_slice` gives, or a resolved configuration.
    """
    names = ("bin_stats", "retention", "transition", "paired_tests", "effect_models", "costs")
    stats, retention, transition, paired, models, costs = (read_parquet(tables[name]) for name in names)
    share = {task: one_token_share(read_parquet(scores), task)}
    about = stats[stats["task"] == task].iloc[0]
    context = FigureContext.from_settings(
        settings, metrics={task: about["metric"]}, protocol=about["protocol"], one_token_share=share
    )
    stems = {name: Path(folder) / f"{name}__{task}" for name in TITLES}
    captions = {
        "score_vs_budget": plot_score_vs_budget(stats, task, stems["score_vs_budget"], context),
        "transition_vs_length": plot_transition_vs_length(
            transition, task, stems["transition_vs_length"], context, models, stats
        ),
        "collapse": plot_collapse(stats, models, task, stems["collapse"], context, retention),
        "retention_vs_budget": plot_retention_vs_budget(
            retention, task, stems["retention_vs_budget"], context, stats, settings["analysis"]["tau"]
        ),
        "heatmap": plot_heatmap(stats, task, stems["heatmap"], context, retention),
        "forest": plot_forest(retention, paired, task, stems["forest"], context),
        "pareto": plot_pareto(stats, costs, task, stems["pareto"], context),
        "latency": plot_latency(
            costs, task, stems["latency"], context, concurrency=settings.get("concurrency")
        ),
        "failures": plot_failures(stats, task, stems["failures"], context),
    }
    for name, caption in captions.items():
        write_text(f"{stems[name]}.txt", caption + "\n")
