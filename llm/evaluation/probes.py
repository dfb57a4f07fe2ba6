"""Held-out documents -> items that ask which of a few texts is the real one, and how many a model gets right.

particles      a sentence, or the same with the other form of one particle (은 for 는)
next_sentence  the sentence that follows, or one of three from other documents
word_order     a sentence, or the same with three inner words in a row in another order
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from llm.evaluation.scoring import Scorer
from llm.evaluation.writing import interval
from llm.run.console import log

PAIRS = (("은", "는"), ("이", "가"), ("을", "를"), ("과", "와"), ("으로", "로"))  # after a consonant, after a vowel
OTHERS = ("에서", "에게", "까지", "부터", "의", "에", "도", "만")  # of one form: they tell a noun by
RIEUL = 8  # ㄹ's number among the final consonants: 로 follows it, not 으로 (Unicode, section 3.12)
CHARACTERS = (15, 150)  # of a sentence that is asked about
FEWEST_WORDS = 4
CHOICES = 4  # of the next sentence
SHUFFLED = 3  # words in a row; with all of a sentence shuffled, a model of 5 minutes was right in 400 of 400
TOO_LONG = "longer than the model's positions"
ALIKE = "the tokenizer gives its choices the same tokens"
UNEQUAL = "its choices take different numbers of tokens"

_PAIR_OF = {form: pair for pair in PAIRS for form in pair}
_PARTICLE = re.compile(
    rf"(?<![가-힣])([가-힣]{{2,}}?)({'|'.join([*sorted(_PAIR_OF, key=len, reverse=True), *OTHERS])})(?![가-힣])"
)
_ENDS = re.compile(r"(?<=[.!?])\s+")
_HANGUL = re.compile("[가-힣]")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, and what parts it from the one before it: a space or a line feed."""

    text: str
    gap: str


Pieces = list[list[Sentence | None]]  # of each document


@dataclass(frozen=True, slots=True)
class Item:
    """Texts of which the first is the real one; it should cost the fewest nats, less those of its `alone`."""

    probe: str
    kind: str  # within the probe; empty where there is one
    choices: tuple[str, ...]
    alone: tuple[str, ...] = ()  # what each choice is without the context; none where there is no context


def make_items(documents: Sequence[str], scorer: Scorer, *, num_items: int, seed: int) -> list[Item]:
    """Up to `num_items` of each probe, drawn by `seed`, of the text and the tokenizer; what is left out is logged.

    Where there is no context, only what takes equally many tokens is compared: a tokenizer joins what it often saw, so
    that a model that learned nothing would know a real text by its fewer tokens.
    """
    pieces = [list(sentences(document)) for document in documents]
    left_out: defaultdict[str, Counter[str]] = defaultdict(Counter)  # probe -> why -> how many items

    def fits(item: Item) -> bool:
        reason = _why_unfit(item, scorer)
        if reason:
            left_out[item.probe][reason] += 1
        return reason is None

    items = [
        *_particles(pieces, nouns(documents), fits, num_items, random.Random(f"particles {seed}")),
        *islice(filter(fits, _next_sentences(pieces, random.Random(f"next_sentence {seed}"))), num_items),
        *islice(filter(fits, _word_orders(pieces, random.Random(f"word_order {seed}"))), num_items),
    ]
    for name, reasons in left_out.items():
        log.warning("%s: left out %s", name, ", ".join(f"{times} items: {why}" for why, times in reasons.items()))
    return items


