"""Training text and texts that a model is measured by -> how much of the latter stands in the former, by n-gram.

An n-gram is N eojeols in a row, punctuation and case aside (Brown et al. 2020, arXiv:2005.14165, appendix C, takes 13
words of English; 8 eojeols of Korean are about as many characters). A text with fewer eojeols is one n-gram.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm.data.records import Conversation, Document

N = 8
LEAKED = 0.8  # of its n-grams: a document that stands in the training text nearly whole
WORST = 5  # documents that a report shows
WORDS = 2**20  # whose hashes are remembered
CHARACTERS = 120  # of a document that a report shows

Array = np.ndarray[Any, Any]
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word's hash is lost


@dataclass(kw_only=True, slots=True)
class Overlap:
    """How much of a set of measured texts is in the training text."""

    documents: int = 0
    ngrams: int = 0  # of all documents, each as often as it stands there
    overlapping_ngrams: int = 0
    touched_documents: int = 0  # with one n-gram or more
    leaked_documents: int = 0  # with LEAKED of their n-grams or more
    worst: list[dict[str, Any]] = field(default_factory=list)  # origin, share, text


class Ngrams:
    """The n-grams of texts, as 64-bit hashes that are the same in every process."""

    def __init__(self, n: int = N) -> None:
        self._n = n
        self._words: dict[str, int] = {}

    def of(self, text: str) -> Array:
        """(n-grams,) uint64."""
        words = _WORD.findall(text.lower())
        if len(self._words) > WORDS:
            self._words.clear()
        hashes = np.array([self._hash(word) for word in words], dtype=np.uint64)
        length = min(self._n, len(words))
        count = len(words) - length + 1 if words else 0
        ngrams = np.full(count, length, dtype=np.uint64)
        for place in range(length):
            ngrams = ngrams * _FACTOR + hashes[place : place + count]  # wraps at 2^64
        return ngrams

    def _hash(self, word: str) -> int:
        if word not in self._words:
            self._words[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return self._words[word]


def measure_overlap(
    training: Iterable[Document | Conversation],
    measured: dict[str, Iterable[Document | Conversation]],
    *,
    n: int = N,
) -> dict[str, Overlap]:
    """The overlap of each set with the training text, which is read once; memory is that of the measured sets."""
    ngrams = Ngrams(n)
    sets = {name: [(_about(record), ngrams.of(_all(record))) for record in texts] for name, texts in measured.items()}
    found_in_sets = [found for texts in sets.values() for _, found in texts]
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *found_in_sets]))
    seen = np.zeros(len(known), dtype=bool)
    for record in training:
        found = ngrams.of(_all(record))
        places = np.searchsorted(known, found)
        places[places == len(known)] = 0
        if len(known):
            seen[places[known[places] == found]] = True
    return {name: _overlap(documents, known, seen) for name, documents in sets.items()}


def _overlap(documents: list[tuple[dict[str, Any], Array]], known: Array, seen: Array) -> Overlap:
    overlap = Overlap(documents=len(documents))
    shares = []
    for about, ngrams in documents:
        hits = int(seen[np.searchsorted(known, ngrams)].sum()) if len(ngrams) else 0
        share = hits / len(ngrams) if len(ngrams) else 0.0
        overlap.ngrams += len(ngrams)
        overlap.overlapping_ngrams += hits
        overlap.touched_documents += hits > 0
        overlap.leaked_documents += share >= LEAKED
        shares.append(about | {"share": share})
    overlap.worst = [about for about in sorted(shares, key=lambda about: -about["share"])[:WORST] if about["share"]]
    return overlap


def _all(record: Document | Conversation) -> str:
    """The whole of a record's text: an answer leaks as a question does."""
    if isinstance(record, Document):
        return record.text
    return "\n".join(message["content"] for message in record.messages)


def _about(record: Document | Conversation) -> dict[str, Any]:
    return {"origin": record.origin, "text": _all(record)[:CHARACTERS]}
