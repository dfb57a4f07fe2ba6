"""Held-out documents and training text -> how much of the former stands in the latter, by n-gram.

The split is by hash of the text, so that copies fall on one side; near copies need not. Of shards the n-grams are of
token ids, which are there anyway; of text that has no tokenizer yet, of words (Brown et al. 2020, arXiv:2005.14165,
appendix C). A document of which half the n-grams are in the training text is a near copy.
"""

import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.shards import Array, Manifest, open_shard

TOKENS, EOJEOLS = 16, 8  # in an n-gram, a power of two: about as much text
NEAR_COPY = 0.5  # of a document's n-grams
SAMPLE_BITS = 3  # of the n-grams of shards one of 8 is compared, chosen by its hash
MOST_NGRAMS = 2**22  # of the held-out text that are held in memory; of more text, fewer are compared
TOKENS_AT_ONCE = 2**18
FILTER_BITS = 22
WORST = 5  # documents that a report shows
CHARACTERS = 120  # of each

_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no bit of a token is lost
_FILTER = np.uint64(2**FILTER_BITS - 1)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What of the held-out documents is in the training text."""

    documents: int  # long enough to have an n-gram that is compared
    ngrams: int  # compared
    overlapping_ngrams: int  # of these, in the training text
    near_copies: int  # documents with NEAR_COPY of theirs in it

    def __str__(self) -> str:
        share = 100 * self.overlapping_ngrams / max(1, self.ngrams)
        return (
            f"{self.near_copies} of {self.documents} held-out documents stand in the training text nearly word for "
            f"word, {share:.2f} % of their n-grams"
        )


def overlap_of_shards(
    held_out: tuple[Path, Manifest], training: Sequence[tuple[Path, Manifest]], *, bits: int = SAMPLE_BITS
) -> Overlap:
    """That of the held-out side of one folder of shards with the training side of one or several."""
    folder, manifest = held_out
    bits = max(bits, math.ceil(math.log2(max(1, manifest.held_out.tokens / MOST_NGRAMS))))
    hashes, documents = _of_documents(folder, manifest, bits=bits)
    blocks = (
        found
        for other, of_other in training
        for shard in of_other.train.shards  # n-grams across documents have a bos in them, and so meet none
        for _, found, _ in _blocks(open_shard(other, shard, of_other.dtype)[0], bits=bits)
    )
    overlap, _ = _overlap(hashes, documents, blocks)
    return overlap


def overlap_of_texts(
    training: Iterable[str], measured: Sequence[tuple[str, str]]
) -> tuple[Overlap, list[dict[str, Any]]]:
    """That of (origin, text) pairs with training texts, which are read once; and the worst documents."""
    found = [ngram_hashes(_words(text), EOJEOLS) for _, text in measured]
    documents = np.repeat(np.arange(len(found)), list(map(len, found)))
    hashes = np.concatenate([np.zeros(0, np.uint64), *found])
    overlap, shares = _overlap(hashes, documents, (ngram_hashes(_words(text), EOJEOLS) for text in training))
    worst = [number for number in np.argsort(-shares, kind="stable")[:WORST].tolist() if shares[number]]
    return overlap, [
        {"origin": measured[number][0], "share": float(shares[number]), "text": measured[number][1][:CHARACTERS]}
        for number in worst
    ]


def _overlap(hashes: Array, documents: Array, training: Iterable[Array]) -> tuple[Overlap, Array]:
    """(the overlap, each document's share of it) of n-grams and the numbers of their documents."""
    known = np.unique(hashes)
    seen = np.zeros(len(known), dtype=bool)
    may_be_known = np.zeros(2**FILTER_BITS, dtype=bool)
    may_be_known[known & _FILTER] = True
    for block in training if len(known) else ():
        found = block[may_be_known[block & _FILTER]]  # most are not, and a search for each costs more than its hash
        places = np.searchsorted(known, found)
        places[places == len(known)] = 0
        seen[places[known[places] == found]] = True
    hits = seen[np.searchsorted(known, hashes)] if len(known) else np.zeros(0, dtype=bool)
    ngrams = np.bincount(documents, minlength=1)
    in_training = np.bincount(documents[hits], minlength=len(ngrams))
    overlap = Overlap(
        documents=int((ngrams > 0).sum()),
        ngrams=len(hashes),
        overlapping_ngrams=int(hits.sum()),
        near_copies=int(((ngrams > 0) & (in_training >= NEAR_COPY * ngrams)).sum()),
    )
    return overlap, in_training / np.maximum(ngrams, 1)


def _words(text: str) -> Array:
    """A number for each word, punctuation and case aside."""
    return np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], dtype=np.uint64)


def _of_documents(folder: Path, manifest: Manifest, *, bits: int) -> tuple[Array, Array]:
    """(hash, number of its document) of the sampled n-grams in held-out documents, bos and eos left out."""
    hashes, documents, first = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for shard in manifest.held_out.shards:
        tokens, lengths = open_shard(folder, shard, manifest.dtype)
        ends = np.cumsum(lengths[:, 0])
        for start, found, sampled in _blocks(tokens, bits=bits):
            places = start + sampled
            owners = np.searchsorted(ends, places, side="right")
            begins = ends[owners] - lengths[owners, 0]
            inside = (places > begins) & (places + TOKENS < ends[owners])
            hashes.append(found[inside])
            documents.append(first + owners[inside])
        first += len(lengths)
    return np.concatenate(hashes), np.concatenate(documents)


def _blocks(tokens: Array, *, bits: int) -> Iterator[tuple[int, Array, Array]]:
    """(first token of the block, hashes of the sampled n-grams that begin in it, where in the block each begins)."""
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        hashes = ngram_hashes(tokens[start : start + TOKENS_AT_ONCE + TOKENS - 1], TOKENS)
        sampled = np.flatnonzero(hashes >> np.uint64(64 - bits) == 0)
        yield start, hashes[sampled], sampled


def ngram_hashes(numbers: Array, n: int) -> Array:
    """uint64 (numbers - n + 1,), or none: of the n numbers from each on, by doubling: of 1, 2, 4, 8, 16."""
    hashes = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_FACTOR)
    hashes ^= hashes >> np.uint64(29)
    length = 1
    while length < n:
        hashes = hashes[:-length] * np.uint64(pow(_FACTOR, length, 2**64)) + hashes[length:]  # wraps at 2^64
        length *= 2
    hashes ^= hashes >> np.uint64(32)
    mixed: Array = hashes * np.uint64(_FACTOR)  # for the highest bits, by which n-grams are sampled
    return mixed
