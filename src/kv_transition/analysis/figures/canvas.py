"""What every figure shares: house style, deterministic files, budget axes, labels that do not collide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_transition.analysis.figures.palette import INK, MUTED, RULE
from kv_transition.budgets import Budget, budget_from_label
from kv_transition.files import atomic_path, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOUSE: dict[Any, Any] = {
    "svg.hashsalt": "kv-transition",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    # Titles stand where they are put; else every drawing measures all tick labels to see whether they are in the way.
    "axes.titley": 1.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": INK,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
#: How a PNG is packed: zlib's own strategy (0) is smaller here, and faster, than the one that Pillow takes for photographs.
PNG = {"compress_level": 4, "compress_type": 0}
#: Name of a metric -> what figures and reports call it.
METRIC_WORDS = {
    "em": "exact match",
    "f1": "F1",
    "qa_f1": "F1 (LongBench)",
    "qa_f1_zh": "F1 (LongBench, Chinese)",
    "rouge_l": "ROUGE-L",
    "rouge_l_zh": "ROUGE-L (Chinese)",
    "classification": "classification accuracy",
    "count": "count accuracy",
    "retrieval": "retrieval accuracy",
    "retrieval_zh": "retrieval accuracy (Chinese)",
    "code_sim": "edit similarity",
    "choice": "accuracy",
    "published": "published score",
}


@dataclass(frozen=True)
class FigureContext:
    """What a caption has to say that the tables do not.

    Parameters
    ----------
    scope, first_token : `kv.scope` and `kv.first_token` of the run.
    policy : the failure policy whose rows are drawn, "zero" or "exclude".
    tau : the retention whose transition budget is drawn.
    min_active_share : share of prompts longer than the budget below which a cell is no evidence.
    max_failures : share of failed requests above which the tables call a cell unreliable.
    one_token_share : per task, the share of answers whose scored text is one token.
    metrics : per task, the name of the score.
    protocol : name and version of the prompts.
    dpi : of the PNG files.
    """

    scope: str
    first_token: str
    policy: str = "zero"
    tau: float = 0.9
    conf: float = 0.95
    min_active_share: float = 0.5
    max_failures: float = 0.05
    dpi: int = 150
    metrics: Mapping[str, str] = field(default_factory=dict)
    one_token_share: Mapping[str, float] = field(default_factory=dict)
    protocol: str = ""

    @classmethod
    def from_settings(
        cls,
        settings: Mapping[str, Any],
        *,
        metrics: Mapping[str, str] | None = None,
        protocol: str = "",
        one_token_share: Mapping[str, float] | None = None,
    ) -> FigureContext:
        """The context of a resolved configuration; the leading tau and failure policy are drawn.

        Parameters
        ----------
        metrics : per task, the name of its metric as the tables have it.
        """
        return cls(
            scope=settings["kv"]["scope"],
            first_token=settings["kv"]["first_token"],
            policy=settings["analysis"]["policy"],
            tau=settings["analysis"]["tau"][0],
            conf=settings["analysis"]["conf"],
            min_active_share=settings["analysis"].get("min_active_share", 0.5),
            max_failures=settings["analysis"].get("max_infrastructure_failures", 0.05),
            dpi=settings["output"]["figure_dpi"],
            metrics={task: METRIC_WORDS.get(name, name) for task, name in (metrics or {}).items()},
            protocol=protocol,
            one_token_share=one_token_share or {},
        )

    def metric(self, task: str) -> str:
        """The name of the task's score, "score" where it is not known."""
        return self.metrics.get(task) or "score"

    def cannot_show_budget(self, task: str) -> bool:
        """Most answers are one token that was chosen before anything was evicted."""
        return self.first_token == "full" and self.one_token_share.get(task, 0.0) > 0.5


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with the house style, whatever the user's matplotlib configuration says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(HOUSE)
        yield


def save_figure(figure: Figure, numbers: pd.DataFrame, out_stem: str | Path, dpi: int) -> None:
    """Write `<stem>.svg`, `<stem>.png` and `<stem>.csv`. Call inside :func:`house_style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    _place_no_empty_labels(figure)
    stem = str(out_stem)
    with atomic_path(f"{stem}.svg") as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    with atomic_path(f"{stem}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs=PNG)
    write_text(f"{stem}.csv", numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def _place_no_empty_labels(figure: Figure) -> None:
    """Keep matplotlib from measuring all tick labels of an axis, in every drawing, for the place of a label without words."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)


def sorted_budgets(labels: Sequence[str]) -> list[Budget]:
    """The compressed budgets among some labels, smallest first."""
    return sorted({budget for label in labels if (budget := budget_from_label(label)) is not None})


def budget_tick(budget: Budget) -> str:
    """A budget on an axis: tokens as they are, a share as a percentage."""
    return f"{100 * budget:g}%" if isinstance(budget, float) else str(budget)


def budget_axis_title(budgets: Sequence[Budget]) -> str:
    """What the budgets count."""
    shares = any(isinstance(budget, float) for budget in budgets)
    return "KV budget (share of the prompt kept)" if shares else "KV budget (tokens kept)"


def legible(
    values: Sequence[float], texts: Sequence[str], inches: float, low: float, high: float
) -> list[int]:
    """Which of some ascending tick values can be labelled without touching; the last one always is.

    Parameters
    ----------
    inches : the length of the axis, which shows `low` to `high` in the units of the values.
    """
    chosen: list[int] = []
    edge = float("inf")
    for index in reversed(range(len(values))):
        centre = (values[index] - low) / (high - low) * inches
        half = text_width(texts[index], 8.0) / 2
        if centre + half <= edge:
            chosen.append(index)
            edge = centre - half - 0.06
    return chosen[::-1]


