"""What LongBench's metrics cost here and in the packages that its own evaluation uses, on real answers.

    make setup-bench
    python benchmarks/metrics_cost.py                  all three metrics, about half a minute
    python benchmarks/metrics_cost.py --quick          fewer rows and turns, no verdict on time

Both sides score the same rows (an answer with its gold answers) in turns, and have to give equal values. Ours begins
every round with empty caches, as a new process does. A workflow scores a question's gold answers at every method and
budget, so the bar of F1, whose work on gold answers is kept, is for one more of them: each round scores another run's
answers to the same questions first, which is not timed, and then answers that it has never seen. The ratio of the CPU
times is the result: seconds belong to the machine. Ends with 1 if a ratio is below its bar.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import statistics
import string
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from record import Row, save, spread, without_bar

from kv_transition.data.longbench_tasks import TASK_FACTS
from kv_transition.eval import longbench_metrics
from kv_transition.eval.failure_taxonomy import first_line

#: An answer with its gold answers.
Answer = tuple[str, list[str]]
Score = Callable[[str, str], float]

SHARED = Path(os.environ.get("KV_TRANSITION_SHARED") or Path(__file__).parents[2] / "shared" / "data")
PREDICTIONS = Path("predictions", "pred")
#: Two runs of one model over the same questions.
RUN, OTHER_RUN = "llama3-8b-instruct", "llama3-8b-instruct_S17-19-21-23"
NOTE = (
    "Ours keeps the words of gold answers, and what is left of a word. The bar of F1 is for one more method or budget of "
    "questions whose gold answers were scored before: another run's answers to them were scored first, untimed, and answers "
    "equal to those are left out. All other rows are of answers scored for the first time, by a process that has seen "
    "neither them nor their gold answers. The references keep nothing."
)


@dataclass(frozen=True)
class Contest:
    """One metric: its name here, the reference, the tasks and rows per task to take, and the ratio to reach.

    Attributes
    ----------
    keeps_gold : whether ours keeps the work on gold answers, so that later answers to them cost less.
    """

    metric: str
    peer: str
    reference: Score
    tasks: tuple[str, ...]
    rows: int
    bar: float
    keeps_gold: bool = False

    def ours(self, row: Answer) -> float:
        """The score of a row with the metric of this project."""
        return longbench_metrics.OFFICIAL_METRICS[self.metric](row[0], row[1], ())

    def theirs(self, row: Answer) -> float:
        """The score of a row with the reference: the largest over its gold answers, one by one."""
        return max(self.reference(row[0], answer) for answer in row[1])


def reference_rouge() -> Score:
    """ROUGE-L by the package `rouge`, for which an empty text is an error and worth 0."""
    from rouge import Rouge

    package = Rouge()

    def score(prediction: str, answer: str) -> float:
        try:
            return float(package.get_scores([prediction], [answer], avg=True)["rouge-l"]["f"])
        except (ValueError, RecursionError):
            return 0.0

    return score


def reference_code() -> Score:
    """Similarity of the first line of code by the package `fuzzywuzzy`, on top of difflib."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends python-Levenshtein, which gives other values
        from fuzzywuzzy import fuzz

    def score(prediction: str, answer: str) -> float:
        for line in prediction.lstrip("\n").split("\n"):
            if not any(mark in line for mark in ("`", "#", "//")):
                return float(fuzz.ratio(line, answer) / 100)
        return float(fuzz.ratio("", answer) / 100)

    return score


