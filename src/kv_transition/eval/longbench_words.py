"""The words in which LongBench's F1 and its Chinese metrics compare texts.

Source: THUDM/LongBench at 2e00731 (`LongBench/metrics.py`).
"""

from __future__ import annotations

import re
import string

from kv_transition.data.words import chinese_words

#: Punctuation that the official code deletes from Chinese words besides the ASCII one: first and last code points.
_CHINESE_PUNCTUATION = (
    *((0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027)),  # –—, ‘’, ‛“”„‟, …‧
    *(
        (0x3001, 0x3003),
        (0x300B, 0x3011),
        (0x3014, 0x301F),
    ),  # 、。〃, 》「」『』【】, 〔 to 〟; but neither 〈 nor 《
    *((0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F)),  # 〰, 〾〿, ﹏
    *((0xFF01, 0xFF0D), (0xFF0F, 0xFF0F), (0xFF1A, 0xFF20)),  # ！ to －, ／, ： to ＠
    *((0xFF3B, 0xFF40), (0xFF5B, 0xFF64)),  # ［ to ｀, ｛ to ､
)

_ASCII_PUNCTUATION = string.punctuation.encode("ascii")
_NO_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_PUNCTUATION = _NO_ASCII_PUNCTUATION | {
    code: None for first, last in _CHINESE_PUNCTUATION for code in range(first, last + 1)
}
_ARTICLES = re.compile(r"\b(?:an?|the)\b")
_ARTICLE_WORDS = frozenset({"a", "an", "the"})


def normalized_words(text: str) -> list[str]:
    """Words of a text between white space: lower case, without ASCII punctuation and the words a, an, the.

    Punctuation is deleted, not replaced ("co-op" is "coop"), and only the ASCII one.
    """
    lower = text.lower()
    if lower.isascii():
        # Bytes are deleted many times as fast as characters.
        bare = lower.encode("ascii").translate(None, _ASCII_PUNCTUATION).decode("ascii")
    else:
        bare = lower.translate(_NO_ASCII_PUNCTUATION)
    words = bare.split()
    if "".join(words).isalnum():
        # Then an article can only be a whole word, not stand beside a mark within one ("€a+").
        return [word for word in words if word not in _ARTICLE_WORDS]
    return _ARTICLES.sub(" ", bare).split()


def normalized_chinese_words(text: str) -> list[str]:
    """The words that jieba finds: lower case, without ASCII and (most) Chinese punctuation and white space."""
    stripped = ("".join(word.lower().translate(_NO_PUNCTUATION).split()) for word in chinese_words(text))
    return [word for word in stripped if word]
