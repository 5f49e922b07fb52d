"""What `kill -9` costs: answers paid for twice, and the time until the rest is there.

    make peers && python benchmarks/crash_cost.py    about four minutes
    python benchmarks/crash_cost.py --quick          this workflow alone, killed once

400 requests to a server that needs 50 ms for each, 8 in flight; every harness is killed with all of its processes at five
points, and started again as its documentation says. The server's log tells what it was asked again although it had
answered. Then the server answers one question with 400, which clients take as final, or with 500 however often it is
asked, until their attempts are used up: what becomes of the other questions. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import punctual_server
from harnesses import (
    CONCURRENCY,
    Command,
    inspect_ai,
    inspect_retry,
    inspect_status,
    kill_when,
    lm_eval,
    ours,
    peer,
    spend,
)
from punctual_server import Server, events
from record import Row, save, spread

REQUESTS = 400
#: Answers that the server had given when everything was killed.
POINTS = (60, 130, 200, 270, 340)
SIZE = 1024
TIME_BAR = 0.5
#: What the server says to one question, and how a row names it.
REFUSED, FAILED = "400", "500 however often it is asked"
#: This script as the process of a server that fails.
FAILING = "--serve-failing"
NOTE = (
    "Whole commands: ours is `snakemake all_scores`, two requests a question (whole cache and a budget that has to be "
    "proved), in two jobs, and ends with scored tables; the peers' tasks ask each question once and score it too. All "
    "options that are not named are the defaults."
)

Start = Callable[[Path, int, str], Command]
Resume = Callable[[Path, Command, str], Command]


@dataclass(frozen=True)
class Harness:
    """A harness as its users call it.

    Attributes
    ----------
    start : the command of a run.
    scored : whether a run has left scores in its folder.
    resume : the command that goes on after it was killed; the first one again where nothing else is said.
    """

    start: Start
    scored: Callable[[Path], bool]
    resume: Resume = lambda folder, first, base_url: first


@dataclass(frozen=True)
class Resumed:
    """What a killed run cost when it was started again.

    Attributes
    ----------
    point : answers after which the run was killed.
    answered : answers that the server had given by then, and just after.
    again : how many of those questions it was asked again.
    wall_s, cpu_s : time of the second command.
    lost : questions without an answer at the end.
    """

    point: int
    answered: int
    again: int
    wall_s: float
    cpu_s: float
    lost: int


def start_ours(folder: Path, requests: int, base_url: str) -> Command:
    """Two requests a question."""
    return ours(folder, requests // 2, SIZE, base_url)


OURS = "ours"
LM_EVAL, CACHED, INSPECT = "lm-eval", "lm-eval --use_cache", "inspect-ai eval-retry"


def start_lm_eval(*options: str) -> Start:
    """lm-eval with some options."""
    return lambda folder, requests, base_url: lm_eval(folder, requests, SIZE, base_url, *options)


def start_inspect(folder: Path, requests: int, base_url: str) -> Command:
    """`inspect eval`."""
    return inspect_ai(folder, requests, SIZE, base_url)


def resume_inspect(folder: Path, first: Command, base_url: str) -> Command:
    """`inspect eval-retry`."""
    return inspect_retry(folder, base_url)


def left(pattern: str) -> Callable[[Path], bool]:
    """Whether there are files of such names."""
    return lambda folder: any(folder.glob(pattern))


HARNESSES = {
    OURS: Harness(start_ours, left("results/bench/scores/*.parquet")),
    LM_EVAL: Harness(start_lm_eval(), left("out/**/results*.json")),
    CACHED: Harness(
        start_lm_eval("--use_cache", "answers", "--cache_requests", "true"), left("out/**/results*.json")
    ),
    INSPECT: Harness(start_inspect, lambda folder: inspect_status(folder) == "success", resume_inspect),
}


@dataclass(frozen=True)
class Refused:
    """What became of a run of which the server refused one question; its text is one phrase."""

    code: int
    answered: int
    scored: bool

    def __str__(self) -> str:
        scores = "scores" if self.scored else "no scores"
        return f"ends with {self.code}, {self.answered} others answered, {scores}"


class FailingServer(Server):
    """Answers one question with 500 where the other server has 400."""

    def __init__(self, *, refuse: str | None = None, log: Path | None = None) -> None:
        super().__init__(refuse=refuse, log=log)
        self.command[1:2] = [__file__, FAILING]


def serve_failing() -> None:
    """In the process of that server: serve until killed."""
    sys.argv.remove(FAILING)
    punctual_server.REFUSAL = punctual_server.REFUSAL.replace(
        b"400 Bad Request", b"500 Internal Server Error"
    )
    punctual_server.main()


SERVERS = {REFUSED: Server, FAILED: FailingServer}


class Run:
    """A run of a harness beside a server of its own, which keeps a log, in a folder that is gone with it."""

    def __init__(
        self, name: str, requests: int, refuse: str | None = None, server: type[Server] = Server
    ) -> None:
        self.harness, self.requests = HARNESSES[name], requests
        self.place = tempfile.TemporaryDirectory(prefix="crash_cost_")
        self.log, self.folder = Path(self.place.name, "log"), Path(self.place.name, "run")
        self.server = server(log=self.log, refuse=refuse)
        self.base_url = self.server.__enter__()
        self.first = self.harness.start(self.folder, requests, self.base_url)

    def end(self) -> None:
        """Stop the server, and remove the files."""
        self.server.__exit__()
        self.place.cleanup()

    def answers(self) -> int:
        """How many the server has given."""
        return self.log.read_bytes().count(b" answered ") if self.log.is_file() else 0

    def kill_at(self, point: int) -> None:
        """Start it, and kill it when the server has given so many answers."""
        kill_when(self.first, lambda: self.answers() >= point)
        # What was on its way arrives, or is found to have nobody who waits for it.
        time.sleep(0.2)

    def resume(self, point: int) -> Resumed:
        """Go on, and say what that took."""
        before = events(self.log)
        spent = spend(self.harness.resume(self.folder, self.first, self.base_url))
        after = events(self.log)[len(before) :]
        answered = {event.question for event in before if event.what == "answered"}
        asked = {event.question for event in after if event.what == "asked"}
        kept = answered | {event.question for event in after if event.what == "answered"}
        again = len(answered & asked)
        return Resumed(point, len(answered), again, spent.wall_s, spent.cpu_s, self.requests - len(kept))

    def whole(self) -> Refused:
        """What becomes of it when nobody kills it."""
        code = spend(self.first, must_end_well=False).code
        answered = {event.question for event in events(self.log) if event.what == "answered"}
        return Refused(code, len(answered), self.harness.scored(self.folder))


def kills(names: Sequence[str], requests: int, point: int) -> dict[str, Resumed]:
    """Kill a run of each harness at the same point; only what comes after is timed, one harness after the other."""
    runs = {name: Run(name, requests) for name in names}
    try:
        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(lambda run: run.kill_at(point), runs.values()))
        return {name: run.resume(point) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.end()


def refusals(names: Sequence[str], requests: int, reply: str) -> dict[str, Refused]:
    """What becomes of a run of each harness when one question has this reply."""
    question = {name: "20b" if name == OURS else "20" for name in names}
    runs = {name: Run(name, requests, question[name], SERVERS[reply]) for name in names}
    try:
        with ThreadPoolExecutor(len(runs)) as pool:
            return dict(zip(runs, pool.map(Run.whole, runs.values()), strict=True))
    finally:
        for run in runs.values():
            run.end()


def rows_of_kills(turns: Mapping[str, Sequence[Resumed]], requests: int) -> list[Row]:
    """What was asked again, and how long the rest took; ours beside each peer at the same points."""
    mine = turns[OURS]
    where = f"kill -9 of {requests} requests, {CONCURRENCY} in flight, at"
    rows = []
    for name, theirs in turns.items():
        if name == OURS and len(turns) > 1:
            continue
        beside = [one for one in mine if one.point in {other.point for other in theirs}]
        ratios = tuple(one.wall_s / other.wall_s for one, other in zip(beside, theirs, strict=True))
        points = ", ".join(str(one.point) for one in theirs)
        bar = f"at most {CONCURRENCY}, what was in flight"
        safe = all(one.again <= CONCURRENCY and not one.lost for one in beside)
        told = ("", "") if name == OURS else (again(theirs), full_name(name))
        rows.append(
            Row(f"{where} {points} answers: answers asked again", again(beside), *told, (), bar, safe)
        )
        if name == OURS:
            rows.append(Row(f"{where} {points} answers: time of the rest", seconds(mine)))
            continue
        reached = statistics.median(ratios) <= TIME_BAR
        work = f"{where} {points} answers: time of the rest, scores included"
        told = seconds(theirs), full_name(name)
        rows.append(Row(work, seconds(beside), *told, ratios, f"at most {TIME_BAR:g} of the peer's", reached))
    return rows


def again(turns: Sequence[Resumed]) -> str:
    """Answers asked again at each point, and of how many."""
    return f"{spread([turn.again for turn in turns])} of {spread([turn.answered for turn in turns])}"


def seconds(turns: Sequence[Resumed]) -> str:
    """Wall and CPU time."""
    cpu = spread([turn.cpu_s for turn in turns], "s of CPU")
    return f"{spread([turn.wall_s for turn in turns], 's')}, {cpu}"


def full_name(name: str) -> str:
    """A peer with its version and what it was called with."""
    package, _, options = name.partition(" ")
    return f"{peer(package)} {options}".rstrip()


def rows_of_refusals(found: Mapping[str, Refused], requests: int, reply: str = REFUSED) -> list[Row]:
    """Told without a ratio: how much a harness that gives up leaves undone depends on when it met the refusal."""
    mine = found[OURS]
    work = f"one of {requests} requests is answered with {reply}"
    wanted = Refused(0, requests - 1, True)
    peers = [(str(theirs), peer(name.split()[0])) for name, theirs in found.items() if name != OURS]
    return [Row(work, str(mine), *told, (), str(wanted), mine == wanted) for told in peers or [("", "")]]


def main() -> int:
    """Measure; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="this workflow alone, killed once")
    given = parser.parse_args()
    requests, points = (80, [40]) if given.quick else (REQUESTS, POINTS)
    names = [OURS] if given.quick else [OURS, CACHED, INSPECT]
    turns: dict[str, list[Resumed]] = {}
    for point in points:
        # Without its cache nothing is kept, so one point says all.
        also = [LM_EVAL] if point == REQUESTS // 2 else []
        for name, resumed in kills([*names, *also], requests, point).items():
            turns.setdefault(name, []).append(resumed)
    rows = rows_of_kills(turns, requests)
    # inspect_ai asks for as long as it is told 500.
    for reply, peers in ((REFUSED, [LM_EVAL, INSPECT]), (FAILED, [LM_EVAL])):
        found = refusals([OURS] if given.quick else [OURS, *peers], 80, reply)
        rows += rows_of_refusals(found, 80, reply)
    save("crash_cost", rows, ("kv-transition", "snakemake", "requests"), NOTE)
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(serve_failing() if FAILING in sys.argv else main())
