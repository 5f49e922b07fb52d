"""KV budgets: an integer counts tokens, a number between 0 and 1 is the share of the prompt that is kept."""

from __future__ import annotations

import math

from kv_transition.errors import ConfigError

Budget = int | float

#: Methods without a budget: the whole cache, and the whole cache over a prompt with an empty context.
UNCOMPRESSED = ("full", "no_context")


def parse_budget(value: object) -> Budget:
    """Read a budget as written in a config, on a command line or in a folder name.

    Parameters
    ----------
    value : int >= 2 (tokens), float in (0, 1) (share kept), or the text of either ("256", "0.25", "f0.25").

    Raises
    ------
    ConfigError
        When the value is none of these.
    """
    problem = ConfigError(
        f"kv.budgets: {value!r} is no budget; give whole tokens from 2 up (256) or a share kept between 0 and 1 (0.25)"
    )
    if isinstance(value, bool):
        raise problem
    try:
        number = float(value.removeprefix("f") if isinstance(value, str) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise problem from None
    if 0 < number < 1:
        return number
    if number >= 2 and number.is_integer():
        return int(number)
    raise problem


def budget_label(budget: Budget | None) -> str:
    """The budget as it stands in folder names, tables and figures: "256", "f0.25", or "full" for None."""
    if budget is None:
        return "full"
    return f"f{budget!r}" if isinstance(budget, float) else str(budget)


def budget_from_label(label: str) -> Budget | None:
    """The inverse of :func:`budget_label`."""
    return None if label == "full" else parse_budget(label)


def kept_tokens(budget: Budget, press_len: int) -> int:
    """Prompt positions a budget keeps, of the `press_len` positions that the eviction sees."""
    if isinstance(budget, float):
        return max(1, math.floor(budget * press_len + 1e-9))
    return budget
