"""What is asked: the requests of a shard, and the key under which the journal keeps an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kv_transition.budgets import budget_from_label
from kv_transition.data.normalize import Example
from kv_transition.data.prompts import Prompt, prompt_hash
from kv_transition.data.protocol import TaskProtocol
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.engines.base import ENGINE_PROTOCOL, Cell
from kv_transition.errors import UserError
from kv_transition.files import canonical_json, sha256_text

#: Methods whose hyper-parameter `seeds` only says how many replicates there are; the replicate itself is in the key.
NOT_IN_KEY = ("seeds",)


@dataclass(frozen=True)
class Request:
    """One question to be answered at one cell.

    Attributes
    ----------
    method : the run's method; `no_context` is the full cache over a prompt with an empty context.
    key : journal key, a hash of everything that determines the answer.
    protocol : name and version of the prompts.
    wrapped, dropped_tokens, excess_tokens : as of the prompt that is asked.
    """

    example_id: str
    method: str
    budget: str
    replicate: int
    prompt_hash: str
    key: str
    protocol: str
    wrapped: bool
    dropped_tokens: int
    excess_tokens: int

    @property
    def cell(self) -> Cell:
        """The engine's cell."""
        method = "full" if self.method == "no_context" else self.method
        return Cell(method, budget_from_label(self.budget), self.replicate)


@dataclass(frozen=True)
class ExampleRequests:
    """All requests about one example; those with an empty context have a prompt of their own."""

    example_id: str
    prompt: Prompt
    prompt_without_context: Prompt
    requests: tuple[Request, ...]


def run_id(experiment: str, task: str, method: str, budget: str) -> str:
    """Identifier of one (task, method, budget) of an experiment."""
    return f"{experiment}__{task}__{method}__{budget}"


def request_id(run: str, example_id: str, replicate: int) -> str:
    """Identifier of one request of a run."""
    return sha256_text(f"{run}|{example_id}|{replicate}")[:32]


def answer_key(
    prompt: Mapping[str, Any], cell: Cell, example_id: str, answer: Mapping[str, Any], model_sha256: str
) -> str:
    """Hash of everything that determines an answer, and of nothing else.

    Parameters
    ----------
    prompt : hash of the messages, and where in them the context ends (both parts are tokenised for themselves).
    answer : the settings' answer slice (engine, kv) with the decoding that the protocol makes of it.
    model_sha256 : hash of weights, configuration, tokenizer and chat template.
    """
    parameters = answer["kv"]["methods"].get(cell.method, {})
    material = {
        "protocol": ENGINE_PROTOCOL,
        "engine": {"kind": answer["engine"]["kind"], "dtype": answer["engine"]["dtype"]},
        "model": model_sha256,
        "prompt": prompt,
        "decoding": answer["decoding"],
        "scope": answer["kv"]["scope"],
        "first_token": answer["kv"]["first_token"],
        "method": cell.method,
        "parameters": {name: value for name, value in parameters.items() if name not in NOT_IN_KEY},
        "budget": cell.label,
        "replicate": cell.replicate,
        "seed": example_id if cell.method == "random" else None,
    }
    return sha256_text(canonical_json(material))


def requests_of_example(
    protocol: TaskProtocol,
    example: Example,
    cells: Sequence[tuple[str, str]],
    answer: Mapping[str, Any],
    model_sha256: str,
    tokenizer: ModelTokenizer | None = None,
) -> ExampleRequests:
    """Every request about one example.

    Parameters
    ----------
    cells : (method, budget label) of every run.
    answer : as :func:`answer_key` takes it.
    tokenizer : the model's, where the protocol has a limit.

    Raises
    ------
    UserError
        When scope `context` is asked of a prompt that lost the end of its context.
    """
    example_id, extra = example.example_id, example.meta.get("extra")
    prompt = protocol.prompt(example.question, example.context, tokenizer, extra)
    bare = protocol.prompt(example.question, "", tokenizer, extra)
    if prompt.context_lost and answer["kv"]["scope"] == "context":
        raise UserError(
            f"task {protocol.task}, example {example_id}: the prompt is shortened, and what follows its context does not fit "
            "into the half that is kept, so kv.scope context has no end of the context; raise protocol.max_length_tokens or "
            "set kv.scope: prompt"
        )
    asked = [{"messages": prompt_hash(p), "context_end": p.context_end} for p in (prompt, bare)]
    seeds = int(answer["kv"]["methods"]["random"]["seeds"])
    requests = []
    for method, budget in cells:
        own = asked[method == "no_context"]
        given = bare if method == "no_context" else prompt
        for replicate in range(seeds if method == "random" else 1):
            draft = Request(
                example_id,
                method,
                budget,
                replicate,
                prompt_hash=str(own["messages"]),
                key="",
                protocol=protocol.label,
                wrapped=given.wrapped,
                dropped_tokens=given.dropped_tokens,
                excess_tokens=given.excess_tokens,
            )
            key = answer_key(own, draft.cell, example_id, answer, model_sha256)
            requests.append(replace(draft, key=key))
    return ExampleRequests(example_id, prompt, bare, tuple(requests))
