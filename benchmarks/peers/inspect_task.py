"""The questions as a task of inspect_ai: the environment's RECORDS is a file with one a line, see questions.py."""

import os
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import Sample, json_dataset
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


def sample_of(record: dict[str, Any]) -> Sample:
    """A sample whose prompt is the text and its question."""
    prompt = f"{record['context']}\n\n{record['input']}"
    return Sample(id=record["_id"], input=prompt, target=record["answers"][0])


@task
def punctual() -> Task:
    """Ask each question once, and look for the answer in what comes."""
    return Task(dataset=json_dataset(os.environ["RECORDS"], sample_of), solver=generate(), scorer=includes())
