"""Greedy answers of many cells of one prompt, in one batch, from what each cell's cache still holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from kv_transition.engines.greedy import Answer, Ending
from kv_transition.engines.kvpress_groups import CellGroup, CellLayers, decoding, extend, in_groups
from kv_transition.engines.kvpress_model import LoadedModel, refuse_without_memory
from kv_transition.errors import UserError

#: Logits that a model computes on two ways may differ by this much of their standard deviation.
TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
#: Tokens behind the compressed part that are read at once: bounds the memory of their masks and logits.
TAIL_TOKENS = 64
#: Stands for the next token where the logits have no finite best.
NO_TOKEN = -1
#: Tokens that a GPU computes before the host looks at them: a look waits for the GPU, and a cell whose answer has ended
#: in between has read a few tokens for nothing.
UNSEEN_TOKENS = 16


def decode_cells(
    loaded: LoadedModel,
    cells: Mapping[int, CellLayers],
    tail: Sequence[int],
    position: int,
    first_logits: Any | None,
    ending: Ending,
    eager: bool = False,
    on_first_token: Callable[[], None] = lambda: None,
    note_logits: Callable[[int, Any], None] | None = None,
) -> dict[int, Answer | None]:
    """The greedy answers of many cells.

    Parameters
    ----------
    cells : name -> what the cell kept; its tensors are left as they are.
    tail : prompt tokens that are still to be read, from the caches; `position` is the true position of the first.
    first_logits : (vocabulary,) logits for the first answer token where the tail is empty.
    eager : compute attention as transformers' eager implementation does, else as its sdpa.
    on_first_token : called when the logits of the first answer token are known.
    note_logits : told a cell and its (vocabulary,) logits at every step.

    Returns
    -------
    The answer of every cell, None where its logits were not numbers; none for no cells.
    """
    if not cells:
        return {}
    groups = in_groups(dict(cells), len(tail) + ending.max_new_tokens)
    answers = {cell: Answer() for group in groups for cell in group.rows}
    with decoding(loaded):
        logits = None if first_logits is None else first_logits.expand(len(cells), -1)
        for start in range(0, len(tail), TAIL_TOKENS):
            chunk = loaded.tokens(tail[start : start + TAIL_TOKENS]).expand(len(cells), -1)
            logits = extend(loaded, groups, chunk, position + start, eager)
        greedy = _Greedy(loaded, groups, answers, ending, eager, note_logits)
        greedy.run(logits, position + len(tail), on_first_token)
    return {cell: None if cell in greedy.overflowed else answer for cell, answer in answers.items()}


def check_decoding(loaded: LoadedModel, dtype: str, where: str) -> None:
    """Compare the logits after a short text, its end read from a cache as answers are, with those of one plain pass.

    Attention that caps or sinks, or a model that takes its positions from elsewhere, would answer wrongly without a word.

    Raises
    ------
    UserError
        Where they differ by more than rounding.
    """
    ids, name = loaded.probe(), type(loaded.model).__name__
    cache, end = DynamicCache(), len(ids) - len(ids) // 4
    eager = loaded.model.config._attn_implementation == "eager"
    try:
        with torch.no_grad():
            plain = loaded.model(loaded.tokens(ids), logits_to_keep=1).logits[0, -1].float()
            loaded.model(loaded.tokens(ids[:end]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            group = CellGroup(
                {0: CellLayers([(layer.keys, layer.values) for layer in cache.layers])}, len(ids)
            )
            with decoding(loaded):
                own = extend(loaded, [group], loaded.tokens(ids[end:]), end, eager)[0].float()
        furthest = float((own - plain).abs().max() / plain.std())
    except UserError:
        raise
    except Exception as error:  # shapes that do not fit, attention that is not asked for in the usual way
        refuse_without_memory(error, where)
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: {name} cannot answer from a cache of this project's: {reason}") from None
    # Not a number is not below any tolerance.
    if not furthest <= TOLERANCE[dtype]:
        raise UserError(
            f"{where}: {name} computes its attention in a way that answers from a pruned cache do not follow (logits differ by "
            f"{furthest:.2g} standard deviations); use a model such as Llama, Mistral, Qwen2, Qwen3 or Phi3"
        )


class _Greedy:
    """The loop over answer tokens, of which the host sees a few at a time where it would have to wait for them."""

    def __init__(
        self,
        loaded: LoadedModel,
        groups: list[CellGroup],
        answers: Mapping[int, Answer],
        ending: Ending,
        eager: bool,
        note_logits: Callable[[int, Any], None] | None,
    ) -> None:
        self.loaded, self.groups, self.answers, self.ending = loaded, groups, answers, ending
        self.eager, self.note_logits = eager, note_logits
        self.banned: Any = None
        #: Cells whose logits were not numbers.
        self.overflowed: set[int] = set()
        watched = loaded.device.type == "cpu" or ending.observe is not None
        self.unseen = 1 if watched else UNSEEN_TOKENS

    def run(self, logits: Any, position: int, on_first_token: Callable[[], None]) -> None:
        """Fill the answers."""
        generated, steps = 0, 1
        while True:
            steps = min(steps, self.ending.max_new_tokens - generated)
            tokens, logits = self._steps(logits, position, generated, steps)
            seen = torch.stack(tokens, dim=1).tolist()
            if generated == 0:
                on_first_token()
            going = self._append(seen)
            generated += steps
            if not self.groups:
                return
            rows = tokens[-1].clamp(min=0)
            if len(going) < len(seen):
                # Which rows go on, in the groups' new order.
                rows = rows[torch.tensor(going, device=rows.device)]
            logits = extend(self.loaded, self.groups, rows[:, None], position + steps - 1, self.eager)
            position, steps = position + steps, self.unseen

    def _steps(self, logits: Any, position: int, generated: int, steps: int) -> tuple[list[Any], Any]:
        """The next `steps` tokens of every cell, a tensor (cells,) each; the last one has not been read yet."""
        tokens: list[Any] = []
        while True:
            banned = self.ending.banned(generated + len(tokens), logits.shape[1])
            if self.note_logits is not None:
                for cell, row in zip(self._cells(), logits, strict=True):
                    self.note_logits(cell, row.float().cpu().numpy())
            if banned:
                if self.banned is None:
                    # Once: what goes to a GPU is waited for.
                    self.banned = torch.tensor(banned, device=logits.device)
                logits = logits.index_fill(1, self.banned, -torch.inf)
            best = logits.argmax(dim=1)
            # Not a number counts as the largest of all.
            sound = logits.gather(1, best[:, None])[:, 0].isfinite()
            tokens.append(best.masked_fill(~sound, NO_TOKEN))
            if len(tokens) == steps:
                return tokens, logits
            logits = extend(
                self.loaded,
                self.groups,
                tokens[-1].clamp(min=0)[:, None],
                position + len(tokens) - 1,
                self.eager,
            )

    def _cells(self) -> list[int]:
        return [cell for group in self.groups for cell in group.rows]

    def _is_over(self, cell: int) -> bool:
        return cell in self.overflowed or self.answers[cell].finish_reason is not None

    def _append(self, seen: Sequence[Sequence[int]]) -> list[int]:
        """Add the tokens (cells, steps) to the answers; drop the cells that ended, return the others' former rows."""
        cells = self._cells()
        for cell, tokens in zip(cells, seen, strict=True):
            for token in tokens:
                if token == NO_TOKEN:
                    self.overflowed.add(cell)
                    break
                if self.ending.append(self.answers[cell], token):
                    break
        row = {cell: number for number, cell in enumerate(cells)}
        for group in self.groups:
            for cell in [cell for cell in group.rows if self._is_over(cell)]:
                group.drop(cell)
        self.groups = [group for group in self.groups if len(group)]
        return [row[cell] for cell in self._cells()]
