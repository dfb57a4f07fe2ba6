"""Held-out documents -> items that ask which of a few texts is the real one, and how many a model gets right.

particles      a sentence, or the same with the other form of one particle (은 for 는)
next_sentence  the sentence that follows, or one of three from other documents
word_order     a sentence, or the same with three inner words in a row in another order
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

from llm.evaluation.particles import PAIRS, attested, particles
from llm.evaluation.scoring import Scorer
from llm.evaluation.statistics import Share
from llm.evaluation.texts import Sentence, sentences

CHOICES = 4  # of the next sentence
SHUFFLED = 3  # words in a row; with all of a sentence shuffled, a model of 5 minutes was right in 400 of 400
TOO_LONG = "longer than the model's positions"
ALIKE = "the tokenizer gives its choices the same tokens"
UNEQUAL = "its choices take different numbers of tokens"

Pieces = list[list[Sentence | None]]  # of each document


@dataclass(frozen=True, slots=True)
class Item:
    """Texts of which the first is the real one; it should cost the fewest nats, less those of its `alone`."""

    probe: str
    kind: str
    choices: tuple[str, ...]
    alone: tuple[str, ...] = ()  # what each choice is without the context; none where there is no context


@dataclass(frozen=True, slots=True)
class Items:
    """What is asked, and why others were not: probe -> reason -> how many."""

    asked: list[Item]
    left_out: dict[str, Counter[str]]


@dataclass(frozen=True, slots=True)
class Probe:
    """How many items of a probe a model gets right."""

    share: Share
    chance: float
    kinds: dict[str, Share]
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> items

    def as_json(self) -> dict[str, Any]:
        kinds = {name: _numbers(share) for name, share in self.kinds.items()} if len(self.kinds) > 1 else {}
        return {
            **_numbers(self.share),
            "chance": self.chance,
            **({"kinds": kinds} if kinds else {}),
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
        }


def make_items(documents: Sequence[str], scorer: Scorer, *, num_items: int, seed: int) -> Items:
    """Up to `num_items` of each probe, drawn by `seed`: a function of the text, the tokenizer and the positions.

    Where there is no context, only what takes equally many tokens is compared: a tokenizer joins what it often saw, so
    that a model that learned nothing would know a real text by its fewer tokens.
    """
    pieces = [list(sentences(document)) for document in documents]
    left_out: dict[str, Counter[str]] = defaultdict(Counter)

    def fits(item: Item) -> bool:
        reason = _why_unfit(item, scorer)
        if reason:
            left_out[item.probe][reason] += 1
        return reason is None

    asked = [
        *_particles(pieces, attested(documents), fits, num_items, random.Random(f"particles {seed}")),
        *islice(filter(fits, _next_sentences(pieces, random.Random(f"next_sentence {seed}"))), num_items),
        *islice(filter(fits, _word_orders(pieces, random.Random(f"word_order {seed}"))), num_items),
    ]
    return Items(asked, left_out)


def measure(items: Items, scorer: Scorer) -> tuple[dict[str, Probe], list[dict[str, Any]]]:
    """(each probe's result, a record of each item).

    What a choice costs is the nats of the whole text: what its choices share costs the same in each, so it is the rest
    that decides. A choice after a context is charged its nats beyond those of the choice by itself: a model that is
    blind to the context is left with nothing to go by, however short or common a choice is.
    """
    nats = scorer.nats(text for item in items.asked for text in (*item.choices, *item.alone))
    costs = [_costs(item, nats) for item in items.asked]
    is_right = [cost[0] < min(cost[1:]) for cost in costs]
    probes = {}
    for name in dict.fromkeys(item.probe for item in items.asked):
        here = [(item, right) for item, right in zip(items.asked, is_right, strict=True) if item.probe == name]
        kinds = sorted({item.kind for item, _ in here})
        probes[name] = Probe(
            _share(right for _, right in here),
            1 / len(here[0][0].choices),
            {kind: _share(right for item, right in here if item.kind == kind) for kind in kinds},
            items.left_out.get(name, Counter()),
        )
    records = [
        {"probe": item.probe, "kind": item.kind, "is_right": right, "choices": item.choices, "nats": cost}
        for item, right, cost in zip(items.asked, is_right, costs, strict=True)
    ]
    return probes, records


def _particles(
    pieces: Pieces, nouns: set[str], fits: Callable[[Item], bool], count: int, draw: random.Random
) -> Iterator[Item]:
    """As many of each form of a pair, and as near as may be of each pair: who always says 은 is right in half.

    A noun is asked about once for each pair, or a few set phrases would be most of the items.
    """
    found: defaultdict[tuple[str, bool], dict[str, Item]] = defaultdict(dict)
    for sentence in _shuffled_sentences(pieces, draw):
        for particle in particles(sentence, nouns):
            item = Item("particles", particle.pair, (particle.right, particle.wrong))
            here = found[particle.pair, particle.after_consonant]
            if particle.stem not in here and fits(item):
                here[particle.stem] = item
    names = [f"{after_consonant}/{after_vowel}" for after_consonant, after_vowel in PAIRS]
    there = {name: min(len(found[name, True]), len(found[name, False])) for name in names}
    taken = dict.fromkeys(names, 0)
    while sum(taken.values()) * 2 + 2 <= count and (left := [name for name in names if taken[name] < there[name]]):
        taken[min(left, key=taken.__getitem__)] += 1
    for name in names:
        for form in (True, False):
            yield from islice(found[name, form].values(), taken[name])


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
            yield Item("next_sentence", "next_sentence", tuple(before.text + after.gap + text for text in alone), alone)


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
            yield Item("word_order", "word_order", (" ".join(words), " ".join([*before, *shuffled, *after])))


def _shuffled_sentences(pieces: Pieces, draw: random.Random) -> list[str]:
    """Every different sentence once, in an order that is drawn."""
    texts = list(dict.fromkeys(piece.text for document in pieces for piece in document if piece))
    return draw.sample(texts, len(texts))


def _why_unfit(item: Item, scorer: Scorer) -> str | None:
    """Why an item cannot be asked of this model, if it cannot."""
    encoded = [scorer.encode(text) for text in item.choices]
    if max(map(len, encoded)) > scorer.positions:
        return TOO_LONG
    if any(ids == encoded[0] for ids in encoded[1:]):
        return ALIKE
    return UNEQUAL if not item.alone and len({len(ids) for ids in encoded}) > 1 else None


def _costs(item: Item, nats: dict[str, float]) -> list[float]:
    alone = [nats[text] for text in item.alone] or [0.0] * len(item.choices)
    return [nats[text] - without for text, without in zip(item.choices, alone, strict=True)]


def _share(is_right: Iterable[bool]) -> Share:
    counted = list(is_right)
    return Share(sum(counted), len(counted))


def _numbers(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"accuracy": share.value, "right": share.count, "items": share.of, "low": low, "high": high}
