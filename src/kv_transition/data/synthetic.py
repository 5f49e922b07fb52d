"""Phrasebook tasks: made-up documents of any length, in LongBench's record format.

A document is a phrasebook: facts of the form "The badge phrase of Maria is amber river stone." shuffled among
filler sentences. A question asks for the phrase of one person (`phrasebook_qa`) or of two (`phrasebook_multi_qa`,
answered by both phrases joined by "and"). The gold answer is a phrase of three to five words, so that F1 is graded
where exact match is not. A person has one fact and a value word stands in one phrase of a document.

The words of all tasks are `VOCABULARY`; the tiny reader knows these and no others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kv_transition.errors import UserError
from kv_transition.files import sha256_text

TASKS = ("phrasebook_qa", "phrasebook_multi_qa")

#: System message of each task. Short, because its tokens count against every budget.
INSTRUCTIONS: dict[str, str] = {
    "phrasebook_qa": "Answer with the phrase.",
    "phrasebook_multi_qa": "Answer with both phrases.",
}

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<user>", "<assistant>")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GRAMMAR = _words("The the phrase of is . What ? Tell me and has what Answer with both phrases ,")
NAMES = _words(
    """
    Maria Ivan Aisha Kenji Lucia Omar Freya Pablo Ingrid Tariq Noemi Bruno Chloe Dmitri Elena Farid
    Greta Hugo Irene Jonas Karin Leon Mira Nadia Oscar Petra Quinn Rosa Stefan Tania Ugo Vera Walter
    Xenia Yusuf Zoe Anton Bella Carlos Daria Emil Fatima Gustav Helga Isaac Julia Klaus Lena Marco Nina
    Otto Paula Ralf Sonia Tomas Ursula Viktor Wanda Yara Zeno Adele Boris Clara Dario
    """
)
ATTRIBUTES = _words("badge door locker gate radio travel harbour garden")
VALUES = _words(
    """
    amber river stone copper falcon maple silver cedar lantern meadow cobalt thunder velvet willow
    crystal ember saffron glacier marble raven violet canyon pepper walnut indigo feather granite orchid
    summit tundra jasmine pebble bronze coral dune eagle fern ginger hazel iris jade kelp lemon mango
    nectar olive pearl quartz rust sage topaz umber vine wheat yarrow zinc acorn birch clover dolphin
    elm flint grove heron ivory jackal kite lotus moss needle otter plum quail reed spruce thistle
    urchin viper walrus yew zebra anchor basil cinder daisy echo flame gravel honey icicle juniper
    kestrel lilac magnet nutmeg opal prism quiver ribbon shadow timber ultra valley whisper yonder azure
    breeze comet delta easel frost goblet hollow island jigsaw karma ladder mint mirror nimbus poppy
    tulip
    """
)
NOUNS = _words(
    """
    bridge baker station window teacher market engine letter cousin kitchen painter museum bicycle
    doctor village concert farmer library curtain sailor tunnel carpet neighbour theatre ticket driver
    factory blanket tower captain school basket visitor airport orchestra mountain notebook plumber
    hallway officer bakery ferry clock judge
    """
)
ADJECTIVES = _words(
    """
    old new quiet busy narrow bright empty heavy early late clever gentle noisy plain round steep tired
    warm wooden young careful crowded dusty famous hidden local modern simple strange wide
    """
)
VERBS = _words(
    """
    watched repaired visited crossed opened followed painted reached closed remembered passed described
    moved cleaned noticed carried finished ignored measured greeted changed helped joined left
    """
)
PREPOSITIONS = _words("near behind beside after before above under beyond around during")
ADVERBS = _words(
    """
    Today Yesterday Later Often Sometimes Usually Rarely Recently Finally Meanwhile Again Soon Suddenly
    Slowly
    """
)

VOCABULARY = (
    *SPECIAL_TOKENS,
    *GRAMMAR,
    *NAMES,
    *ATTRIBUTES,
    *VALUES,
    *NOUNS,
    *ADJECTIVES,
    *VERBS,
    *PREPOSITIONS,
    *ADVERBS,
)

MAX_FACTS = 24
PHRASE_WORDS = (3, 4, 5)
QUESTION_FORMS = 3
#: One context in this many belongs to evaluation, decided by its hash; training takes only the others.
EVALUATION_SHARE = 8
#: Tokens of a prompt besides context and question: <s>, the instruction's five, <user> and <assistant>.
TEMPLATE_TOKENS = 8

_MIN_CONTEXT = 2 * (7 + max(PHRASE_WORDS))
_FILLER_PATTERNS = {
    4: "The N V .",
    5: "The A N V .",
    6: "The N V the N .",
    7: "The A N V the N .",
    8: "The N V P the A N .",
    9: "The A N V P the A N .",
    10: "D , the A N V P the N .",
    11: "D , the A N V P the A N .",
    12: "The A N and the A N V P the N .",
}
_FILLER_POOLS = {"N": NOUNS, "A": ADJECTIVES, "V": VERBS, "P": PREPOSITIONS, "D": ADVERBS}
_SHORTEST_FILLER, _LONGEST_FILLER = min(_FILLER_PATTERNS), max(_FILLER_PATTERNS)


@dataclass(frozen=True)
class Fact:
    """One entry of the phrasebook."""

    name: str
    attribute: str
    phrase: tuple[str, ...]

    def words(self) -> list[str]:
        return ["The", self.attribute, "phrase", "of", self.name, "is", *self.phrase, "."]


@dataclass(frozen=True)
class Document:
    """A context as words (punctuation marks are words) and the facts in it."""

    words: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        return join_words(self.words)


def join_words(words: Sequence[str]) -> str:
    """Running text: words separated by spaces, punctuation attached to the word before it."""
    text = " ".join(words)
    for mark in ".,?":
        text = text.replace(f" {mark}", mark)
    return text


def split_words(text: str) -> list[str]:
    """The inverse of :func:`join_words`: words and punctuation marks, as the tiny reader's tokenizer splits them."""
    for mark in ".,?":
        text = text.replace(mark, f" {mark}")
    return text.split()


