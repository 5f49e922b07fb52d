"""Text to tokens: a model's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kv_transition.data.chat_template import TEMPLATE_DATE, chat_template, compile_template, without_system
from kv_transition.data.prompts import Message, Prompt
from kv_transition.errors import UserError
from kv_transition.files import canonical_json, sha256_file, sha256_text

#: What the transformers library makes of decoded text, in this order, where a model's tokenizer_config.json sets
#: `clean_up_tokenization_spaces`.
CLEAN_UPS = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(frozen=True)
class PromptIds:
    """The tokens of a prompt; the first `context_len` of them reach to the end of the context (0: no context)."""

    ids: list[int]
    context_len: int


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where the file is absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); fetch the model's files again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; fetch the model's files again")
    return value


def _token_text(value: object) -> str | None:
    """A special token as tokenizer_config.json writes it: text, or an object that holds the text."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


class ModelTokenizer:
    """The tokenizer and chat template of a model folder.

    Parameters
    ----------
    folder : holds tokenizer.json; tokenizer_config.json, chat_template.jinja, generation_config.json and config.json
        are read where present.

    Attributes
    ----------
    has_chat_template : False means that :meth:`render` joins the contents with newlines.
    eos_ids : every token that ends an answer, from generation_config.json, config.json and tokenizer_config.json.
    byte_ids : tokens that stand for single bytes, in tokenizers that have such.
    content_hash : changes with anything that can change the tokens of a prompt, shortened ones included.

    Notes
    -----
    The name of a special token inside a context or a question ("<|eot_id|>") is read as that token, as the model's
    own tokenizer does: the chat template is text too, and the two cannot be told apart after rendering.
    """

    def __init__(self, folder: str | Path) -> None:
        from tokenizers import Tokenizer

        self.folder = Path(folder)
        source = self.folder / "tokenizer.json"
        if not source.is_file():
            raise UserError(
                f"{source}: no such file; model.path must be a folder that holds the model's tokenizer.json"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(source))
        except Exception as error:  # the tokenizers library raises nothing more specific
            raise UserError(f"{source}: not a tokenizer ({error}); fetch the model's files again") from None
        # A file may carry the limits of the training run; a prompt must never be cut or filled silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_json(self.folder / "tokenizer_config.json")
        self._special = {
            key: text
            for key in sorted(config)
            if key.endswith("_token") and (text := _token_text(config[key]))
        }
        template = chat_template(self.folder, config)
        self.has_chat_template = template is not None
        self._template = None if template is None else compile_template(template, self.folder)
        self._cleans_up = config.get("clean_up_tokenization_spaces") is True
        self.eos_ids = self._end_tokens()
        bytes_named = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.byte_ids = frozenset(token for token in bytes_named if token is not None)
        self._unknown = self._unknown_id(_read_json(source)["model"])
        self._begin = self._begin_text()
        date = TEMPLATE_DATE.date().isoformat()
        self.content_hash = sha256_text(
            canonical_json(
                [sha256_file(source), template, self._special, self.eos_ids, date, self._cleans_up]
            )
        )

    @property
    def name(self) -> str:
        """The folder's name and the beginning of the content hash."""
        return f"{self.folder.resolve().name}@{self.content_hash[:12]}"

    @property
    def provenance(self) -> dict[str, str]:
        """What an answer's row keeps of it: the hash, and that there is no chat template where there is none."""
        absent = {} if self.has_chat_template else {"chat_template": "none"}
        return {"tokenizer_hash": self.content_hash, **absent}

    def _end_tokens(self) -> tuple[int, ...]:
        found: set[int] = set()
        for file in ("generation_config.json", "config.json"):
            value = _read_json(self.folder / file).get("eos_token_id")
            found.update(value if isinstance(value, list) else [] if value is None else [value])
        if "eos_token" in self._special:
            named = self._tokenizer.token_to_id(self._special["eos_token"])
            found.update([] if named is None else [named])
        return tuple(sorted(found))

    def _unknown_id(self, model: dict[str, Any]) -> int | None:
        """The id that the tokenizer itself emits for what it does not know (byte-level ones have none)."""
        if model.get("unk_id") is not None:
            return int(model["unk_id"])
        text = model.get("unk_token")
        return self._tokenizer.token_to_id(text) if text else None

    def _begin_text(self) -> str:
        """The token a prompt without a template starts with, where the tokenizer would put one itself."""
        token = self._special.get("bos_token")
        ids = self._tokenizer.encode("a").ids
        return token if token and ids[:1] == [self._tokenizer.token_to_id(token)] else ""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text the model is given.

        A template that refuses a system message gets it at the head of the first user message. Without a template:
        the contents, each followed by a newline.

        Raises
        ------
        UserError
            When the template refuses the chat.
        """
        if self._template is None:
            return (
                self._begin
                + "\n".join(message["content"] for message in messages)
                + "\n" * add_generation_prompt
            )

        def fill(chat: Sequence[Message]) -> str:
            text: str = self._template.render(  # type: ignore[union-attr]
                messages=list(chat),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
            return text

        # A template is a program: besides refusing a chat it may stumble over it with any error.
        try:
            return fill(messages)
        except Exception as error:
            problem = error
        if len(messages) > 1 and messages[0]["role"] == "system":
            try:
                return fill(without_system(messages))
            except Exception as error:
                problem = error
        raise UserError(
            f"{self.folder}: the chat template refuses the prompt: {problem}; give another chat_template.jinja"
        )

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids; by default none is added (the template holds the special tokens)."""
        # Unlike `encode`, this lets other threads run meanwhile; it takes half the time too, as no offsets are kept.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens skipped."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def plain_text(self, ids: Sequence[int]) -> str:
        """Text of token ids as the transformers library decodes it: special tokens skipped, and for some models spaces
        before punctuation taken away."""
        text = self.decode(ids)
        for spaced, cleaned in CLEAN_UPS if self._cleans_up else ():
            text = text.replace(spaced, cleaned)
        return text

    def token_starts(self, text: str) -> list[int]:
        """Where in the text each of its tokens begins, in characters."""
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def last_ids(self, texts: Sequence[str]) -> frozenset[int]:
        """The last token of each text; a text without tokens (white space, to some tokenizers) has none."""
        return frozenset(ids[-1] for text in texts if (ids := self.encode(text)))

    def prompt_texts(self, prompt: Prompt) -> tuple[str, str]:
        """The rendered prompt up to the end of the context, and the rest of it ("" and all of it without a context).

        The end is found by rendering the chat a second time with a mark behind the context. The mark stands between
        the context and the question, out of reach of a template that strips contents.
        """
        whole = self.prompt_text(prompt)
        if prompt.context_end is None:
            return "", whole
        if not prompt.wrapped:
            end = len(self._begin) + prompt.context_end
            return whole[:end], whole[end:]
        last = prompt.messages[-1]
        before, after = last["content"][: prompt.context_end], last["content"][prompt.context_end :]
        number = 0
        # Private-use characters at both ends: the mark cannot overlap itself or be met inside the text by accident.
        while (mark := f"\ue000{number}\ue001") in whole:
            number += 1
        marked = self.render([*prompt.messages[:-1], {**last, "content": before + mark + after}])
        head, _, tail = marked.partition(mark)
        if head + tail != whole:
            raise UserError(
                f"{self.folder}: the chat template rewrites the user's message, so the end of the context cannot be "
                "found in it; give a chat_template.jinja that copies the content"
            )
        return head, tail

    def prompt_ids(self, prompt: Prompt, scope: Literal["prompt", "context"] = "prompt") -> PromptIds:
        """Tokens of a prompt.

        Parameters
        ----------
        scope : "prompt" tokenises the whole text at once, as LongBench and every server do (`context_len` is 0).
            "context", where the two are read one after the other, tokenises what reaches to the end of the context and
            the rest for themselves: no token lies across the border, so there can be a few more of them, and a tokenizer
            that puts a space before every text (SentencePiece's dummy prefix) puts one before the second part too.
        """
        if scope == "prompt":
            return PromptIds(self.encode(self.prompt_text(prompt)), 0)
        head, tail = self.prompt_texts(prompt)
        context = self.encode(head)
        return PromptIds(context + self.encode(tail), len(context))

    def prompt_text(self, prompt: Prompt) -> str:
        """The text that the model is given: the rendered chat, or the message itself where it is not wrapped."""
        if prompt.wrapped:
            return self.render(prompt.messages)
        return self._begin + prompt.messages[-1]["content"]

    def unknown_share(self, ids: Sequence[int]) -> float:
        """Share of tokens that stand for text outside the vocabulary, 0 to 1."""
        if self._unknown is None or not ids:
            return 0.0
        return sum(token == self._unknown for token in ids) / len(ids)

    def count(self, prompt: Prompt) -> int:
        """Tokens of the rendered prompt, tokenised at once."""
        return len(self.prompt_ids(prompt).ids)
