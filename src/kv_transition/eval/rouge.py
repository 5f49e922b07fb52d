"""ROUGE-L with the value of the package that LongBench scores with (rouge 1.0.1), bit for bit, without its cost.

The package compares every sentence of the reference with every sentence of the prediction: it fills a table with
the lengths of the longest common subsequences (LCS), walks back through it and collects the words met. The score
needs no more than the *set* of all these words, which three facts make cheap:

* a word that both texts do not share is never collected, and a pair of sentences without a shared word that is
  still missing adds nothing;
* words of the prediction's sentence that the reference sentence lacks can be left out: the walk passes them by;
* one row of the table is a number whose bits say where the length does not grow (Hyyrö 2004), so that a row costs
  a few operations on integers, and one step of the walk finds the next column by the length of a number in bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: A text as sentences, each a list of words.
Sentences = list[list[str]]


def split_sentences(text: str) -> Sentences:
    """Cut a text at every full stop, each piece into words at white space.

    An empty piece is dropped; a piece of white space only is a sentence of one empty word, which counts as a word.
    """
    return [piece.split() or [""] for piece in text.split(".") if piece]


def rouge_l(prediction: Sentences, reference: Sentences) -> float:
    """F measure of summary-level ROUGE-L: 2 p r / (p + r + 1e-8), all sizes counted in distinct words.

    0.0 if a text has no sentence. Two equal texts score 0.999999995, because of the term in the denominator.

    References
    ----------
    Lin (2004), ROUGE, section 3.2, with sets of words instead of bags, as in the package.
    """
    if not prediction or not reference:
        return 0.0
    predicted, expected = _vocabulary(prediction), _vocabulary(reference)
    overlap = len(_union_of_lcs(prediction, reference, predicted & expected))
    precision, recall = overlap / len(predicted), overlap / len(expected)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def walks_as_far(prediction: Sentences, reference: Sentences, steps: int) -> bool:
    """Whether the walk back through the table of any two sentences takes this many steps or more.

    The package calls itself once for each step. A walk has no more steps than the two sentences have words.
    """
    if max(map(len, prediction), default=0) + max(map(len, reference), default=0) < steps:
        return False
    return any(
        len(expected) + len(predicted) >= steps and _walk_back(expected, predicted)[1] >= steps
        for expected in reference
        for predicted in prediction
    )


def _vocabulary(sentences: Sentences) -> set[str]:
    return set().union(*sentences)


def _union_of_lcs(prediction: Sentences, reference: Sentences, shared: set[str]) -> set[str]:
    """The words of all LCS of a reference sentence and a predicted sentence; `shared` are those of both texts."""
    sentences = _distinct(prediction, shared)
    union: set[str] = set()
    for expected in reference:
        words = shared.intersection(expected)
        if words <= union:
            continue
        for predicted in _distinct(sentences, words):
            if not union.issuperset(predicted):
                union.update(_walk_back(expected, predicted)[0])
        if len(union) == len(shared):
            break
    return union


def _distinct(sentences: Iterable[Sequence[str]], words: set[str]) -> list[tuple[str, ...]]:
    """The sentences with nothing but these words left in them, each once, those without any left out."""
    keep = words.__contains__
    kept = dict.fromkeys(tuple(filter(keep, sentence)) for sentence in sentences)
    kept.pop((), None)
    return list(kept)


def _walk_back(expected: Sequence[str], predicted: Sequence[str]) -> tuple[list[str], int]:
    """Words met on the package's walk back through the LCS table of two sentences, and its number of steps.

    With L[i, j] the LCS length of the first i expected and the first j predicted words: from the last corner, equal
    words lead to (i - 1, j - 1), else L[i-1, j] > L[i, j-1] leads to (i - 1, j), else (i, j - 1), until i or j is 0.
    As unequal words have L[i, j] = max(L[i-1, j], L[i, j-1]), the walk goes up exactly where L[i, j] > L[i, j-1].
    """
    occurrences: dict[str, int] = {}
    bit = 1
    for word in predicted:
        occurrences[word] = occurrences.get(word, 0) | bit
        bit <<= 1
    columns = bit - 1
    level = columns  # bit j - 1 is set where L[i, j] = L[i, j-1]
    rows: list[tuple[str, int, int]] = []
    for word in expected:
        equal = occurrences.get(word, 0)
        if equal:
            level = (level + (level & equal) | level & ~equal) & columns
        rows.append((word, equal, level))
    met: list[str] = []
    left = len(predicted)  # j
    steps = 0
    for word, equal, level in reversed(rows):
        column = ((equal | ~level) & columns).bit_length()
        steps += left - column
        if column:
            steps += 1
            if equal >> (column - 1) & 1:
                met.append(word)
                column -= 1
        columns >>= left - column
        left = column
        if not left:
            break
    return met, steps