def split_of(context: str) -> str:
    """ "evaluation" or "training": which of the two a context belongs to, by its hash alone.

    Both sides draw documents until one falls on their own side, so no training context can equal an evaluation
    context, whatever the seeds.
    """
    return "evaluation" if int(sha256_text(context)[:8], 16) % EVALUATION_SHARE == 0 else "training"


def draw_document(rng: random.Random, n_tokens: int, split: str) -> Document:
    """Draw a phrasebook of `n_tokens` tokens (up to three fewer; never below two facts) of the given split."""
    while True:
        document = _draw_document(rng, n_tokens)
        if split_of(document.text) == split:
            return document


def question_words(task: str, facts: Sequence[Fact], form: int) -> list[str]:
    """The question for the phrase of `facts` (one, or two for the multi task) in one of three forms."""
    start, verb, and_ = (
        (["What", "is", "the"], "of", ["and", "the"]),
        (["Tell", "me", "the"], "of", ["and", "the"]),
        (["What"], "has", ["and", "what"]),
    )[form]
    words = list(start)
    for i, fact in enumerate(facts):
        words += [*(and_ if i else []), fact.attribute, "phrase", verb, fact.name]
    return [*words, "." if start[0] == "Tell" else "?"]


def answer_words(facts: Sequence[Fact]) -> list[str]:
    """The gold answer: the phrases joined by "and"."""
    words = list(facts[0].phrase)
    for fact in facts[1:]:
        words += ["and", *fact.phrase]
    return words


def facts_asked(task: str) -> int:
    """How many facts a question of the task asks for."""
    return 2 if task == "phrasebook_multi_qa" else 1


