"""What LongBench does with its tasks, by the names of v1 and of LongBench-E."""

import pytest

from kv_transition.data.longbench_tasks import TASK_FACTS, base_name, task_facts


@pytest.mark.parametrize(
    ("task", "base"),
    [
        ("samsum", "samsum"),
        ("samsum_e", "samsum"),
        ("passage_retrieval_en_e", "passage_retrieval_en"),
        ("e", "e"),
    ],
)
def test_a_task_of_longbench_e_has_the_name_of_its_namesake(task: str, base: str) -> None:
    assert base_name(task) == base


@pytest.mark.parametrize("task", TASK_FACTS)
def test_a_namesake_has_the_same_facts(task: str) -> None:
    assert task_facts(f"{task}_e") is task_facts(task) is TASK_FACTS[task]


def test_answers_end_with_the_line_in_samsum_only() -> None:
    assert [task for task, facts in TASK_FACTS.items() if facts.stops_at_line] == ["samsum"]
