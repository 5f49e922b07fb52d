"""Text to tokens: the model's own tokenizer and chat template, and the counters that define prompt length."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kv_transition.data.chat_template import TEMPLATE_DATE, chat_template, compile_template, without_system
from kv_transition.data.prompts import Message, Prompt
from kv_transition.errors import UserError
from kv_transition.files import canonical_json, sha256_file, sha256_text

logger = logging.getLogger(__name__)

FALLBACKS = ("error", "approximate")

#: The counter of this name takes a record's own `length`.
RECORD_LENGTH = "length"

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


class TokenCounter(Protocol):
    """Counts the tokens of a prompt; `name` says with what."""

    @property
    def name(self) -> str: ...

    def count(self, prompt: Prompt) -> int: ...


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
    content_hash : changes with anything that can change the tokens of a prompt.

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
            canonical_json([sha256_file(source), template, self._special, self.eos_ids, date])
        )

    @property
    def name(self) -> str:
        """The folder's name and the beginning of the content hash."""
        return f"{self.folder.resolve().name}@{self.content_hash[:12]}"

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
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
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

        A prompt that is not wrapped is its message's text, begun as the tokenizer itself begins a text.
        The end is found by rendering the chat a second time with a mark behind the context. The mark stands between
        the context and the question, out of reach of a template that strips contents.
        """
        if not prompt.wrapped:
            text, end = prompt.messages[-1]["content"], prompt.context_end
            return ("", self._begin + text) if end is None else (self._begin + text[:end], text[end:])
        whole = self.render(prompt.messages)
        if prompt.context_end is None:
            return "", whole
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

    def prompt_ids(self, prompt: Prompt) -> PromptIds:
        """Tokens of a prompt, the part up to the end of the context and the rest tokenised separately.

        Both scopes of compression use these ids, so both count the same tokens. A tokenizer that puts a space before
        every text (SentencePiece's dummy prefix) puts one before the second part too.
        """
        head, tail = self.prompt_texts(prompt)
        context = self.encode(head)
        return PromptIds(context + self.encode(tail), len(context))

    def unknown_share(self, ids: Sequence[int]) -> float:
        """Share of tokens that stand for text outside the vocabulary, 0 to 1."""
        if self._unknown is None or not ids:
            return 0.0
        return sum(token == self._unknown for token in ids) / len(ids)

    def count(self, prompt: Prompt) -> int:
        """Tokens of the rendered prompt, counted as :meth:`prompt_ids` makes them."""
        return len(self.prompt_ids(prompt).ids)


def _contents(prompt: Prompt) -> str:
    return "\n".join(message["content"] for message in prompt.messages)


@dataclass(frozen=True)
class TiktokenCounter:
    """Tokens of the messages' contents, joined with newlines, in a tiktoken encoding; the names of special tokens
    are ordinary text."""

    name: str
    encoding: Any

    def count(self, prompt: Prompt) -> int:
        """Tokens of the contents."""
        return len(self.encoding.encode_ordinary(_contents(prompt)))


#: Han, kana and hangul with their punctuation and full-width forms: about one token a character.
_CJK = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class ApproximateCounter:
    """Length without a tokenizer: ceil(1.15 x CJK characters + all other characters / 4.4).

    Measured on records of 18 LongBench tasks: 0.7 to 1.3 times cl100k_base; against o200k_base the same for English
    and code, but up to 1.6 times for Chinese, where tokenizers differ most among themselves. Enough to sort the
    examples of one task into length bins, not for budgets as a share of the prompt.
    """

    name: str

    def count(self, prompt: Prompt) -> int:
        """Estimated tokens of the contents."""
        text = _contents(prompt)
        cjk = len(_CJK.findall(text))
        return math.ceil(1.15 * cjk + (len(text) - cjk) / 4.4)


@dataclass(frozen=True)
class RecordLength:
    """Length as the record itself gives it: words, in Chinese characters."""

    name: str = RECORD_LENGTH

    def of(self, record: Mapping[str, Any], where: str) -> int:
        """The record's `length`.

        Raises
        ------
        UserError
            Naming the record by `where` when it has none, or one below 1.
        """
        length = record.get("length")
        if not isinstance(length, int) or length < 1:
            raise UserError(
                f"{where}: length is {length!r}, and tokenizer.name: length needs a whole number from 1 up; add it, or name "
                "a tokenizer"
            )
        return length


def _load(name: str, model_path: str | None) -> TokenCounter:
    if name == "model":
        if model_path is None:
            raise UserError(
                "tokenizer.name: model needs model.path, the folder with the model's tokenizer.json; set it or name "
                "a tiktoken encoding"
            )
        return ModelTokenizer(model_path)
    import tiktoken

    try:
        return TiktokenCounter(name, tiktoken.get_encoding(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer.name: the file of {name} could not be fetched ({type(error).__name__}); set TIKTOKEN_CACHE_DIR "
            "to a folder that holds it, or tokenizer.fallback to approximate"
        ) from None


def _check_name(name: str) -> None:
    if name in ("model", RECORD_LENGTH):
        return
    import tiktoken

    known = tiktoken.list_encoding_names()
    if name not in known:
        raise UserError(
            f"tokenizer.name: {name!r} is unknown; give model (the model's own), length (the records' own) or one of "
            f"{', '.join(known)}"
        )


def load_counter(name: str, model_path: str | None, fallback: str) -> TokenCounter | RecordLength:
    """The counter that defines prompt length, hence the bins.

    Parameters
    ----------
    name : "model" (the tokenizer in `model_path`, on the rendered prompt), a tiktoken encoding, or "length" (the
        records' own `length`).
    fallback : what to do when it cannot be loaded: "error", or "approximate" (:class:`ApproximateCounter`, whose
        name says so, with a warning in the log).

    Raises
    ------
    UserError
        For an unknown name or fallback, and with fallback "error" for a tokenizer that cannot be loaded.
    """
    if fallback not in FALLBACKS:
        raise UserError(f"tokenizer.fallback: {fallback!r} is unknown; give {' or '.join(FALLBACKS)}")
    _check_name(name)
    if name == RECORD_LENGTH:
        return RecordLength()
    try:
        return _load(name, model_path)
    except UserError as error:
        if fallback == "error":
            raise
        logger.warning("token counts are APPROXIMATE: %s", error)
        return ApproximateCounter(f"approximate:{name}")
