"""Small Llama models with random weights, written as a model folder with numpy alone."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from kv_transition.data.prompts import Prompt

WORDS = [f"w{number}" for number in range(60)]
SPECIAL = ["<unk>", "<eos>", "<user>", "<answer>"]
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}<answer>"

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 600,
    "tie_word_embeddings": True,
    "vocab_size": len(WORDS) + len(SPECIAL),
    "eos_token_id": 1,
}


def random_weights(config: dict, seed: int = 0, scale: float = 0.4) -> dict[str, np.ndarray]:
    """Weights with biases on q, k, v; large enough that answers depend on the cache."""
    rng = np.random.RandomState(seed)  # its stream is frozen: the golden answers depend on it
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        root = f"model.layers.{layer}"
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{root}.self_attn.{part}_proj.weight"] = (rows, hidden)
            shapes[f"{root}.self_attn.{part}_proj.bias"] = (rows,)
        shapes[f"{root}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{root}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{root}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{root}.mlp.down_proj.weight"] = (hidden, inner)
    weights = {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in shapes.items()}
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = np.ones(hidden, np.float32)
    weights["model.norm.weight"] = np.ones(hidden, np.float32)
    return weights


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer over w0 .. w59, with a chat template that marks user and answer."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_random_llama(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Write a model folder; `changes` replace or (with None) remove keys of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights({**CONFIG, **changes}, seed), folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def random_prompt(seed: int, context_words: int, question_words: int = 6) -> Prompt:
    """A prompt of random words; with the template's tokens it has context + question + 2 tokens."""
    words = np.random.RandomState(seed).choice(WORDS, context_words + question_words)
    context, question = " ".join(words[:context_words]), " ".join(words[context_words:])
    return Prompt(({"role": "user", "content": f"{context} {question}"},), len(context))