def make_records(
    task: str, n_documents: int, min_tokens: int, max_tokens: int, seed: int
) -> list[dict[str, Any]]:
    """Draw evaluation records, one question on each document.

    Parameters
    ----------
    task : one of `TASKS`.
    n_documents : number of records.
    min_tokens, max_tokens : bounds of the finished prompt's length in the tiny reader's tokens (chat template,
        instruction and question included); lengths are drawn log-uniformly between them.
    seed : equal arguments give equal records.

    Returns
    -------
    list of dict
        LongBench's fields `_id, input, context, answers, length, dataset, language, all_classes`.

    Raises
    ------
    UserError
        For an unknown task, or bounds that hold no prompt with two facts.
    """
    if task not in TASKS:
        raise UserError(f"synthetic task {task!r} does not exist; there are {', '.join(TASKS)}")
    shortest = _MIN_CONTEXT + TEMPLATE_TOKENS + _longest_question(task)
    if not shortest <= min_tokens <= max_tokens:
        raise UserError(
            f"{task}: prompt lengths {min_tokens} to {max_tokens} tokens are not possible; "
            f"give min_tokens from {shortest} up and max_tokens not below it"
        )
    return [_record(task, i, min_tokens, max_tokens, seed) for i in range(n_documents)]


def _record(task: str, index: int, min_tokens: int, max_tokens: int, seed: int) -> dict[str, Any]:
    rng = random.Random(f"evaluation|{task}|{min_tokens}|{max_tokens}|{seed}|{index}")
    # A document may fall up to three tokens short of what was asked, hence the raised lower bound.
    low = min(min_tokens + _SHORTEST_FILLER - 1, max_tokens)
    length = min(max_tokens, round(math.exp(rng.uniform(math.log(low), math.log(max_tokens)))))
    form = rng.randrange(QUESTION_FORMS)
    n_asked = facts_asked(task)
    question_tokens = len(question_words(task, [Fact("", "", ())] * n_asked, form))
    while True:
        document = draw_document(rng, length - TEMPLATE_TOKENS - question_tokens, "evaluation")
        if len(document.words) + TEMPLATE_TOKENS + question_tokens >= min_tokens:
            break
    facts = rng.sample(document.facts, n_asked)
    context = document.text
    return {
        "_id": sha256_text(f"{task}|{min_tokens}|{max_tokens}|{seed}|{index}")[:24],
        "input": join_words(question_words(task, facts, form)),
        "context": context,
        "answers": [" ".join(answer_words(facts))],
        "length": len(context.split()),
        "dataset": task,
        "language": "en",
        "all_classes": None,
    }


def _longest_question(task: str) -> int:
    facts = [Fact("", "", ())] * facts_asked(task)
    return max(len(question_words(task, facts, form)) for form in range(QUESTION_FORMS))


def _draw_document(rng: random.Random, n_tokens: int) -> Document:
    """Facts on a quarter to three fifths of the tokens (at most MAX_FACTS), filler on the rest, shuffled."""
    mean_fact = 7 + sum(PHRASE_WORDS) / len(PHRASE_WORDS)
    n_facts = max(2, min(MAX_FACTS, int(rng.uniform(0.25, 0.6) * n_tokens / mean_fact)))
    values = iter(rng.sample(VALUES, n_facts * max(PHRASE_WORDS)))
    facts = tuple(
        Fact(name, rng.choice(ATTRIBUTES), tuple(next(values) for _ in range(rng.choice(PHRASE_WORDS))))
        for name in rng.sample(NAMES, n_facts)
    )
    sentences = [fact.words() for fact in facts]
    left = n_tokens - sum(map(len, sentences))
    while left >= _SHORTEST_FILLER:
        if left > _LONGEST_FILLER:
            length = rng.randint(_SHORTEST_FILLER, min(_LONGEST_FILLER, left - _SHORTEST_FILLER))
        else:
            length = left
        sentences.append(_filler_sentence(rng, length))
        left -= length
    rng.shuffle(sentences)
    return Document(tuple(word for sentence in sentences for word in sentence), facts)


def _filler_sentence(rng: random.Random, length: int) -> list[str]:
    return [
        rng.choice(_FILLER_POOLS[slot]) if slot in _FILLER_POOLS else slot
        for slot in _FILLER_PATTERNS[length].split()
    ]
