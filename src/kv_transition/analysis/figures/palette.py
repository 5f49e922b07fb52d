"""The one palette: colours that survive colour blindness, and the looks of a method in every figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kv_transition.budgets import UNCOMPRESSED

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

INK = "#222222"
MUTED = "#6E6E6E"
RULE = "#D9D9D9"
BAND = "#EDEDED"

#: Okabe-Ito without yellow and pink: the largest smallest distance under every kind of colour blindness.
CATEGORICAL = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#000000")
#: Seven shapes against six colours: 42 methods look different before a pair repeats.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

#: Methods that keep their colour from one experiment to the next, in the order of the colours.
SETTLED = (
    *("snapkv", "streaming_llm", "observed_attention", "tova", "knorm", "random"),
    *("recent", "middle", "bm25"),
)


@dataclass(frozen=True)
class Style:
    """How a method is drawn. Two colours have low contrast on white, so shape and a dark label carry the name."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


def _style(slot: int) -> Style:
    colours = len(CATEGORICAL)
    return Style(
        colour=CATEGORICAL[slot % colours],
        marker=MARKERS[slot % len(MARKERS)],
        dash=DASHES[(slot // colours) % len(DASHES)],
    )


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """One style per compressed method; the same set of methods always gets the same styles."""
    names = sorted(set(methods) - set(UNCOMPRESSED))
    slots = {name: SETTLED.index(name) for name in names if name in SETTLED}
    free = (slot for slot in range(len(names) + len(SETTLED)) if slot not in set(slots.values()))
    for name in names:
        if name not in slots:
            slots[name] = next(free)
    return {name: _style(slots[name]) for name in in_order(names)}


def in_order(methods: Iterable[str]) -> list[str]:
    """Settled methods first, the others by name: the order of panels and labels."""
    return sorted(
        set(methods), key=lambda name: (SETTLED.index(name) if name in SETTLED else len(SETTLED), name)
    )


def score_colours() -> Colormap:
    """Light to dark, for scores from 0 to 1 (cividis without its yellow end, reversed)."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    source = matplotlib.colormaps["cividis"]
    return ListedColormap([source(0.85 - 0.85 * step / 255) for step in range(256)], name="score")


def retention_colours() -> Colormap:
    """Diverging, white in the middle: orange lost something, purple gained."""
    import matplotlib

    return matplotlib.colormaps["PuOr"]
