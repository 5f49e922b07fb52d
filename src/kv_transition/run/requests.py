"""What is asked: the requests of a shard, and the key under which the journal keeps an answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kv_transition.budgets import budget_from_label, parse_budget
from kv_transition.data.normalize import Example
from kv_transition.data.prompts import Prompt, prompt_hash
from kv_transition.data.protocol import TaskProtocol
from kv_transition.data.tokenizer import ModelTokenizer
from kv_transition.engines.base import ENGINE_PROTOCOL, Cell, EngineResult
from kv_transition.engines.text_level import TEXT_METHODS, Shortened, Status, TextShortener
from kv_transition.errors import ConfigError, UserError
from kv_transition.files import canonical_json, sha256_text

#: Methods whose hyper-parameter `seeds` only says how many replicates there are; the replicate itself is in the key.
NOT_IN_KEY = ("seeds",)
#: What of the section `engine` determines an answer; all but the first two are of kvpress alone.
IN_KEY = ("kind", "dtype", "device", "attn_implementation", "kvpress")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to be answered at one cell.

    Attributes
    ----------
    method : the run's method; `no_context` is the full cache over a prompt with an empty context, a text method the full
        cache over its own prompt.
    protocol : name and version of the prompts.
    prompt : what is asked; None where a text method leaves nothing to ask, see `status`.
    prompt_hash, key : hash of the prompt; journal key, a hash of everything that determines the answer. None without a
        prompt.
    text : of a text method, what it made.
    full_tokens : of a text method, tokens of the prompt with the whole context.
    """

    example_id: str
    method: str
    budget: str
    replicate: int
    protocol: str
    prompt: Prompt | None
    prompt_hash: str | None = None
    key: str | None = None
    text: Shortened | None = None
    full_tokens: int | None = None

    @property
    def cell(self) -> Cell:
        """The engine's cell."""
        if self.method == "no_context" or self.text is not None:
            return Cell("full")
        return Cell(self.method, budget_from_label(self.budget), self.replicate)

    @property
    def status(self) -> Status:
        """ "ok", or why there is nothing to ask."""
        return "ok" if self.text is None else self.text.status


@dataclass(frozen=True)
class ExampleRequests:
    """All requests about one example; `prompt` is the one with the whole context."""

    example_id: str
    prompt: Prompt
    requests: tuple[Request, ...]

    @property
    def asked(self) -> list[Request]:
        """The requests that need an answer."""
        return [request for request in self.requests if request.status == "ok"]


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
        "engine": {name: answer["engine"][name] for name in IN_KEY if name in answer["engine"]},
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
    tokenizer : the model's, where the protocol has a limit or a method shortens the text.

    Raises
    ------
    UserError
        When scope `context` is asked of a prompt that lost the end of its context, or a text method without a tokenizer.
    """
    example_id, extra = example.example_id, example.meta.get("extra")

    def make_prompt(context: str) -> Prompt:
        return protocol.prompt(example.question, context, tokenizer, extra)

    prompt, bare = make_prompt(example.context), make_prompt("")
    if prompt.context_lost and answer["kv"]["scope"] == "context":
        raise UserError(
            f"task {protocol.task}, example {example_id}: the prompt is shortened, and what follows its context does not fit "
            "into the half that is kept, so kv.scope context has no end of the context; raise protocol.max_length_tokens or "
            "set kv.scope: prompt"
        )
    methods = answer["kv"]["methods"]
    drafts = []
    for method, budget in cells:
        if method not in TEXT_METHODS:
            given = bare if method == "no_context" else prompt
            replicates = range(int(methods["random"]["seeds"]) if method == "random" else 1)
            drafts += [Request(example_id, method, budget, n, protocol.label, given) for n in replicates]
    texts = [(method, budget) for method, budget in cells if method in TEXT_METHODS]
    if texts:
        shortener = _shortener(example, make_prompt, tokenizer, answer["kv"])
        for method, budget in texts:
            made = shortener.shorten(method, parse_budget(budget))
            drafts.append(
                Request(
                    *(example_id, method, budget, 0, protocol.label, made.prompt),
                    text=made,
                    full_tokens=shortener.full_tokens,
                )
            )
    identities = {id(one): _identity(one) for one in (request.prompt for request in drafts) if one}
    return ExampleRequests(
        example_id, prompt, tuple(_with_key(one, identities, answer, model_sha256) for one in drafts)
    )


def _shortener(
    example: Example,
    make_prompt: Callable[[str], Prompt],
    tokenizer: ModelTokenizer | None,
    kv: Mapping[str, Any],
) -> TextShortener:
    if tokenizer is None:
        raise ConfigError(
            f"kv.methods: {', '.join(TEXT_METHODS)} count tokens of the model, so model.path must name its folder"
        )
    passage_tokens = int(kv["methods"]["bm25"]["passage_tokens"])
    return TextShortener(
        example.question, example.context, make_prompt, tokenizer, passage_tokens, kv["scope"]
    )


def _identity(prompt: Prompt) -> dict[str, Any]:
    """What makes a prompt another one: its messages, and where in them the context ends."""
    return {"messages": prompt_hash(prompt), "context_end": prompt.context_end}


def _with_key(
    request: Request,
    identities: Mapping[int, Mapping[str, Any]],
    answer: Mapping[str, Any],
    model_sha256: str,
) -> Request:
    if request.prompt is None:
        return request
    own = identities[id(request.prompt)]
    key = answer_key(own, request.cell, request.example_id, answer, model_sha256)
    return replace(request, prompt_hash=str(own["messages"]), key=key)


def journal_row(request: Request, result: EngineResult, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What the journal keeps of an answer.

    Parameters
    ----------
    provenance : the engine's.
    """
    cell = request.cell
    return {
        "key": request.key,
        "example_id": request.example_id,
        "method": cell.method,
        "budget": cell.label,
        "replicate": cell.replicate,
        "prompt_hash": request.prompt_hash,
        "result": result.as_row(),
        "attempts": int(result.raw.get("attempts", 1)),
        "engine": dict(provenance),
        "host": socket.gethostname(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