def reference_f1(prediction: str, answer: str) -> float:
    """F1 of two bags of words in the plainest way: one character at a time, the expression given on every call."""

    def bag(text: str) -> Counter[str]:
        marks = set(string.punctuation)
        bare = "".join(character for character in text.lower() if character not in marks)
        return Counter(" ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()).split())

    predicted, expected = bag(prediction), bag(answer)
    common = sum((predicted & expected).values())
    if common == 0:
        return 0.0
    precision, recall = common / sum(predicted.values()), common / sum(expected.values())
    return (2 * precision * recall) / (precision + recall)


def read_rows(run: str, tasks: Sequence[str], rows: int) -> list[Answer]:
    """The first rows of these tasks, as they are scored."""
    read: list[Answer] = []
    for task in tasks:
        lines = (SHARED / PREDICTIONS / run / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        cut = first_line if TASK_FACTS[task].first_line else str
        read += [(cut(row["pred"]), row["answers"]) for row in map(json.loads, lines)]
    return read


def forget() -> None:
    """Empty all caches of our metrics: the module as a new process has it."""
    importlib.reload(longbench_metrics)


def seconds(
    score: Callable[[Answer], float], rows: Sequence[Answer], rounds: int, before: Sequence[Answer]
) -> float:
    """CPU seconds to score all rows once, after others: the mean of some rounds, so that the clock is fine enough."""
    spent = 0.0
    for _ in range(rounds):
        forget()
        for row in before:
            score(row)
        start = time.process_time()
        for row in rows:
            score(row)
        spent += time.process_time() - start
    return spent / rounds


def race(contest: Contest, repeats: int, rows: Sequence[Answer], before: Sequence[Answer] = ()) -> Row:
    """Time both sides in turns on rows that neither has seen."""
    sides = (contest.ours, contest.theirs)
    rounds = [max(1, round(0.3 / seconds(side, rows, 1, before))) for side in sides]
    times = [
        tuple(seconds(side, rows, most, before) for side, most in zip(sides, rounds, strict=True))
        for _ in range(repeats)
    ]
    ratios = tuple(theirs / ours for ours, theirs in times)
    ours, theirs = ([len(rows) / one / 1e3 for one in column] for column in zip(*times, strict=True))
    seen = "gold answers seen before" if before else "the first time"
    return Row(
        f"{contest.metric}, {len(rows)} answers of {len(contest.tasks)} LongBench task(s), {seen}",
        spread(ours, "thousand a CPU s"),
        spread(theirs, "thousand a CPU s"),
        contest.peer,
        ratios,
        f">= {contest.bar:g}x",
        statistics.median(ratios) >= contest.bar,
    )


def row_of_values(contest: Contest, rows: Sequence[Answer]) -> Row:
    """How many values are not the reference's."""
    differing = sum(contest.ours(row) != contest.theirs(row) for row in rows)
    work = f"{contest.metric}, values of {len(rows)} answers that differ from those of {contest.peer}"
    return Row(work, str(differing), bar="== 0", met=differing == 0)


def rows_of(contest: Contest, repeats: int, step: int) -> list[Row]:
    """Both sides' values and speed, on every `step`-th answer."""
    answers, others = (read_rows(run, contest.tasks, contest.rows)[::step] for run in (RUN, OTHER_RUN))
    first = race(contest, repeats, answers)
    if not contest.keeps_gold:
        return [row_of_values(contest, answers), first]
    unseen = [other for answer, other in zip(answers, others, strict=True) if other[0] != answer[0]]
    return [
        row_of_values(contest, [*answers, *unseen]),
        race(contest, repeats, unseen, answers),
        without_bar(first),
    ]


def contests() -> list[Contest]:
    """The three metrics with a bar."""
    summaries = ("gov_report", "multi_news", "qmsum", "samsum")
    questions = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "triviaqa")
    return [
        Contest("rouge_l", f"rouge {version('rouge')}", reference_rouge(), summaries, 10, 15),
        Contest("code_sim", f"fuzzywuzzy {version('fuzzywuzzy')}", reference_code(), ("lcc",), 500, 4),
        Contest("qa_f1", "LongBench's code", reference_f1, questions, 200, 6, keeps_gold=True),
    ]


def main() -> int:
    """Run the contests; 0 if every bar is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
    parser.add_argument(
        "--quick", action="store_true", help="see that it works: a tenth of the answers, 2 turns"
    )
    options = parser.parse_args()
    if not all(map(importlib.util.find_spec, ("rouge", "fuzzywuzzy"))):
        print(
            "the reference packages rouge and fuzzywuzzy are not installed: run make setup-bench",
            file=sys.stderr,
        )
        return 1
    if importlib.util.find_spec("Levenshtein"):
        print(
            "python-Levenshtein is installed, with which fuzzywuzzy gives other values: remove it",
            file=sys.stderr,
        )
        return 1
    if not (SHARED / PREDICTIONS).is_dir():
        print(
            f"no predictions in {SHARED / PREDICTIONS}: let KV_TRANSITION_SHARED name their folder",
            file=sys.stderr,
        )
        return 1
    repeats, step = (2, 10) if options.quick else (options.repeats, 1)
    rows = [row for contest in contests() for row in rows_of(contest, repeats, step)]
    if options.quick:
        rows = [without_bar(row) if row.ratio else row for row in rows]
    save("metrics_cost", rows, ["numpy", "cydifflib"], NOTE)
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
