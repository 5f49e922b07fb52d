"""Training the tiny reader from scratch: about twelve minutes on two processor cores."""

from __future__ import annotations

import ctypes
import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

from kv_transition.tiny_reader.accuracy import full_cache_exact_match
from kv_transition.tiny_reader.batches import Batch, training_batch
from kv_transition.tiny_reader.card import TrainingFacts, write_card
from kv_transition.tiny_reader.export import export
from kv_transition.tiny_reader.model import TinyReader
from kv_transition.tiny_reader.optimizer import Muon

logger = logging.getLogger(__name__)

#: Documents and seed of the exact match told on the card.
CARD_DOCUMENTS, CARD_SEED = 200, 1


@dataclass(frozen=True)
class Recipe:
    """What is trained on, and how fast.

    Attributes
    ----------
    steps : optimizer steps.
    rate, later_rate : Muon's learning rate for the first `early_steps` steps and from then on; both fall linearly to
        zero over the last `decay` of the steps. AdamW (embedding, norms, biases) runs at `adam_share` of it.
    weight_decay : of the matrices, times the rate. It bounds their size: without it the attention of the first few
        hundred steps saturates on noise and names are never matched.
    stages : context lengths in tokens (shortest, longest). The next stage begins when the mean look-up accuracy of
        `window` steps exceeds `advance_at`.
    """

    steps: int = 1400
    rate: float = 0.03
    later_rate: float = 0.0135
    early_steps: int = 400
    decay: float = 0.4
    adam_share: float = 0.05
    weight_decay: float = 0.8
    stages: tuple[tuple[int, int], ...] = ((24, 48), (40, 100), (60, 250), (60, 520), (60, 1060))
    advance_at: float = 0.9
    window: int = 25

    def rate_at(self, step: int) -> float:
        """Muon's learning rate at a step."""
        rate = self.rate if step < self.early_steps else self.later_rate
        return rate * min(1.0, (self.steps - step) / (self.decay * self.steps), (step + 1) / 20)


def train(
    out_dir: str | Path, seed: int = 1, recipe: Recipe | None = None, threads: int = 2, export_every: int = 0
) -> TinyReader:
    """Train a tiny reader and write its model folder, card included.

    Parameters
    ----------
    out_dir : the model folder to write.
    seed : seeds the weights and the documents. The same seed, recipe, thread count, torch and processor give the same
        model.
    export_every : also write weights and tokenizer every so many steps (0: only at the end).
    """
    recipe = recipe or Recipe()
    _keep_freed_memory()
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    rng = random.Random(f"training|{seed}")
    reader = TinyReader()
    muon, adam = _optimizers(reader, recipe)
    stage, tokens, start = 0, 0, time.monotonic()
    recent: deque[float] = deque(maxlen=recipe.window)
    for step in range(recipe.steps):
        rate = recipe.rate_at(step)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = rate, rate * recipe.adam_share
        batch = training_batch(rng, rng.randint(*recipe.stages[stage]))
        loss, accuracy = _loss(reader, batch)
        muon.zero_grad()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        muon.step()
        adam.step()
        recent.append(accuracy)
        tokens += batch.ids.numel()
        mean = sum(recent) / len(recent)
        if step % 25 == 24:
            logger.info(
                "step %d of %d, %.1f min, lengths %d-%d, loss %.3f, look-up accuracy %.3f",
                *(step + 1, recipe.steps, (time.monotonic() - start) / 60),
                *(*recipe.stages[stage], loss.item(), mean),
            )
        if stage + 1 < len(recipe.stages) and len(recent) == recipe.window and mean > recipe.advance_at:
            stage += 1
            recent.clear()
        if export_every and step % export_every == export_every - 1:
            export(reader, out_dir)
    export(reader, out_dir)
    minutes = (time.monotonic() - start) / 60
    facts = TrainingFacts(
        seed=seed,
        steps=recipe.steps,
        tokens=tokens,
        minutes=minutes,
        threads=threads,
        torch_version=torch.__version__,
        parameters=sum(parameter.numel() for parameter in reader.parameters()),
        documents_per_bin=CARD_DOCUMENTS,
        exact_match=full_cache_exact_match(reader, CARD_DOCUMENTS, CARD_SEED),
    )
    write_card(out_dir, facts)
    return reader


def _optimizers(reader: TinyReader, recipe: Recipe) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices between hidden states, AdamW for embedding, norms and biases."""
    trained = [(name, p) for name, p in reader.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in trained if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices, lr=0.0, weight_decay=recipe.weight_decay)
    return muon, torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)


def _loss(reader: TinyReader, batch: Batch) -> tuple[torch.Tensor, float]:
    """Weighted cross-entropy over the targets, and the share of look-ups that come out right."""
    picked = batch.kinds > 0
    logits = reader.logits(reader.hidden(batch.ids, batch.positions, batch.mask)[picked])
    targets, weights, look_ups = batch.targets[picked], batch.weights[picked], batch.look_ups[picked]
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    right = (logits.argmax(-1) == targets)[look_ups]
    return loss, right.float().mean().item()


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks instead of returning them, which halves the time of small training steps."""
    trim_threshold, mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(trim_threshold, 2_000_000_000)
    mallopt(mmap_max, 0)
