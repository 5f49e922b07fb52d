"""Many requests in flight, their answers in the journal: whatever was answered is kept, whatever ends the run.

Each of `concurrency` threads draws a task, asks it, and draws the next one only when the row is on the disk, so at no
moment are more requests sent but not safe. Threads whose rows are ready at the same time share one append: whoever comes
first writes for all.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, TypeVar

from kv_transition.engines.base import EngineResult
from kv_transition.errors import UserError
from kv_transition.run.journal import Journal

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = Mapping[str, Any]

PROGRESS_EVERY_S = 10.0

#: How long a thread computes while another one waits, in seconds; Python's own 5 ms would hold up the one that writes.
SWITCH_INTERVAL_S = 0.001

#: How often the caller is told of new rows, and signals are looked at.
LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Progress:
    """How far a run is; its text is one line.

    Attributes
    ----------
    done, failed : answers in the journal, and how many of them are failures.
    total : requests in all; None where nobody knows.
    """

    done: int
    failed: int
    total: int | None
    elapsed_s: float

    @property
    def per_s(self) -> float:
        """Answers a second since the beginning."""
        return self.done / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at this rate."""
        return (self.total - self.done) / self.per_s if self.total is not None and self.done else None

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        left = "" if self.left_s is None else f", about {self.left_s:.0f} s left"
        return f"{self.done}{of} requests, {self.failed} failed, {self.per_s:.1f} a second{left}"


class _Place:
    """A row that waits to be written, and how its thread is woken."""

    __slots__ = ("row", "turn", "writes")

    def __init__(self, row: Row) -> None:
        self.row, self.writes, self.turn = row, False, threading.Lock()
        self.turn.acquire()


class _Crew(Generic[T]):
    """The threads of one run, and what they have done.

    Attributes
    ----------
    waiting : rows that the next append writes, with their threads.
    unsaved : rows that could not be written; nothing more is appended once there are any.
    safe : rows on the disk that nobody has been told of.
    problem : the first error; nothing is drawn any more once there is one.
    """

    def __init__(
        self,
        tasks: Iterable[T],
        ask: Callable[[T], EngineResult],
        record: Callable[[T, EngineResult], Row],
        journal: Journal,
        concurrency: int,
    ) -> None:
        self.source, self.ask, self.record, self.journal = iter(tasks), ask, record, journal
        self.waiting: list[_Place] = []
        self.unsaved: list[Row] = []
        self.safe: deque[Row] = deque()
        self.problem: BaseException | None = None
        self.stopping = False
        self.ended = threading.Event()
        self.room = threading.Event()
        self.room.set()
        self._drawing, self._counting = threading.Lock(), threading.Lock()
        self._writing = False
        self.working = concurrency
        for number in range(concurrency):
            threading.Thread(target=self._work, name=f"request-{number}", daemon=True).start()

    def _work(self) -> None:
        try:
            while True:
                self.room.wait()
                with self._drawing:
                    if self.stopping:
                        return
                    task = next(self.source)
                self._keep(self.record(task, self.ask(task)))
        except StopIteration:
            return
        except BaseException as error:
            self.fail(error)
        finally:
            with self._counting:
                self.working -= 1
                if not self.working:
                    self.ended.set()

    def fail(self, error: BaseException) -> None:
        """Draw nothing more because of an error."""
        self.problem = self.problem or error
        self.stopping = True

    def _keep(self, row: Row) -> None:
        """Return when the row is on the disk, or the journal cannot be written."""
        place = _Place(row)
        with self._counting:
            self.waiting.append(place)
            place.writes = not self._writing
            self._writing = True
        if not place.writes:
            place.turn.acquire()
        if place.writes:
            self._write()

    def _write(self) -> None:
        """Write for all that wait, wake them, and let the first of those who came meanwhile write next."""
        with self._counting:
            places, self.waiting = self.waiting, []
        rows = [place.row for place in places]
        try:
            if not self.unsaved:
                self.journal.append(rows)
        except BaseException as error:
            self.fail(error)
            self.unsaved += rows
        else:
            (self.unsaved if self.unsaved else self.safe).extend(rows)
        for place in places:
            if not place.writes:
                place.turn.release()
        with self._counting:
            self._writing = bool(self.waiting)
            if self._writing:
                self.waiting[0].writes = True
                self.waiting[0].turn.release()

    def taken(self) -> list[Row]:
        """The rows that have become safe since the last call."""
        return [self.safe.popleft() for _ in range(len(self.safe))]

    def land(self, grace_s: float, hurried: Callable[[], bool]) -> None:
        """Wait for the requests in flight, and try once more to write what could not be written, each row on its own.

        Parameters
        ----------
        hurried : whether the waiting is to end.

        Raises
        ------
        UserError
            When rows still cannot be written.
        """
        self.stopping = True
        self.room.set()
        end = time.monotonic() + grace_s
        while not self.ended.wait(LOOK_EVERY_S):
            if hurried() or time.monotonic() > end:
                log.warning("%d requests had no answer yet; they are asked again next time", self.working)
                break
        lost = [row for row in self.unsaved if not self._saved(row)]
        if lost:
            raise UserError(f"{len(lost)} answers that had come could not be written to the journal")

    def _saved(self, row: Row) -> bool:
        try:
            self.journal.append([row])
        except UserError:
            return False
        return True


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills with the numbers of SIGINT and SIGTERM, so that nothing is broken off in the middle of a write."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def answer_concurrently(
    tasks: Iterable[T],
    ask: Callable[[T], EngineResult],
    record: Callable[[T, EngineResult], Row],
    journal: Journal,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    total: int | None = None,
    grace_s: float = 120.0,
) -> Iterator[Row]:
    """Ask all tasks, at most `concurrency` at a time, and yield each journal row once it is on the disk.

    Parameters
    ----------
    tasks : drawn one at a time, as threads get free, in those threads.
    ask : answers a task, in one of `concurrency` threads; a failed request is a result, an exception ends the run.
    record : makes the journal row of an answer, in the same thread.
    on_progress : called every ten seconds and at the end.
    total : number of tasks, for the time left.
    grace_s : how long requests in flight are waited for when the run ends early. SIGINT and SIGTERM end it so when this
        runs in the main thread; a second one ends the waiting, too.

    Raises
    ------
    UserError
        When the journal cannot be written: nothing more is sent, what is in flight is awaited, and its rows are tried
        once more.
    KeyboardInterrupt, SystemExit
        After SIGINT, SIGTERM.
    """
    started = reported = time.monotonic()
    done = failed = 0
    with _quick_switches(), _signals() as signals:
        crew = _Crew(tasks, ask, record, journal, concurrency)
        try:
            ended = False
            while not ended and not signals and crew.problem is None:
                ended = crew.ended.wait(LOOK_EVERY_S)
                rows = crew.taken()
                done += len(rows)
                failed += sum(row["result"]["failure"] is not None for row in rows)
                now = time.monotonic()
                if on_progress and (now - reported > PROGRESS_EVERY_S or ended):
                    reported = now
                    on_progress(Progress(done, failed, total, now - started))
                yield from rows
        finally:
            if signals:
                log.warning("ending: waiting for %d requests in flight (again to end at once)", crew.working)
            asked_to_end = len(signals)
            try:
                crew.land(grace_s, lambda: len(signals) > asked_to_end)
            except UserError as lost:
                raise UserError(f"{crew.problem}; {lost}" if crew.problem else str(lost)) from None
        if crew.problem is not None:
            raise crew.problem
        if signals:
            raise KeyboardInterrupt if signals[0] == signal.SIGINT else SystemExit(128 + signals[0])
