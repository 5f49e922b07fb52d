"""The tiny reader's model folder, as Hugging Face and the reference engine read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kv_transition.data.synthetic import SPECIAL_TOKENS, VOCABULARY
from kv_transition.files import atomic_path, write_json

if TYPE_CHECKING:
    from kv_transition.tiny_reader.model import TinyReader

#: System text, <user>, user text, <assistant>: three tokens on top of the texts.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{% elif message['role'] == 'assistant' %}<assistant>{% endif %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def export(reader: TinyReader, out_dir: str | Path) -> None:
    """Write weights, config, tokenizer and generation settings; the card is written by the training."""
    from safetensors.torch import save_file

    folder = Path(out_dir)
    weights = {name: tensor.detach().contiguous() for name, tensor in reader.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    config = reader.config.to_dict()
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "do_sample": False},
    )
    write_tokenizer(folder, config["max_position_embeddings"])


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write the word-level tokenizer: words as they stand, each punctuation mark a token, white space ignored."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    with atomic_path(folder / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
