"""The reference engine answers as transformers with kvpress does: same positions kept, same logits, same tokens.

kvpress runs its own way, one cell at a time: its press hooked into transformers' model for the prefill, then a greedy
loop at true positions, as its pipeline does. The reference engine answers all cells from one prefill. On both sides
the kept positions are recovered from the cache itself: each kept key is looked up among the keys of the full cache.

Scores that differ by less than rounding may be ordered either way: a word's key has the same norm wherever it stands
in layer 0. Where a cut falls between such scores, the reference engine's side goes on with kvpress's choice, so that the
logits and tokens can be compared all the same; the tests count how often (`Follower.ties`).

`random` has no part in this: kvpress draws from torch's generator, this project from a hash of the example.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kv_transition.data.prompts import Prompt, build_prompt
from kv_transition.data.synthetic import TASKS, make_records
from kv_transition.engines import evictions
from kv_transition.engines.base import Cell, Decoding
from kv_transition.engines.greedy import Ending, PrunedPrompt, decode_cells
from kv_transition.engines.llama import Llama
from kv_transition.engines.reference import ReferenceEngine
from kv_transition.engines.sweep import Compressor, Split, split_prompt
from kv_transition.engines.weights import read_config, read_weights
from kv_transition.methods import resolve_parameters
from kv_transition.schema import Settings

pytestmark = pytest.mark.kvpress

WINDOW, KERNEL, SINKS = 8, 5, 4
CHANGED_PARAMETERS = {"snapkv": {"window": WINDOW, "kernel": KERNEL}, "streaming_llm": {"n_sink": SINKS}}
PARAMETERS = resolve_parameters(CHANGED_PARAMETERS)
METHODS = ("snapkv", "streaming_llm", "observed_attention", "tova", "knorm")
BUDGETS = (16, 24, 32, 48, 64)
MODE = ("prompt", "compressed")
MODES = (("prompt", "full"), MODE, ("context", "compressed"))
#: Six tokens, whatever they are.
SIX_STEPS = Ending(6, (), frozenset(), lambda tokens: "")
#: A GQA Llama whose answers depend on its cache (initializer_range).
SHAPE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "max_position_embeddings": 1024,
}
GRID = [Cell(method, budget) for method, budget in itertools.product(METHODS, BUDGETS)]


@dataclass
class Trace:
    """What one cell did: positions kept (layer, KV head), tokens, and logits of every step."""

    kept: list[list[frozenset[int]]]
    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)


def positions_by_key(full):
    """Where each key of a full cache stands, bit for bit, by layer and KV head; full: per layer (K, positions, d)."""
    return [[{row.tobytes(): at for at, row in enumerate(head)} for head in whole] for whole in full]


def positions_kept(cache, tables):
    """Look each key of a cache, per layer (K, kept, d), up among the full cache's keys.

    A key that is not among them counts as position -1.
    """
    return [
        [frozenset(table.get(row.tobytes(), -1) for row in head) for table, head in zip(*layer, strict=True)]
        for layer in zip(tables, cache, strict=True)
    ]


class Follower(Compressor):
    """Takes kvpress's choice among positions whose scores tie; everything else is the engine's own compressor."""

    def __init__(self, cells, split, theirs: dict[Cell, Trace]):
        super().__init__(cells, split, PARAMETERS)
        self.theirs = theirs
        self.ties: list[tuple[Cell, int, int]] = []

    def cut(self, cache, layer, scores):
        keys, values = super().cut(cache, layer, scores)
        if cache.keep is None or cache.cell not in self.theirs:
            return keys, values
        own = scores[cache.cell.method, cache.cell.replicate]
        keys, values = keys.copy(), values.copy()
        for head, other in enumerate(self.theirs[cache.cell].kept[layer.index]):
            mine = set(evictions.top_positions(own, cache.keep)[head].tolist())
            disputed = own[head, sorted(mine ^ other)]
            if (
                len(disputed)
                and len(other) == len(mine)
                and np.ptp(disputed) <= 2e-6 * np.abs(disputed).max()
            ):
                self.ties.append((cache.cell, layer.index, head))
                keys[head], values[head] = layer.keys[head, sorted(other)], layer.values[head, sorted(other)]
        return keys, values


def reference_traces(
    model,
    ids,
    context_len,
    cells,
    mode,
    theirs=None,
    ending=SIX_STEPS,
    ties=None,
    off_by=0,
    alter=lambda caches: None,
) -> dict[Cell, Trace]:
    """The reference engine's side; `off_by` and `alter` plant the errors of the negative controls."""
    split = split_prompt(len(ids), context_len, *mode)
    compressor = Follower([Cell("full"), *cells], split, theirs or {})
    first = model.prefill(ids[: split.press_len], compressor, "example", compressor.needs_received)
    caches = compressor.caches
    if ties is not None:
        ties += compressor.ties
    for cache in caches:
        cache.check()
        if cache.error:
            raise cache.error
    alter(caches)
    tables = positions_by_key([keys for keys, _ in caches[0].layers])
    traces = [Trace(positions_kept([keys for keys, _ in cache.layers], tables)) for cache in caches]
    calls = []

    def extend(groups, tokens, positions):
        rows = [cell for group in groups for _, cell in group.rows]
        logits = model.extend(groups, tokens, positions + off_by)
        calls.append((tokens, dict(zip(rows, logits, strict=True))))
        return logits

    tail = ids[split.press_len :]
    layers = {number: cache.layers for number, cache in enumerate(caches)}
    pruned = PrunedPrompt(layers, tail, split.press_len, first)
    (answers,) = decode_cells(SimpleNamespace(extend=extend), [pruned], ending)
    for number, trace in enumerate(traces):
        trace.tokens = answers[number].tokens
        logits = [rows[number] for _, rows in calls if number in rows]
        trace.logits = ([first, *logits] if not tail else logits)[-len(trace.tokens) :]
    return {cache.cell: trace for cache, trace in zip(caches, traces, strict=True)}


