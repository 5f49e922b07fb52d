"""Long values and long lists as messages show them."""

from __future__ import annotations

import json
from collections.abc import Sequence

_SHOWN = 40


def shown(value: object) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    # Half of a surrogate pair, which JSON may hold, cannot be written anywhere; it is shown as its escape.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def first_few(items: Sequence[str], count: int = 3) -> str:
    """The first of several items, and how many more there are."""
    more = len(items) - count
    return ", ".join(items[:count]) + (f" and {more} more" if more > 0 else "")
