"""Texts, one after the other -> whether each is a duplicate, or nearly one, of a text before it.

Exact duplicates take about 90 bytes of memory a document, near ones about 2,500 (measured).
"""

import hashlib
from typing import Any

from llm.data.split import key

PERMUTATIONS = 128
SHINGLE = 5  # characters, white space left out: an eojeol and a bit
SEED = 42  # the deduplicator's own


class ExactDuplicates:
    """Texts that are the same but for white space."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def judge(self, text: str) -> str | None:
        number = int.from_bytes(hashlib.blake2b(key(text).encode(), digest_size=8).digest(), "little")
        if number in self._seen:
            return "the same text came before"
        self._seen.add(number)
        return None


class NearDuplicates:
    """Texts whose sets of shingles are alike, by MinHash and locality-sensitive hashing (Broder 1997)."""

    def __init__(self, similarity: float) -> None:
        import rensa

        self._new = rensa.RMinHash
        self._index: Any = rensa.RMinHashDeduplicator(similarity, PERMUTATIONS, True, _bands(similarity))
        self._count = 0

    def judge(self, text: str) -> str | None:
        letters = key(text)
        minhash = self._new(PERMUTATIONS, SEED)
        minhash.update({letters[at : at + SHINGLE] for at in range(max(1, len(letters) - SHINGLE + 1))})
        self._count += 1
        return None if self._index.add(str(self._count), minhash) else "nearly the same text came before"


def _bands(similarity: float) -> int:
    """The fewest bands that find nine of ten pairs of that similarity: 1 - (1 - s^rows)^bands."""
    for bands in (1, 2, 4, 8, 16, 32, 64):
        if 1 - (1 - similarity ** (PERMUTATIONS // bands)) ** bands >= 0.9:
            return bands
    return PERMUTATIONS