def bytes_words(size: float) -> str:
    """A number of bytes: "96 KiB", "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def text_width(text: str, size: float = 7.5) -> float:
    """About how many inches a text is wide (DejaVu Sans, measured over method names and numbers)."""
    return len(text) * size * 0.0088


def set_ticks(axis: Any, positions: Sequence[float], texts: Sequence[str]) -> None:
    """Ticks of a matplotlib axis exactly where given, none between."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(positions), labels=list(texts))
    axis.set_minor_locator(NullLocator())


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart so that neighbours are `gap` away, each as near to its place as that allows.

    Parameters
    ----------
    positions : where the labels would like to be, in any order.
    low, high : the room. With too many labels for the room the gap shrinks.
    """
    count = len(positions)
    if not count:
        return []
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))
    order = sorted(range(count), key=lambda index: (positions[index], index))
    # Blocks of touching labels, each centred on the mean of its members' wishes (pool adjacent violators).
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        blocks.append((min(max(positions[index], low), high) - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (last, size), (before, weight) = blocks.pop(), blocks.pop()
            blocks.append(((last * size + before * weight) / (size + weight), size + weight))
    anchors = [anchor for anchor, size in blocks for _ in range(size)]
    placed = [0.0] * count
    for rank, index in enumerate(order):
        anchor = min(max(anchors[rank], low), high - (count - 1) * gap)
        placed[index] = anchor + rank * gap
    return placed


def panel_grid(
    count: int,
    width: float,
    height: float,
    columns: int,
    *,
    left: float = 0.62,
    first_left: float | None = None,
    right: float = 0.15,
    bottom: float = 0.55,
    title: float = 0.3,
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels with fixed margins in inches, so that no text is cut off whatever the number.

    Parameters
    ----------
    width, height : of one panel's axes, in inches.
    left, right, bottom : inches kept free beside and below every panel, for its labels.
    first_left : the same for the left of the first column, where the row labels stand.
    title : inches kept free above every panel.
    """
    from matplotlib.figure import Figure

    first = left if first_left is None else first_left
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    head = 0.08
    step_x, step_y = left + width + right, title + height + bottom
    total_width, total_height = first - left + columns * step_x, rows * step_y + head
    figure = Figure(figsize=(total_width, total_height))
    axes = []
    for index in range(count):
        row, column = divmod(index, columns)
        x = first + column * step_x
        y = total_height - head - row * step_y - title - height
        box = (x / total_width, y / total_height, width / total_width, height / total_height)
        axes.append(figure.add_axes(box))
    return figure, axes


def title_lines(axes: Axes, title: str, second: str, *, lift: float = 3.0) -> None:
    """A panel's title with a small second line below it; needs 0.36 inches above the panel.

    Parameters
    ----------
    lift : points between the panel and the second line.
    """
    axes.set_title(title, pad=lift + 11.0)
    axes.annotate(
        second, (0, 1), xytext=(0, lift), xycoords="axes fraction", textcoords="offset points", fontsize=7.5,
        color=MUTED, va="bottom", annotation_clip=False,
    )  # fmt: skip


@dataclass(frozen=True)
class LineEnd:
    """Where a line ends, in data units, and the name that stands beside it."""

    x: float
    y: float
    name: str
    colour: str
    marker: str | None = None


def _together(heights: list[float], gap: float) -> list[float]:
    """Heights less than the gap below the highest of them count as one: their mean."""
    out = list(heights)
    group: list[int] = []
    for index in sorted(range(len(heights)), key=lambda index: -heights[index]):
        if group and heights[group[0]] - heights[index] >= gap:
            group = []
        group.append(index)
        for member in group:
            out[member] = sum(heights[one] for one in group) / len(group)
    return out


def name_line_ends(axes: Axes, ends: Sequence[LineEnd], width: float, height: float) -> None:
    """Names to the right of a panel, each led to the end of its line.

    Of lines that end at about the same height the first one's name is the lowest.

    Parameters
    ----------
    width, height : of the panel's axes, in inches.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    inch, high = (right - left) / width, (top - bottom) / height
    gap = 0.135 * high
    wishes = _together([end.y for end in ends], gap / 2)
    placed = spread(wishes, gap, bottom + 0.04 * high, top - 0.04 * high)
    for end, y in zip(ends, placed, strict=True):
        axes.plot(
            [end.x, right, right + 0.10 * inch], [end.y, end.y, y], color=end.colour, linewidth=0.6, alpha=0.55,
            clip_on=False, zorder=1.5,
        )  # fmt: skip
        if end.marker:
            axes.plot(
                [right + 0.17 * inch], [y], end.marker, color=end.colour, markersize=3.8, clip_on=False, zorder=3
            )  # fmt: skip
        start = right + (0.25 if end.marker else 0.13) * inch
        axes.text(start, y, end.name, fontsize=7.5, va="center_baseline", color=INK)


def draw_points(
    axes: Axes, points: Sequence[tuple[float, float, bool]], marker: str, colour: str, size: float
) -> None:
    """Markers of one look that the frame does not cut, as few artists as can be.

    Parameters
    ----------
    points : x, y, and whether the marker is white inside.
    """
    for face, wanted in ((colour, False), ("white", True)):
        x, y = ([point[axis] for point in points if point[2] == wanted] for axis in (0, 1))
        if x:
            axes.plot(
                x, y, marker, color=colour, markerfacecolor=face, markersize=size, markeredgewidth=1.0, clip_on=False,
                zorder=3,
            )  # fmt: skip


def quiet_grid(axes: Axes) -> None:
    """Light horizontal lines behind the data."""
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def finite(value: Any) -> bool:
    """True for a number that can be drawn; false for None, nan, infinities and pandas' missing values."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
