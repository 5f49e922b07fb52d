"""kvpress's own pipeline, one cell at a time, and the ways to run a model with its full cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from llama_models import FULL, KERNEL, SINKS, WINDOW, sweep

from kv_transition.engines.base import Cell

#: (prompt, new tokens) -> the answer's tokens.
FullRun = Callable[[Sequence[int], int], list[int]]


def press_of(cell: Cell, press_len: int) -> Any:
    """kvpress's own press that keeps the cell's budget, less the token that is read afterwards; None for `full`."""
    import kvpress

    if cell == FULL:
        return None
    if not isinstance(cell.budget, int):
        raise ValueError(f"a budget in tokens is needed, not {cell.budget!r}")
    # It keeps int(n * (1 - ratio)) of n positions; half a position more never rounds to another number.
    ratio = 1 - (cell.budget - 1 + 0.5) / press_len
    if cell.method == "snapkv":
        return kvpress.SnapKVPress(ratio, window_size=WINDOW, kernel_size=KERNEL)
    if cell.method == "streaming_llm":
        return kvpress.StreamingLLMPress(ratio, n_sink=SINKS)
    return {"knorm": kvpress.KnormPress, "tova": kvpress.TOVAPress}[cell.method](ratio)


class OneByOne:
    """kvpress's text generation pipeline: a prefill under the press, then greedy decoding, for every cell anew.

    The whole prompt but its last token is the pipeline's context and that token its question, so that the first answer
    token feels the budget, as in our sweep with first token `compressed`. Words of its tokenizer are the tokens' numbers.
    """

    def __init__(self, model: Any) -> None:
        from kvpress import KVPressTextGenerationPipeline
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({str(n): n for n in range(model.config.vocab_size)}, "0"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.device = model.device
        self.pipeline = KVPressTextGenerationPipeline(
            model=model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words), device=model.device
        )

    def answer(self, ids: Sequence[int], cell: Cell, new_tokens: int) -> list[int]:
        """One cell's answer."""
        context, question = self._tensor(ids[:-1]), self._tensor(ids[-1:])
        with torch.no_grad():
            (text,) = self.pipeline._forward(
                {"context_ids": context, "questions_ids": [question]},
                max_new_tokens=new_tokens,
                press=press_of(cell, len(ids) - 1),
            )
        return [int(word) for word in text.split()]

    def answers(self, ids: Sequence[int], cells: Sequence[Cell], new_tokens: int) -> dict[Cell, list[int]]:
        """All cells' answers, one after the other."""
        return {cell: self.answer(ids, cell, new_tokens) for cell in cells}

    def _tensor(self, ids: Sequence[int]) -> Any:
        return torch.tensor([list(ids)], dtype=torch.long, device=self.device)


def full_runs(loaded: Any) -> Mapping[str, FullRun]:
    """Ways to answer one prompt with the full cache: the fastest of them is what a grid is held against.

    None is compiled: for one prompt that takes longer than the answer.
    """
    model = loaded.model

    def generate(**asked: Any) -> FullRun:
        def run(ids: Sequence[int], new_tokens: int) -> list[int]:
            prompt = loaded.tokens(ids)
            answered = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new_tokens,
                do_sample=False,
                **asked,
            )
            # A static cache would stay with the model, in the memory that is measured next.
            vars(model).pop("_cache", None)
            tokens: list[int] = answered[0, len(ids) :].tolist()
            return tokens

        return run

    return {
        "generate, DynamicCache": generate(),
        "generate, StaticCache": generate(cache_implementation="static", disable_compile=True),
        "greedy loop": lambda ids, new_tokens: greedy_loop(loaded, ids, new_tokens),
        "our engine, full alone": lambda ids, new_tokens: sweep(loaded, ids, [FULL], new_tokens)[FULL],
    }


def greedy_loop(loaded: Any, ids: Sequence[int], new_tokens: int) -> list[int]:
    """Nothing but the model's forward calls; tokens stay on its device until the end."""
    from transformers import DynamicCache

    cache, tokens, chosen = DynamicCache(), loaded.tokens(ids), []
    with torch.no_grad():
        for _ in range(new_tokens):
            output = loaded.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            chosen.append(tokens)
    answer: list[int] = torch.cat(chosen, dim=1)[0].tolist()
    return answer