def measure(items: Sequence[Item], scorer: Scorer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the share of each probe and kind that is right, of a probe with its interval and items; a record of each item).

    What a choice costs is the nats of the whole text: what its choices share costs the same in each, so it is the rest
    that decides. A choice after a context is charged its nats beyond those of the choice by itself: a model that is
    blind to the context is left with nothing to go by, however short or common a choice is.
    """
    nats = scorer.nats(text for item in items for text in (*item.choices, *item.alone))
    records, right = [], defaultdict(list)
    for item in items:
        alone = [nats[text] for text in item.alone] or [0.0] * len(item.choices)
        costs = [nats[text] - without for text, without in zip(item.choices, alone, strict=True)]
        is_right = costs[0] < min(costs[1:])
        about = {"probe": item.probe, "kind": item.kind, "is_right": is_right}
        records.append(about | {"choices": item.choices, "nats": costs})
        for name in dict.fromkeys((f"probe/{item.probe}", f"probe/{item.probe}/{item.kind}".rstrip("/"))):
            right[name].append(is_right)
    numbers: dict[str, Any] = {}
    for name in sorted(right):
        numbers[name] = sum(right[name]) / len(right[name])
        if name.count("/") == 1:
            low, high = interval(sum(right[name]), len(right[name]))
            numbers |= {f"{name}_items": len(right[name]), f"{name}_low": low, f"{name}_high": high}
    return numbers, records


def _why_unfit(item: Item, scorer: Scorer) -> str | None:
    """Why an item cannot be asked of this model, if it cannot."""
    encoded = [scorer.encode(text) for text in item.choices]
    if max(map(len, encoded)) > scorer.positions:
        return TOO_LONG
    if any(ids == encoded[0] for ids in encoded[1:]):
        return ALIKE
    return UNEQUAL if not item.alone and len({len(ids) for ids in encoded}) > 1 else None


# Sentences


def sentences(document: str) -> Iterator[Sentence | None]:
    """What stands in a document, piece by piece: its sentences, and None for what is none or is too long or short."""
    for line in document.splitlines():
        for place, piece in enumerate(_ENDS.split(line.strip())):
            yield Sentence(piece, " " if place else "\n") if _is_sentence(piece) else None


def _is_sentence(text: str) -> bool:
    """Whether it is some words of Korean that end as a sentence does, not a heading or a row of a table."""
    return (
        CHARACTERS[0] <= len(text) <= CHARACTERS[1]
        and text[-1] in ".!?"
        and len(text.split()) >= FEWEST_WORDS
        and len(_HANGUL.findall(text)) >= len(text) / 2
    )


def openings(documents: Iterable[str], count: int) -> list[str]:
    """The first half of the words of one sentence of each document, for a model to go on from."""
    firsts = (next(filter(None, sentences(document)), None) for document in documents)
    words = [sentence.text.split() for sentence in firsts if sentence]
    return [" ".join(line[: len(line) // 2]) for line in words][:count]


def _shuffled_sentences(pieces: Pieces, draw: random.Random) -> list[str]:
    """Every different sentence once, in an order that is drawn."""
    texts = list(dict.fromkeys(piece.text for document in pieces for piece in document if piece))
    return draw.sample(texts, len(texts))


# Particles


def expected(stem: str, pair: tuple[str, str]) -> str:
    """The form of a pair that follows a stem of Hangul: 은 after a final consonant, 는 after a vowel."""
    final = (ord(stem[-1]) - ord("가")) % 28
    is_consonant = final > 0 and not (pair == ("으로", "로") and final == RIEUL)
    return pair[0] if is_consonant else pair[1]


def _agrees(stem: str, form: str) -> bool:
    """Whether the form is the one that the rule asks for; where it is not, it is no particle."""
    return form not in _PAIR_OF or expected(stem, _PAIR_OF[form]) == form


def nouns(texts: Iterable[str]) -> set[str]:
    """The stems that stand with two different particles somewhere: nouns, by and large.

    Without it endings of verbs and parts of words pass for particles: 규정하는, 어린이.
    """
    found: defaultdict[str, set[Any]] = defaultdict(set)
    for text in texts:
        for stem, form in _PARTICLE.findall(text):
            if _agrees(stem, form):
                found[stem].add(_PAIR_OF.get(form, form))
    return {stem for stem, particles in found.items() if len(particles) > 1}


def other_forms(sentence: str, nouns: set[str]) -> Iterator[tuple[tuple[str, str], str, str, str]]:
    """(pair, form, noun, the sentence with the other form) of each particle of two forms after one of `nouns`.

    The last word is left out: what follows a particle that is asked about tells which was right.
    """
    for match in _PARTICLE.finditer(sentence):
        stem, form = match.groups()
        if (
            form in _PAIR_OF
            and stem in nouns
            and _agrees(stem, form)
            and sentence[match.end() : match.end() + 1] in (" ", ",")
        ):
            pair = _PAIR_OF[form]
            other = pair[form == pair[0]]
            yield pair, form, stem, sentence[: match.start(2)] + other + sentence[match.end(2) :]


def _particles(
    pieces: Pieces, nouns: set[str], fits: Callable[[Item], bool], count: int, draw: random.Random
) -> Iterator[Item]:
    """As many of each form of a pair, and as near as may be of each pair: who always says 은 is right in half.

    A noun is asked about once for each pair, or a few set phrases would be most of the items.
    """
    found: defaultdict[str, dict[str, Item]] = defaultdict(dict)  # form -> noun -> item
    for sentence in _shuffled_sentences(pieces, draw):
        for pair, form, noun, wrong in other_forms(sentence, nouns):
            item = Item("particles", "/".join(pair), (sentence, wrong))
            if noun not in found[form] and fits(item):
                found[form][noun] = item
    there = {pair: min(len(found[form]) for form in pair) for pair in PAIRS}
    taken = dict.fromkeys(PAIRS, 0)
    while sum(taken.values()) * 2 + 2 <= count and (left := [pair for pair in PAIRS if taken[pair] < there[pair]]):
        taken[min(left, key=taken.__getitem__)] += 1
    for pair in PAIRS:
        for form in pair:
            yield from islice(found[form].values(), taken[pair])


# The other probes


def _next_sentences(pieces: Pieces, draw: random.Random) -> Iterator[Item]:
    pairs = [
        (number, before, after)
        for number, document in enumerate(pieces)
        for before, after in pairwise(document)
        if before and after
    ]
    texts = [(number, piece.text) for number, document in enumerate(pieces) for piece in document if piece]
    for number, before, after in draw.sample(pairs, len(pairs)):
        elsewhere = dict.fromkeys(text for other, text in texts if other != number and text != after.text)
        if len(elsewhere) >= CHOICES - 1:
            alone = (after.text, *draw.sample(list(elsewhere), CHOICES - 1))
            yield Item("next_sentence", "", tuple(before.text + after.gap + text for text in alone), alone)


def _word_orders(pieces: Pieces, draw: random.Random) -> Iterator[Item]:
    """The first word stays, for a tokenizer may write it otherwise than in mid-text, and the last, which ends it."""
    for text in _shuffled_sentences(pieces, draw):
        words = text.split()
        start = draw.randint(1, max(1, len(words) - SHUFFLED - 1))
        before, window, after = words[:start], words[start : start + SHUFFLED], words[start + SHUFFLED :]
        if after and len(set(window)) > 1:
            shuffled = window
            while shuffled == window:
                shuffled = draw.sample(window, SHUFFLED)
            yield Item("word_order", "", (" ".join(words), " ".join([*before, *shuffled, *after])))
