"""The figures of an experiment. Each is an SVG, a PNG, a CSV of the plotted numbers and a caption."""

from __future__ import annotations

from kv_transition.analysis.figures.canvas import FigureContext
from kv_transition.analysis.figures.collapse import plot_collapse
from kv_transition.analysis.figures.draw import draw_task
from kv_transition.analysis.figures.failures import plot_failures
from kv_transition.analysis.figures.forest import plot_forest
from kv_transition.analysis.figures.heatmap import plot_heatmap
from kv_transition.analysis.figures.latency import plot_latency
from kv_transition.analysis.figures.pareto import plot_pareto
from kv_transition.analysis.figures.retention import plot_retention_vs_budget
from kv_transition.analysis.figures.score import plot_score_vs_budget
from kv_transition.analysis.figures.transition import plot_transition_vs_length

__all__ = [
    "FigureContext",
    "draw_task",
    "plot_collapse",
    "plot_failures",
    "plot_forest",
    "plot_heatmap",
    "plot_latency",
    "plot_pareto",
    "plot_retention_vs_budget",
    "plot_score_vs_budget",
    "plot_transition_vs_length",
]
