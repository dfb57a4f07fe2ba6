"""Which rows a step takes: a pure function of (seed, step, rank), the same for any number of workers and processes.

Of a mixture, too: an epoch has a fixed number of places for each part, in a permuted order, and each part's places are
filled from a stream of its own, in which each of its epochs is a permutation of its rows.

A batch sampler hands a MicroBatch to the rows' __getitems__, which torch's DataLoader calls where it exists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# Of the Feistel network. Three make it pass for random (Luby and Rackoff 1988) when it is large; for 10 rows, where an
# epoch sends a row was measured to be uneven with 4 and 6 (chi-square, z = 96 and 5) and even with 8 (1.4).
ROUNDS = 8
_APART = 2**40  # between the seeds of a mixture's parts: no user's seed is that large
_POOL_SEED = 0x706F6F6C  # of which rows a cap leaves
STEPS_AT_ONCE = 64  # whose rows are computed together: the cost is that of numpy's calls, not of the rows


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass."""

    step: int
    rows: Array  # (rows,)
    num_labels: int  # of the whole step, over all micro-batches and ranks: what its loss is divided by

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Share:
    """What one part of a mixture has of an epoch."""

    first_row: int
    num_rows: int
    pool: int  # rows that are used: all, or as many as a cap leaves, drawn at random, the same for every seed
    places: int  # in an epoch of the mixture; each row of the pool is seen places / pool times in it


class TrainingBatches:
    """The micro-batches of each step on one rank; epochs follow one another without a gap.

    Every step takes the next `batch_size` places of a stream in which each epoch is a permutation of all rows of its
    own; the ranks share a step's rows out in equal parts.
    """

    def __init__(
        self,
        num_labels: Array,
        *,
        batch_size: int,
        micro_batch_size: int,
        num_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shares: Sequence[Share] = (),  # of a mixture
    ) -> None:
        assert batch_size % (micro_batch_size * world_size) == 0, (batch_size, micro_batch_size, world_size)
        self.start_step = 0  # where a resumed run goes on
        self._num_labels, self._seed = num_labels, seed
        self._batch_size, self._num_steps = batch_size, num_steps
        self.micro_batch_size = micro_batch_size  # rows; another one cuts the same steps otherwise
        self._rank, self._world_size = rank, world_size
        self._shares = shares or [Share(0, len(num_labels), len(num_labels), len(num_labels))]

    def __len__(self) -> int:
        """Steps of the whole run, whatever start_step is: how Lightning knows the end."""
        return self._num_steps

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for first in range(self.start_step, self._num_steps, STEPS_AT_ONCE):
            last = min(first + STEPS_AT_ONCE, self._num_steps)
            for step, rows in enumerate(self._rows(first, last), first):
                yield self._cut(step, rows)

    def of(self, step: int) -> list[MicroBatch]:
        """The micro-batches of one step."""
        return self._cut(step, self.rows_of(step))

    def _cut(self, step: int, rows: Array) -> list[MicroBatch]:
        num_labels = int(self._num_labels[rows].sum())
        mine = rows.reshape(self._world_size, -1)[self._rank]
        return [MicroBatch(step, some, num_labels) for some in mine.reshape(-1, self.micro_batch_size)]

    def rows_of(self, step: int) -> Array:
        """(batch_size,): the rows of a step, over all ranks."""
        rows: Array = self._rows(step, step + 1)[0]
        return rows

    def _rows(self, first: int, last: int) -> Array:
        """(steps, batch_size): the rows of the steps from `first` to before `last`."""
        places = np.arange(first * self._batch_size, last * self._batch_size)
        if len(self._shares) == 1:
            rows = _rows_of(self._shares[0], places, seed=self._seed)
        else:
            rows = mixed(places, self._shares, seed=self._seed)
        return rows.reshape(-1, self._batch_size)


class EvaluationBatches:
    """Every row once, in order; the ranks take batches in turn, so one rank can have a batch more than another.

    No batch has rows from both sides of one of `edges`: the first rows of the parts of a mixture.
    """

    def __init__(
        self, num_labels: Array, *, batch_size: int, rank: int = 0, world_size: int = 1, edges: Sequence[int] = (0,)
    ) -> None:
        self.batch_size = batch_size
        self._num_labels, self._edges = num_labels, edges
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return len(self._mine())

    def __iter__(self) -> Iterator[MicroBatch]:
        for number, (begin, end) in self._mine():
            rows = np.arange(begin, end)
            yield MicroBatch(number, rows, int(self._num_labels[rows].sum()))

    def _mine(self) -> list[tuple[int, tuple[int, int]]]:
        """(number, its first row and the end of its rows) of each of this rank's batches."""
        ends = [*self._edges[1:], len(self._num_labels)]
        batches = [
            (begin, min(begin + self.batch_size, end))
            for first, end in zip(self._edges, ends, strict=True)
            for begin in range(first, end, self.batch_size)
        ]
        return list(enumerate(batches))[self._rank :: self._world_size]


def mixed(places: Array, shares: Sequence[Share], *, seed: int) -> Array:
    """The rows at `places` of a mixture's stream: in each epoch every share has its number of places, to the last."""
    bounds = np.cumsum([0, *(share.places for share in shares)])
    epochs, within = np.divmod(places, bounds[-1])
    slots = permuted(within, int(bounds[-1]), seed=seed, epochs=epochs)
    parts = np.searchsorted(bounds, slots, side="right") - 1
    rows = np.empty_like(slots)
    for number, share in enumerate(shares):
        here = parts == number
        of_part = epochs[here] * share.places + slots[here] - bounds[number]  # places of the part's own stream
        rows[here] = _rows_of(share, of_part, seed=seed + (number + 1) * _APART)
    return rows


def pool_order(num_rows: int, count: int) -> Array:
    """The first `count` rows of the order in which a cap takes them: drawn at random, the same for every seed."""
    zeros = np.zeros(count, dtype=np.int64)
    return permuted(np.arange(count), num_rows, seed=_POOL_SEED, epochs=zeros)


def _rows_of(share: Share, places: Array, *, seed: int) -> Array:
    """The rows at `places` of a part's own stream."""
    epochs, indices = np.divmod(places, share.pool)
    rows = permuted(indices, share.pool, seed=seed, epochs=epochs)
    if share.pool < share.num_rows:
        rows = permuted(rows, share.num_rows, seed=_POOL_SEED, epochs=np.zeros_like(rows))
    return share.first_row + rows


def permuted(indices: Array, size: int, *, seed: int, epochs: Array) -> Array:
    """Where permutations of range(size) send `indices`: no table, the same on every machine.

    Each epoch has a permutation of its own: a balanced Feistel network over the next even power of two, walked until
    it lands below `size`.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    # 64 bits of the seed in an array of one: numpy wraps arrays around in silence, as the mixing wants, not scalars
    keys = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) ^ epochs.astype(np.uint64))
    result = indices.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half_bits, result[outside] & mask
        for number in range(ROUNDS):
            mixed = _mix(keys[outside] ^ (right << np.uint64(8)) ^ np.uint64(number))
            left, right = right, left ^ (mixed & mask)
        result[outside] = left << half_bits | right
        outside = result >= size
    return result.astype(np.int64)


def _mix(values: Array) -> Array:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): 64 well-mixed bits of each uint64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed
