"""What the HTTP client costs beside a server that needs 50 ms for each answer, and beside other clients.

    make peers && python benchmarks/client_cost.py    about four minutes
    python benchmarks/client_cost.py --quick          one short turn without lm-eval and inspect_ai, no verdict

Throughput is given as share of concurrency / latency, the most that any client can reach. Every answer of ours goes
through the engine, its budget is checked, and its row is in the journal before its place is used again. The server is a
process of its own, and as cheap as it can be; what is asked runs in a process of its own, too. CPU seconds are those of
the asking, of whole runs those of two of different length: their difference is the cost per request, and what is left
of the shorter one the fixed cost. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growth_points import rss_mb
from harnesses import CONCURRENCY, DRIVERS, PEERS, Command, inspect_ai, lm_eval, ours, peer, spend
from punctual_server import BUDGET, LATENCY_S, Server, events
from record import Row, save, spread, without_bar

from kv_transition.data.prompts import Prompt
from kv_transition.engines.base import Cell, Decoding, EngineResult
from kv_transition.engines.openai_compat import OpenAICompatEngine
from kv_transition.files import sha256_text
from kv_transition.run.concurrent import answer_concurrently
from kv_transition.run.journal import Journal

PROMPT_BYTES = 32 * 1024
IN_FLIGHT = (CONCURRENCY, 32)

SHARE_BAR = 0.90
CPU_BAR_MS = 2.0
#: Of ours: the whole cache and one method are the least that the workflow accepts. The peers ask each question once.
REQUESTS_A_QUESTION = 2
#: What the journal's keys and the allocator may add between 1,000 items and 20,000.
GROWTH_BAR_MB = 8

STREAMED, WHOLE = "answers streamed", "answers in one piece"
CLIENTS = ("requests", "aiohttp", "openai")

ENGINE: dict[str, Any] = {
    "model": "served",
    "mode": "auto",
    "connect_timeout_s": 5,
    "read_timeout_s": 30,
    "total_timeout_s": 60,
    "max_attempts": 3,
    "backoff_s": 0.5,
    "backoff_max_s": 5,
    "headers": {},
    "extra_body": {},
    "budget_transport": {"kind": "extra_body", "fields": "kv_transition"},
    "require_verified_budget": True,
}


@dataclass(frozen=True)
class Asking:
    """What it cost to ask `items` prompts.

    Attributes
    ----------
    wall_s, cpu_s : time from the first to the last.
    peak_mb : most memory of the process since it began; 0 where nobody looked.
    """

    items: int
    wall_s: float
    cpu_s: float
    peak_mb: float = 0.0

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per item."""
        return self.cpu_s / self.items * 1e3

    def share(self, concurrency: int) -> float:
        """Throughput as share of concurrency / latency."""
        return self.items * LATENCY_S / concurrency / self.wall_s


@dataclass(frozen=True)
class Whole:
    """What a whole evaluation run costs: seconds of CPU whatever it asks, and milliseconds more for each request.

    Attributes
    ----------
    share : throughput from the first request to the last answer, as share of concurrency / latency.
    """

    fixed_s: float
    cpu_ms: float
    share: float


def prompts(items: int, size: int) -> Iterator[tuple[str, Prompt]]:
    """Distinct prompts of `size` bytes, made one at a time."""
    filler = "the quick brown fox jumps over the lazy dog " * (size // 44 + 1)
    for number in range(items):
        text = f"{filler[: size - 30]} question {number}"
        system = {"role": "system", "content": "Answer."}
        yield f"ex{number}", Prompt((system, {"role": "user", "content": text}), len(text) - 20)


def ask(base_url: str, streamed: bool, concurrency: int, items: int, size: int) -> Asking:
    """Answer `items` prompts in this process, and say what it cost."""
    section = {**ENGINE, "base_url": base_url, "stream": streamed, "concurrency": concurrency}
    engine = OpenAICompatEngine(section)
    cell, decoding = Cell("snapkv", BUDGET), Decoding(64)

    def generate(task: tuple[str, Prompt]) -> EngineResult:
        return engine.generate(task[1], cell, decoding, task[0])

    def record(task: tuple[str, Prompt], result: EngineResult) -> Mapping[str, Any]:
        row = {"key": sha256_text(task[0]), "example_id": task[0], "result": result.as_row()}
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {**row, "engine": engine.provenance(), "created": created}

    with tempfile.TemporaryDirectory() as folder, Journal(folder) as journal:
        wall, cpu = time.perf_counter(), time.process_time()
        rows = answer_concurrently(prompts(items, size), generate, record, journal, concurrency)
        answered = sum(row["result"]["failure"] is None for row in rows)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if answered != items:
        raise SystemExit(f"{items - answered} of {items} requests failed")
    return Asking(items, wall, cpu, rss_mb())


def asked(command: Sequence[str | Path], concurrency: int, items: int, size: int) -> Asking:
    """What a process says of its asking."""
    sizes = [f"--concurrency={concurrency}", f"--items={items}", f"--size={size}"]
    done = subprocess.run([*command, *sizes], stdout=subprocess.PIPE, text=True, check=True)
    return Asking(items, **json.loads(done.stdout.splitlines()[-1]))


def asked_by_us(
    base_url: str, streamed: bool, concurrency: int, items: int, size: int = PROMPT_BYTES
) -> Asking:
    """Ours, in a process of its own."""
    command: list[str | Path] = [sys.executable, __file__, f"--ask={base_url}", f"--streamed={int(streamed)}"]
    return asked(command, concurrency, items, size)


def turn(concurrency: int, rounds: int) -> dict[str, Asking]:
    """Every client once, one after the other."""
    items = concurrency * rounds
    with Server() as base_url:
        found = {way: asked_by_us(base_url, way == STREAMED, concurrency, items) for way in (STREAMED, WHOLE)}
        for client in CLIENTS:
            command: list[str | Path] = [PEERS / "bin/python", DRIVERS / "clients.py", client, base_url]
            found[client] = asked(command, concurrency, items, PROMPT_BYTES)
    return found


def whole_run(start: Callable[[Path, int, int, str], Command], few: int, many: int) -> Whole:
    """A run of few items and one of many, each with its own server and files."""
    cpu, share = [], 0.0
    for items in (few, many):
        with tempfile.TemporaryDirectory(prefix="client_cost_") as place:
            log = Path(place, "log")
            with Server(log=log) as base_url:
                cpu.append(spend(start(Path(place, "run"), items, PROMPT_BYTES, base_url)).cpu_s)
                seen = events(log)
            share = items * LATENCY_S / CONCURRENCY / (seen[-1].at_s - seen[0].at_s)
    each = (cpu[1] - cpu[0]) / (many - few)
    return Whole(cpu[0] - few * each, each * 1e3, share)


def ours_of_requests(folder: Path, requests: int, size: int, base_url: str) -> Command:
    """Our workflow asks each question of the whole cache and of a budget."""
    return ours(folder, requests // REQUESTS_A_QUESTION, size, base_url)


OURS = "ours"
#: A whole run -> how it is started, and the items of the longer run: enough to be seen beside the fixed cost.
HARNESSES: dict[str, tuple[Callable[[Path, int, int, str], Command], int]] = {
    OURS: (ours_of_requests, 1240),
    "lm-eval": (lm_eval, 840),
    "inspect-ai": (inspect_ai, 340),
}
FEW = 40


def rows_of_clients(concurrency: int, turns: Sequence[Mapping[str, Asking]]) -> list[Row]:
    """Throughput and CPU per item, ours against the limits and beside each client."""
    where = f"{len(turns)} x {turns[0][WHOLE].items:,} prompts of 32 KB, {concurrency} in flight"
    rows = []
    for way in (STREAMED, WHOLE):
        shares = [one[way].share(concurrency) for one in turns]
        cpu = [one[way].cpu_ms for one in turns]
        met = statistics.median(shares) >= SHARE_BAR
        rows.append(
            Row(f"{where}, {way}: throughput", percent(shares), bar=f"at least {SHARE_BAR:.0%}", met=met)
        )
        met = statistics.median(cpu) <= CPU_BAR_MS
        work = f"{where}, {way}: CPU per item, journal included"
        rows.append(Row(work, spread(cpu, "ms"), bar=f"at most {CPU_BAR_MS:g} ms", met=met))
    for client in CLIENTS:
        mine, theirs = [one[WHOLE] for one in turns], [one[client] for one in turns]
        own, other = ([one.share(concurrency) for one in side] for side in (mine, theirs))
        work = f"{where}, {WHOLE}: throughput"
        rows.append(Row(work, percent(own), percent(other), peer(client), ratios(own, other)))
        own, other = ([one.cpu_ms for one in side] for side in (mine, theirs))
        work = f"{where}, {WHOLE}: CPU per item"
        told = spread(own, "ms"), spread(other, "ms")
        rows.append(Row(work, *told, peer(client), ratios(own, other)))
    return rows


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Ours over the peer's, turn by turn."""
    return tuple(own / other for own, other in zip(ours, theirs, strict=True))


def percent(shares: Sequence[float]) -> str:
    """Shares as percentages of concurrency / latency."""
    return spread([100 * share for share in shares], "%")


def rows_of_runs(turns: Sequence[Mapping[str, Whole]]) -> list[Row]:
    """Whole evaluation runs side by side: what they cost, and their throughput, whatever lies between two requests."""
    rows = []
    for name in HARNESSES:
        if name == OURS:
            continue
        mine, theirs = [one[OURS] for one in turns], [one[name] for one in turns]
        where = f"whole run, 32 KB prompts, {CONCURRENCY} in flight"
        # The difference of two runs: too unsteady for a ratio.
        told = whole_cost(mine, REQUESTS_A_QUESTION), whole_cost(theirs, 1)
        rows.append(Row(f"{where}: CPU", *told, peer(name)))
        own, other = [one.share for one in mine], [one.share for one in theirs]
        work = f"{where}: throughput from first request to last answer"
        rows.append(Row(work, percent(own), percent(other), peer(name), ratios(own, other)))
    return rows


def whole_cost(turns: Sequence[Whole], requests: int) -> str:
    """Per request, per question of so many requests, and fixed."""
    each = spread([one.cpu_ms for one in turns], "ms a request")
    question = spread([one.cpu_ms * requests for one in turns], "ms a question")
    fixed = spread([one.fixed_s for one in turns], "s")
    return f"{each}, {question}, and {fixed} whatever it asks"


def row_of_memory(items: int) -> Row:
    """Peak memory of 1,000 items and of many."""
    with Server(0.0, pieces=3) as base_url:
        small, large = (asked_by_us(base_url, True, 32, count, 1024).peak_mb for count in (1000, items))
    growth = large - small
    return Row(
        f"peak memory at 1,000 and at {items:,} items",
        f"{small:.0f} MB, {large:.0f} MB",
        bar=f"at most {GROWTH_BAR_MB} MB more",
        met=growth <= GROWTH_BAR_MB,
    )


NOTE = (
    "Ours proves the budget of every answer and syncs it to the journal before its place is used again; requests and openai "
    "(threads) and aiohttp (tasks) keep the answers in a list. Whole runs also read the data and "
    "score, all with 8 in flight and all other options at their defaults; ours is `snakemake all_scores`, which asks each "
    "question twice, of the whole cache and of a budget, in two jobs: as many requests are half as many questions to read "
    "and score, so the cost is told per question, too, and its throughput includes the start of the second job."
)


def main() -> int:
    """Measure; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="see that it works: one short turn, no verdict")
    parser.add_argument("--rounds", type=int, default=50, help="requests per place in flight")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the plain clients")
    parser.add_argument("--runs", type=int, default=2, help="turns of whole runs; 0 leaves them out")
    parser.add_argument("--ask", metavar="BASE_URL", help=argparse.SUPPRESS)
    parser.add_argument("--streamed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--concurrency", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, default=20_000, help="requests of the long run, for its memory")
    parser.add_argument("--size", type=int, default=PROMPT_BYTES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        cost = ask(given.ask, bool(given.streamed), given.concurrency, given.items, given.size)
        print(json.dumps({"wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "peak_mb": cost.peak_mb}))
        return 0
    rounds, repeats, items = (20, 1, 3000) if given.quick else (given.rounds, given.repeats, given.items)
    # Every client once, then all of them again: other work that lasts a while does not hit all turns of one of them.
    turns = [{concurrency: turn(concurrency, rounds) for concurrency in IN_FLIGHT} for _ in range(repeats)]
    rows = [row for each in IN_FLIGHT for row in rows_of_clients(each, [one[each] for one in turns])]
    if given.runs and not given.quick:
        runs = [
            {name: whole_run(start, FEW, many) for name, (start, many) in HARNESSES.items()}
            for _ in range(given.runs)
        ]
        rows += rows_of_runs(runs)
    rows.append(row_of_memory(items))
    if given.quick:
        rows = list(map(without_bar, rows))
    save("client_cost", rows, ("kv-transition", "requests"), NOTE)
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
