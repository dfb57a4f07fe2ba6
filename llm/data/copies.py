"""Shards -> how much of the held-out documents stands in the training text nearly word for word, by n-gram of tokens.

The split is by hash of the text, so that copies fall on one side; near copies need not. They are counted on token ids,
which are there anyway: a document of which half the n-grams are in the training text is a near copy. Of all n-grams
those are compared whose hash falls in a fixed part of its range, the same on both sides.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm.data.shards import Array, Manifest, Split, open_shard

N = 16  # tokens, a power of two: about as much text as the 8 eojeols of leaks.py
NEAR_COPY = 0.5  # of a document's n-grams
SAMPLE_BITS = 3  # one n-gram of 8 is compared
MOST_NGRAMS = 2**22  # of the held-out text that are held in memory; of more text, fewer are compared
TOKENS_AT_ONCE = 2**18
FILTER_BITS = 22

_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no bit of a token is lost

_FILTER = np.uint64(2**FILTER_BITS - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """What of the held-out documents is in the training text."""

    documents: int  # long enough to have an n-gram that is compared
    ngrams: int  # compared
    overlapping_ngrams: int  # of these, in the training text
    near_copies: int  # documents with NEAR_COPY of theirs in it

    def __str__(self) -> str:
        share = 100 * self.overlapping_ngrams / max(1, self.ngrams)
        return (
            f"{self.near_copies} of {self.documents} held-out documents stand in the training text nearly word for "
            f"word, {share:.2f} % of their {N}-grams of tokens"
        )


def count_copies(
    held_out: tuple[Path, Manifest], training: Sequence[tuple[Path, Manifest]], *, bits: int = SAMPLE_BITS
) -> Copies:
    """The copies of the held-out side of one folder of shards in the training side of one or several."""
    folder, manifest = held_out
    bits = max(bits, math.ceil(math.log2(max(1, manifest.held_out.tokens / MOST_NGRAMS))))
    hashes, documents = _of_documents(folder, manifest, bits=bits)
    known = np.unique(hashes)
    seen = np.zeros(len(known), dtype=bool)
    may_be_known = np.zeros(2**FILTER_BITS, dtype=bool)
    may_be_known[known & _FILTER] = True
    for other, of_other in training:
        for found in _of_text(other, of_other.train, of_other.dtype, bits=bits):
            found = found[may_be_known[found & _FILTER]]  # most are not, and a search for each costs more than its hash
            places = np.searchsorted(known, found)
            places[places == len(known)] = 0
            seen[places[known[places] == found]] = True
    hits = seen[np.searchsorted(known, hashes)] if len(known) else np.zeros(0, dtype=bool)
    ngrams = np.bincount(documents, minlength=1)
    in_training = np.bincount(documents[hits], minlength=len(ngrams))
    has_any = ngrams > 0
    return Copies(
        documents=int(has_any.sum()),
        ngrams=len(hashes),
        overlapping_ngrams=int(hits.sum()),
        near_copies=int((in_training[has_any] >= NEAR_COPY * ngrams[has_any]).sum()),
    )


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
            inside = (places > begins) & (places + N < ends[owners])
            hashes.append(found[inside])
            documents.append(first + owners[inside])
        first += len(lengths)
    return np.concatenate(hashes), np.concatenate(documents)


def _of_text(folder: Path, split: Split, dtype: str, *, bits: int) -> Iterator[Array]:
    """The sampled n-grams of a split; those across documents have a bos in them, and so meet none of a document's."""
    for shard in split.shards:
        tokens, _ = open_shard(folder, shard, dtype)
        for _, found, _ in _blocks(tokens, bits=bits):
            yield found


def _blocks(tokens: Array, *, bits: int) -> Iterator[tuple[int, Array, Array]]:
    """(first token of the block, hashes of the sampled n-grams that begin in it, where in the block each begins)."""
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        hashes = ngram_hashes(tokens[start : start + TOKENS_AT_ONCE + N - 1])
        sampled = np.flatnonzero(hashes >> np.uint64(64 - bits) == 0)
        yield start, hashes[sampled], sampled


def ngram_hashes(tokens: Array) -> Array:
    """uint64 (tokens - N + 1,): of the N tokens from each on, by doubling: of 1, 2, 4, 8, 16."""
    hashes = (tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(_FACTOR)
    hashes ^= hashes >> np.uint64(29)
    length = 1
    while length < N:
        hashes = hashes[:-length] * np.uint64(pow(_FACTOR, length, 2**64)) + hashes[length:]  # wraps at 2^64
        length *= 2
    hashes ^= hashes >> np.uint64(32)
    mixed: Array = hashes * np.uint64(_FACTOR)  # for the highest bits, by which n-grams are sampled
    return mixed
