"""When a request is asked again: exponential backoff with full jitter, and what a server asks for itself."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import tenacity

from kv_transition.engines.http_transport import Fault

T = TypeVar("T")


class RetryPolicy:
    """Asks until there is an answer, an error that stays, or no attempt or time left.

    Parameters
    ----------
    max_attempts : requests in all.
    backoff_s, backoff_max_s : the k-th wait is drawn between 0 and min(backoff_max_s, backoff_s * 2**(k - 1)) seconds;
        a server's Retry-After is kept instead, however long, plus a draw between 0 and backoff_s, so that not all
        waiting requests come back at once.
    total_timeout_s : seconds for all attempts and waits together; a wait that would end beyond them is not begun.
    """

    def __init__(
        self, max_attempts: int, backoff_s: float, backoff_max_s: float, total_timeout_s: float
    ) -> None:
        self.total_timeout_s = total_timeout_s
        self._max_attempts, self._backoff_s = max_attempts, backoff_s
        self._jitter = tenacity.wait_random_exponential(multiplier=backoff_s, max=backoff_max_s)
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(max_attempts), tenacity.stop_before_delay(total_timeout_s)
            ),
            wait=self._wait,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Fault) and error.transient),
            reraise=True,
        )

    def _wait(self, state: tenacity.RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.retry_after_s if isinstance(fault, Fault) else None
        if asked is None:
            return self._jitter(state)
        return asked + random.uniform(0, self._backoff_s)

    def call(self, attempt: Callable[[float], T], faults: list[Fault]) -> T:
        """The result of the first attempt that has one.

        Parameters
        ----------
        attempt : called with the deadline of them all, in seconds of time.monotonic(); raises Fault.
        faults : takes the fault of every attempt that failed.

        Raises
        ------
        Fault
            That of the last attempt; it says so where the server asked for a longer wait than there was time for.
        """
        deadline = time.monotonic() + self.total_timeout_s

        def once() -> T:
            try:
                return attempt(deadline)
            except Fault as fault:
                faults.append(fault)
                raise

        try:
            return self._retrying(once)
        except Fault as fault:
            asked = fault.retry_after_s
            if not fault.transient or asked is None or len(faults) >= self._max_attempts:
                raise
            left = max(deadline - time.monotonic(), 0.0)
            words = f"{fault}; it asks to wait {asked:g} s, and http.total_timeout_s leaves {left:.3g} s"
            raise Fault(words, fault.kind, status=fault.status, retry_after_s=asked) from None


def notes_of(faults: Sequence[Fault]) -> list[str]:
    """Short texts on what went wrong: "429 x2", "timeout"."""
    counts = Counter(fault.label for fault in faults)
    return [label if count == 1 else f"{label} x{count}" for label, count in counts.items()]
