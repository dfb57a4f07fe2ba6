"""Which rows a step takes: a pure function of (seed, step, rank), the same for any number of workers and processes.

A batch sampler hands a MicroBatch to the rows' __getitems__, which torch's DataLoader calls where it exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# Of the Feistel network. Three make it pass for random (Luby and Rackoff 1988) when it is large; for 10 rows, where an
# epoch sends a row was measured to be uneven with 4 and 6 (chi-square, z = 96 and 5) and even with 8 (1.4).
ROUNDS = 8
STEPS_AT_ONCE = 64  # whose rows are computed together: the cost is that of numpy's calls, not of the rows


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass."""

    step: int
    rows: Array  # (rows,)
    num_labels: int  # of the whole step, over all micro-batches and ranks: what its loss is divided by

    def __len__(self) -> int:
        return len(self.rows)


class TrainingBatches:
    """The micro-batches of one rank, step by step; epochs follow one another without a gap.

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
    ) -> None:
        assert batch_size % (micro_batch_size * world_size) == 0, (batch_size, micro_batch_size, world_size)
        self.start_step = 0  # where a resumed run goes on
        self._num_labels, self._seed = num_labels, seed
        self._batch_size, self._micro_batch_size, self._num_steps = batch_size, micro_batch_size, num_steps
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        """Micro-batches of the whole run, whatever start_step is: how Lightning knows the end."""
        return self._num_steps * self._batch_size // (self._micro_batch_size * self._world_size)

    def __iter__(self) -> Iterator[MicroBatch]:
        for first in range(self.start_step, self._num_steps, STEPS_AT_ONCE):
            last = min(first + STEPS_AT_ONCE, self._num_steps)
            for step, rows in enumerate(self._rows(first, last), first):
                num_labels = int(self._num_labels[rows].sum())
                mine = rows.reshape(self._world_size, -1)[self._rank]
                for micro_rows in mine.reshape(-1, self._micro_batch_size):
                    yield MicroBatch(step, micro_rows, num_labels)

    def rows_of(self, step: int) -> Array:
        """(batch_size,): the rows of a step, over all ranks."""
        rows: Array = self._rows(step, step + 1)[0]
        return rows

    def _rows(self, first: int, last: int) -> Array:
        """(steps, batch_size): the rows of the steps from `first` to before `last`."""
        places = np.arange(first * self._batch_size, last * self._batch_size)
        epochs, indices = np.divmod(places, len(self._num_labels))
        rows = permuted(indices, len(self._num_labels), seed=self._seed, epochs=epochs)
        return rows.reshape(-1, self._batch_size)


class EvaluationBatches:
    """Every row once, in order; the ranks take batches in turn, so one rank can have a batch more than another."""

    def __init__(self, num_labels: Array, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._num_labels, self._batch_size = num_labels, batch_size
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[MicroBatch]:
        for begin in self._starts():
            rows = np.arange(begin, min(begin + self._batch_size, len(self._num_labels)))
            yield MicroBatch(begin // self._batch_size, rows, int(self._num_labels[rows].sum()))

    def _starts(self) -> range:
        """The first row of each of this rank's batches."""
        first, step = self._rank * self._batch_size, self._world_size * self._batch_size
        return range(first, len(self._num_labels), step)


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
