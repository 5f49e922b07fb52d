"""Words of a text: as jieba cuts Chinese, and as a search compares questions with passages."""

from __future__ import annotations

import re
import warnings
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jieba import Tokenizer

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
#: A run of Chinese characters, or a run of other letters and digits.
_RUNS = re.compile(f"([{_HAN}]+)|[^\\W_{_HAN}]+")


def search_words(text: str) -> list[str]:
    """Words by which texts are found: runs of letters and digits, case folded; Chinese as jieba cuts it.

    Nothing is stemmed or left out: a word that stands in every passage weighs next to nothing by itself.
    """
    runs = _RUNS.finditer(text.casefold())
    return list(chain.from_iterable(chinese_words(run[0]) if run[1] else [run[0]] for run in runs))


def chinese_words(text: str) -> list[str]:
    """A text as jieba cuts it, with its white space and punctuation."""
    return list(_tokenizer().cut(text))


@cache
def _tokenizer() -> Tokenizer:
    """jieba with its own dictionary, whatever the process has done to jieba's shared one.

    The dictionary is read from the package (1 s), not by way of jieba's cache: that is a file in the shared folder
    for temporary files, which saves 0.3 s and which any other user of the machine may have put there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and deprecated imports in its source
        import jieba
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