class KVPress:
    """kvpress's side: one cell at a time."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        load = AutoModelForCausalLM.from_pretrained
        self.models = {
            kind: load(folder, attn_implementation=kind, dtype=torch.float32).eval()
            for kind in ("sdpa", "eager")
        }

    def press(self, cell: Cell, keep: int, press_len: int):
        import kvpress

        ratio = 1 - (keep + 0.5) / press_len
        match cell.method:
            case "snapkv":
                window = min(WINDOW, press_len - 1)
                return kvpress.SnapKVPress(ratio, window_size=window, kernel_size=KERNEL)
            case "streaming_llm":
                return kvpress.StreamingLLMPress(ratio, n_sink=SINKS)
            case "observed_attention":
                return kvpress.ObservedAttentionPress(ratio)
            case "tova":
                return kvpress.TOVAPress(ratio)
            case "knorm":
                return kvpress.KnormPress(ratio)
        raise AssertionError(cell)

    def traces(self, ids, context_len, cells, mode, ending=SIX_STEPS) -> dict[Cell, Trace]:
        import torch

        split = split_prompt(len(ids), context_len, *mode)
        self.tables = {}
        with torch.inference_mode():
            return {cell: self.trace(ids, split, cell, ending) for cell in [Cell("full"), *cells]}

    def trace(self, ids, split: Split, cell: Cell, ending: Ending) -> Trace:
        import contextlib

        import torch
        from transformers import DynamicCache

        kind = "eager" if cell.method == "observed_attention" else "sdpa"
        model, prompt = self.models[kind], torch.tensor([ids])
        if kind not in self.tables:
            cache = DynamicCache()
            model(prompt[:, : split.press_len], past_key_values=cache, logits_to_keep=1)
            self.tables[kind] = positions_by_key([layer.keys[0].numpy() for layer in cache.layers])
        requested = split.requested(cell)
        hooks = contextlib.nullcontext()
        if requested is not None:
            hooks = self.press(cell, requested - split.refed, split.press_len)(model)
        cache = DynamicCache()
        with hooks:
            output = model(prompt[:, : split.press_len], past_key_values=cache, logits_to_keep=1)
        kept = positions_kept([layer.keys[0].numpy() for layer in cache.layers], self.tables[kind])
        trace, start = Trace(kept), split.press_len
        tokens = prompt[:, start:]
        for _ in range(ending.max_new_tokens):
            if tokens.shape[1]:
                positions = torch.arange(start, start + tokens.shape[1])[None]
                output = model(tokens, past_key_values=cache, position_ids=positions, logits_to_keep=1)
                start += tokens.shape[1]
            trace.logits.append(output.logits[0, -1].numpy())
            trace.tokens.append(int(trace.logits[-1].argmax()))
            if trace.tokens[-1] in ending.eos_ids:
                break
            tokens = torch.tensor([trace.tokens[-1:]])
        return trace


def differences(ours: dict[Cell, Trace], theirs: dict[Cell, Trace]) -> list[str]:
    """Every way in which two sets of traces differ, cell by cell."""
    found = []
    for cell, own in ours.items():
        other = theirs[cell]
        if own.kept != other.kept:
            found.append(f"{cell.method} {cell.label}: kept positions")
        if own.tokens != other.tokens:
            found.append(f"{cell.method} {cell.label}: tokens")
        # Where the tokens differ, one answer may end before the other.
        steps = zip(own.logits, other.logits, strict=own.tokens == other.tokens)
        if any(np.abs(a - b).max() > 1e-3 * b.std() for a, b in steps):
            found.append(f"{cell.method} {cell.label}: logits")
    return found


def random_ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 200, length).tolist()


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kvpress_random(random_model) -> KVPress:
    return KVPress(random_model)


@pytest.fixture(scope="module")
def ours_random(random_model) -> Llama:
    return Llama(read_config(random_model), read_weights(random_model))


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("length", [72, 130, 257, 512])
def test_every_cell_keeps_the_same_positions_and_gives_the_same_logits_and_tokens(
    ours_random, kvpress_random, length, mode
):
    ids, context_len = random_ids(length, length), length - 7
    theirs = kvpress_random.traces(ids, context_len, GRID, mode)
    ties = []
    ours = reference_traces(ours_random, ids, context_len, GRID, mode, theirs, ties=ties)
    assert differences(ours, theirs) == []
    assert all(cell.method == "knorm" and layer == 0 for cell, layer, _ in ties)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 8, "head_dim": None, "rms_norm_eps": 1e-3},
        {"dtype": "bfloat16"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_variants_of_the_architecture_give_the_logits_that_transformers_gives(tmp_path, changes):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    dtype = getattr(torch, changes.pop("dtype", "float32"))
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = random_ids(3, 400)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].numpy()
    ours = Llama(read_config(tmp_path), read_weights(tmp_path)).prefill(ids, lambda layer: None)
    assert np.abs(ours - expected).max() <= 1e-3 * expected.std()


@pytest.fixture(scope="module")
def tiny_reader(root) -> Path:
    return root / "resources" / "tiny-reader"


@pytest.fixture(scope="module")
def kvpress_tiny(tiny_reader) -> KVPress:
    return KVPress(tiny_reader)


@pytest.fixture(scope="module")
def tiny_engine(tiny_reader) -> ReferenceEngine:
    return ReferenceEngine(tiny_reader, "prompt", "compressed", CHANGED_PARAMETERS)


def documents(count: int, shortest: int, longest: int) -> Iterator[Prompt]:
    """Prompts of `shortest` to `longest` tokens of the tiny reader, the tasks in turn."""
    records = [make_records(task, -(-count // len(TASKS)), shortest, longest, seed=5) for task in TASKS]
    for number in range(count):
        task, record = TASKS[number % len(TASKS)], records[number % len(TASKS)][number // len(TASKS)]
        yield build_prompt(task, record["input"], record["context"])


DEFAULTS = Settings()
DEFAULT_GRID = [Cell(method, budget) for method, budget in itertools.product(METHODS, DEFAULTS.kv.budgets)]
#: Documents that every cell of the default grid is compared on, at least.
ENOUGH = 60


def test_the_default_grid_is_the_one_that_is_compared():
    kv = DEFAULTS.kv
    assert set(kv.methods) - {"random"} <= set(METHODS)
    assert (kv.scope, kv.first_token) == MODE
    assert (kv.window, kv.kernel, kv.n_sink) == (WINDOW, KERNEL, SINKS)


def elsewhere(ties):
    """Ties that are not those of key norms in layer 0."""
    return [tie for tie in ties if (tie[0].method, tie[1]) != ("knorm", 0)]


def test_the_tiny_reader_answers_the_default_grid_as_kvpress_does(tiny_engine, kvpress_tiny):
    """Every active cell against kvpress's; inactive cells are copies of the full answer.

    The first documents see the whole grid and are answered at the default length. Large budgets are active on few of
    them, so that longer documents follow, until every cell was compared on `ENOUGH`.
    """
    model, tokenizer, config = tiny_engine.model, tiny_engine.tokenizer, tiny_engine.config
    largest, eos = max(DEFAULTS.kv.budgets), frozenset(tokenizer.eos_ids)
    prompts = itertools.chain(documents(ENOUGH, 64, 1024), documents(ENOUGH, largest + 1, largest + 128))
    compared, copied, ties, found, answers = Counter(), 0, [], [], []
    for number, prompt in enumerate(prompts):
        due = [cell for cell in DEFAULT_GRID if number < ENOUGH or compared[cell] < ENOUGH]
        if not due:
            break
        limit = DEFAULTS.decoding.max_new_tokens if number < ENOUGH else SIX_STEPS.max_new_tokens
        ending = Ending(limit, (), eos, tokenizer.decode)
        prompt_ids = tokenizer.prompt_ids(prompt, MODE[0])
        ids = prompt_ids.ids
        active = [cell for cell in due if cell.budget < len(ids)]
        theirs = kvpress_tiny.traces(ids, prompt_ids.context_len, active, MODE, ending)
        replayed = []
        ours = reference_traces(
            model, ids, prompt_ids.context_len, active, MODE, theirs, ending, ties=replayed
        )
        found += [f"document {number}: {difference}" for difference in differences(ours, theirs)]
        answers += [trace.tokens != theirs[Cell("full")].tokens for trace in theirs.values()]

        swept = tiny_engine.sweep(prompt, [Cell("full"), *due], Decoding(limit), f"document {number}")
        for cell, result in zip([Cell("full"), *due], swept, strict=True):
            assert result.failure is None
            if cell in theirs and cell not in {tied for tied, _, _ in replayed}:
                text = tokenizer.decode([token for token in theirs[cell].tokens if token not in eos])
                assert result.text == text, (number, cell)
            if cell in theirs:
                assert result.copied_from is None
            else:
                assert (result.copied_from, result.text) == ("full", swept[0].text), (number, cell)
                assert (result.kv.active, result.kv.kept_min) == (False, len(ids))
                copied += 1
        compared.update(active)
        ties += replayed
    cells, tied = sum(compared.values()), Counter(cell.method for cell, _, _ in ties)
    print(f"{number} documents, {cells} cells compared, {copied} copied, ties {dict(tied)}")
    assert found == []
    assert set(compared) == set(DEFAULT_GRID)
    assert min(compared.values()) >= ENOUGH
    assert copied > 0
    # Else equal answers would prove nothing.
    assert sum(answers) > 0.25 * len(answers)
    # In layer 0 all keys of this model have the same norm, and rounding chooses among them. Elsewhere it rarely has to: where
    # average-pooling gives the neighbours of a single peak the same score, or, on some processors, two norms are that near.
    heads = cells * config.num_hidden_layers * config.num_key_value_heads
    assert len(elsewhere(ties)) < 0.01 * heads


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != MODE], ids="-".join)
def test_the_tiny_reader_answers_as_kvpress_does_in_the_other_modes(tiny_engine, kvpress_tiny, mode):
    found, compared, ties = [], 0, []
    for number, prompt in enumerate(documents(20, 64, 320)):
        prompt_ids = tiny_engine.tokenizer.prompt_ids(prompt, mode[0])
        ids, context_len = prompt_ids.ids, prompt_ids.context_len
        split = split_prompt(len(ids), context_len, *mode)
        cells = [Cell(*cell) for cell in itertools.product(METHODS, (16, 48)) if split.is_active(Cell(*cell))]
        theirs = kvpress_tiny.traces(ids, context_len, cells, mode)
        ours = reference_traces(tiny_engine.model, ids, context_len, cells, mode, theirs, ties=ties)
        found += [f"document {number}: {difference}" for difference in differences(ours, theirs)]
        compared += len(cells)
    print(f"{compared} cells compared, ties {dict(Counter(cell.method for cell, _, _ in ties))}")
    assert found == []
    assert compared >= 0.9 * 20 * 2 * len(METHODS)
    assert len(elsewhere(ties)) < 0.01 * compared * 6


def test_the_answers_that_are_compared_depend_on_the_cache(ours_random):
    """Else equal answers would prove nothing."""
    traces = reference_traces(ours_random, random_ids(512, 512), 505, GRID, MODE)
    full = traces.pop(Cell("full"))
    answers = {tuple(trace.tokens) for trace in traces.values()}
    assert len(answers) >= 20
    assert tuple(full.tokens) not in answers


CONTROL_CELLS = [cell for cell in GRID if cell.method != "knorm"]


@dataclass
class Control:
    """A prompt that both sides answer alike, until an error is planted on one of them."""

    name: str
    model: Llama
    ids: list[int]
    theirs: dict[Cell, Trace]

    def traces(self, **error) -> dict[Cell, Trace]:
        return reference_traces(self.model, self.ids, 0, CONTROL_CELLS, MODE, self.theirs, **error)

    def noticed(self, **error) -> list[str]:
        return differences(self.traces(**error), self.theirs)


@pytest.fixture(scope="module", params=["random", "tiny"])
def control(request) -> Control:
    if request.param == "random":
        model, ids = request.getfixturevalue("ours_random"), random_ids(130, 130)
    else:
        engine = request.getfixturevalue("tiny_engine")
        model, ids = engine.model, engine.tokenizer.prompt_ids(next(documents(1, 130, 130))).ids
    theirs = request.getfixturevalue(f"kvpress_{request.param}").traces(ids, 0, CONTROL_CELLS, MODE)
    return Control(request.param, model, ids, theirs)


def test_without_a_planted_error_nothing_is_noticed(control):
    assert control.noticed() == []


def test_two_cells_swapped_are_noticed(control):
    traces = control.traces()
    one, two = Cell("snapkv", 32), Cell("tova", 32)
    traces[one], traces[two] = traces[two], traces[one]
    found = differences(traces, control.theirs)
    assert {"snapkv 32: kept positions", "tova 32: kept positions"} <= set(found)
    assert {difference.partition(":")[0] for difference in found} == {"snapkv 32", "tova 32"}


def test_positions_off_by_one_are_noticed_in_every_cell(control):
    found = control.noticed(off_by=1)
    assert len([difference for difference in found if difference.endswith("logits")]) == len(control.theirs)


def test_one_replaced_position_of_one_head_is_noticed(control):
    victim = Cell("snapkv", 32)

    def replace_one(caches):
        full = caches[0].layers[1]
        cache = next(cache for cache in caches if cache.cell == victim)
        positions = range(len(control.ids) - 1)
        absent = next(at for at in positions if at not in control.theirs[victim].kept[1][0])
        for own, whole in zip(cache.layers[1], full, strict=True):
            own[0, 3] = whole[0, absent]

    found = control.noticed(alter=replace_one)
    assert "snapkv 32: kept positions" in found
    # The tiny reader's attention is sharp: a position that it does not look at changes no logits.
    assert control.name == "tiny" or "snapkv 32: logits" in found
    assert all(difference.startswith("snapkv 32:") for difference in found)


def test_keys_of_a_neighbour_layer_are_noticed(control):
    victim = Cell("tova", 48)

    def take_the_next_layers_keys(caches):
        cache = next(cache for cache in caches if cache.cell == victim)
        cache.layers[1] = (cache.layers[2][0], cache.layers[1][1])

    found = control.noticed(alter=take_the_next_layers_keys)
    assert {"tova 48: kept positions", "tova 48: logits"} <= set(found)
    assert all(difference.startswith("tova 48:") for difference in found)
