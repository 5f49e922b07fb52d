"""One thread that answers, and a bounded number of places for those who wait for it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kv_transition.serve.api_errors import ApiError, shutting_down

logger = logging.getLogger(__name__)

#: Share of a new measurement in the running mean of seconds per job.
NEWEST = 0.2
#: Bounds of what a client that found no place is told to wait, in seconds.
SHORTEST_WAIT, LONGEST_WAIT = 1, 60


class Job:
    """One request on its way through the worker. The event loop reads its events, the worker's thread emits them.

    Parameters
    ----------
    place : what the worker takes back when the job is over.
    work : computes the answer in the worker's thread: it emits events, raises ApiError for a request that gets none,
        and returns soon after `cancelled` is true.

    Attributes
    ----------
    accepted, started : seconds of `time.perf_counter`; `started` is None while the job waits.
    """

    def __init__(self, place: Place, work: Callable[[Job], None]) -> None:
        self.place, self.work = place, work
        self.accepted = time.perf_counter()
        self.started: float | None = None
        self.cancelled = False
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @property
    def waited_s(self) -> float:
        """Seconds between acceptance and start."""
        return (self.started or time.perf_counter()) - self.accepted

    def emit(self, event: object) -> None:
        """Hand an event to the event loop, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody is left who could read it
            self.cancelled = True

    def end(self) -> None:
        """Give the place back, after the last event."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.place.release)

    async def next_event(self) -> Any:
        """The next event, in the order in which they were emitted."""
        return await self._events.get()


class Place:
    """The right to be in the server, from before a body is read until its job is over."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker

    def release(self) -> None:
        """Give the place back; more than once does nothing."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.places_taken -= 1


class Worker:
    """Runs jobs one after the other in a thread of its own: an engine answers one request at a time.

    Parameters
    ----------
    queue : jobs that may wait beside the one that runs. A place is taken before a request's body is read, so that
        the bodies held in memory are bounded too.

    Notes
    -----
    All methods are called from the event loop's thread; `places_taken` changes only there.
    """

    def __init__(self, queue: int) -> None:
        self.places = queue + 1
        self.places_taken = 0
        self._mean_s = 0.0
        self._closed = False
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="answers", daemon=True).start()

    def take_place(self) -> Place:
        """A place for a request that has just arrived.

        Raises
        ------
        ApiError
            429 with Retry-After when none is free, 503 when the server ends.
        """
        if self._closed:
            raise shutting_down()
        if self.places_taken >= self.places:
            wait = math.ceil(self._mean_s * self.places)
            seconds = str(min(max(wait, SHORTEST_WAIT), LONGEST_WAIT))
            problem = f"all {self.places} places are taken; ask again after {seconds} s"
            raise ApiError(429, problem, code="queue_full", headers={"Retry-After": seconds})
        self.places_taken += 1
        return Place(self)

    def submit(self, place: Place, work: Callable[[Job], None]) -> Job:
        """Queue a job; from here on the worker takes care of its place."""
        job = Job(place, work)
        with self._changed:
            if self._closed:
                raise shutting_down()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job, refusal: ApiError | None = None) -> None:
        """End a job: at once if it waits, with its next token if it runs; one that is over stays as it is.

        Parameters
        ----------
        refusal : what its client is told at once; None where there is no client any more.
        """
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.place.release()
        if refusal is not None:
            job.emit(refusal)

    def close(self) -> None:
        """Cancel everything; later jobs are refused."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
        for job in jobs:
            self.cancel(job, shutting_down())

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                job = self._running = self._waiting.popleft()
            self._answer(job)
            with self._changed:
                self._running = None
            # The thread's last reference to a prompt must not outlive its answer.
            del job

    def _answer(self, job: Job) -> None:
        job.started = time.perf_counter()
        try:
            if not job.cancelled:
                job.work(job)
        except ApiError as refusal:
            job.emit(refusal)
        except Exception as error:
            # Its message could hold parts of the prompt.
            logger.error("internal error: %s", type(error).__name__)
            job.emit(ApiError(500, "internal error", code="internal_error"))
        finally:
            seconds = time.perf_counter() - job.started
            self._mean_s += NEWEST * (seconds - self._mean_s)
            job.end()
