"""A few questions before thousands: what would fail or mean nothing for all of them is said first, in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import BaseEngine, Cell, Decoding, EngineResult
from kv_transition.engines.openai_compat import OpenAICompatEngine
from kv_transition.errors import UserError
from kv_transition.eval.failure_taxonomy import without_thinking

log = logging.getLogger(__name__)

#: Examples that are asked, each at two cells.
EXAMPLES = 3


@dataclass(frozen=True)
class ProbeAnswer:
    """A good answer of the probe, fit for the journal like any other."""

    example_id: str
    cell: Cell
    result: EngineResult


def probe(
    engine: BaseEngine,
    prompts: Sequence[tuple[str, Prompt]],
    cells: Sequence[Cell],
    decoding: Decoding,
    *,
    ends_expected: bool = True,
    keep: Callable[[ProbeAnswer], None] = lambda answer: None,
    earlier: Sequence[tuple[str, str | None]] = (),
) -> list[ProbeAnswer]:
    """Ask up to three examples at the first cell with a budget and at the first without one.

    Parameters
    ----------
    prompts : (example_id, prompt) of those that the run is going to ask.
    cells : the run's cells.
    ends_expected : whether answers should end by themselves within `decoding.max_new_tokens`; False where a protocol
        gives the length, or only the first line counts.
    keep : called with each good answer as soon as it is there, so that no error below loses it.
    earlier : (text, finish_reason) of good answers that the journal already has; they are judged with those of the
        probe where it got fewer than three.

    Returns
    -------
    The good answers, in the order in which they were asked.

    Raises
    ------
    UserError
        When the server cannot be reached, refuses the key, does not know the model or ignores the budget, when every
        request fails, or, where answers should end, when every answer is cut off or nothing but a thought.
    """
    first = [next((cell for cell in cells if (cell.budget is None) is bare), None) for bare in (True, False)]
    answers = []
    for example_id, prompt in prompts[:EXAMPLES]:
        for cell in first:
            if cell is not None:
                result = engine.generate(prompt, cell, decoding, example_id)
                answers.append(ProbeAnswer(example_id, cell, result))
                if result.failure is None:
                    keep(answers[-1])
                else:
                    _check_server(engine, cell, result)
    good = [answer for answer in answers if answer.result.failure is None]
    if answers and not good:
        raise _all_failed(engine, [answer.result for answer in answers])
    judged = [(answer.result.text, answer.result.finish_reason) for answer in good]
    if len(good) < EXAMPLES:
        judged += earlier
    if judged:
        _check_answers(judged, decoding, ends_expected)
    return good


def _address(engine: BaseEngine) -> str:
    return f"http.base_url: {getattr(engine, 'base_url', 'the server')}"


def _all_failed(engine: BaseEngine, results: Sequence[EngineResult]) -> UserError:
    error = results[0].error
    if all(result.raw.get("fault") == "timeout" for result in results):
        return UserError(f"{_address(engine)} does not answer in time: {error}; see http.read_timeout_s")
    return UserError(f"every request before the run failed; the first: {error}")


def _check_server(engine: BaseEngine, cell: Cell, result: EngineResult) -> None:
    """What one failed request says about all of them."""
    where = _address(engine)
    fault, status = result.raw.get("fault"), result.raw.get("status")
    if fault == "unreachable":
        raise UserError(f"{where} cannot be reached: {result.error}; start the server, or mend the address")
    if status in (401, 403):
        raise UserError(f"{where} refuses the key that http.api_key_env names: {result.error}")
    if status == 404:
        raise UserError(_unknown_model(engine, where, str(result.error)))
    if fault == "budget":
        raise UserError(
            f"{where}, {cell.method} at {cell.label}: {result.error}. Scores would be those of another cache. Check "
            "http.budget_transport; http.require_verified_budget: false runs without proof"
        )


def _unknown_model(engine: BaseEngine, where: str, error: str) -> str:
    listed: Callable[[], list[str]] = engine.models if isinstance(engine, OpenAICompatEngine) else list
    names, model = listed(), getattr(engine, "model", "")
    if names and model not in names:
        return f"http.model: {model!r} is unknown to the server, which lists {', '.join(names[:10])}"
    return f"{where} does not know the model {model!r}, or has nothing at this address: {error}"


def _check_answers(
    answers: Sequence[tuple[str, str | None]], decoding: Decoding, ends_expected: bool
) -> None:
    """What all good answers (text, finish_reason) have in common and no answer should have."""
    longest = decoding.max_new_tokens
    raise_it = f"raise decoding.max_new_tokens (now {longest}) or decoding.max_new_tokens_by_task"
    if all(without_thinking(text)[1] for text, _ in answers):
        words = "every answer before the run is an unclosed <think>"
        remedy = (
            "the model thinks for all of its tokens. Turn thinking off, e.g. http.extra_body: "
            f"{{chat_template_kwargs: {{enable_thinking: false}}}}, or {raise_it}"
        )
    elif all(reason == "length" for _, reason in answers):
        words = f"every answer before the run is cut off at {longest} tokens"
        remedy = (
            f"so scores would measure the cut. {raise_it[0].upper()}{raise_it[1:]}, set decoding.stop, or use a model that "
            "is tuned to answer"
        )
    else:
        return
    if ends_expected:
        raise UserError(f"{words}: {remedy}")
    log.warning("%s", words)
