"""Which rows a step takes: a pure function of (seed, step, rank), the same for any number of workers and processes.

A batch sampler hands a MicroBatch to the rows' __getitems__, which torch's DataLoader calls where it exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ROUNDS = 4  # of the Feistel network: a permutation that passes for random from three on (Luby and Rackoff 1988)


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
        for step in range(self.start_step, self._num_steps):
            rows = self.rows_of(step)
            num_labels = int(self._num_labels[rows].sum())
            mine = rows.reshape(self._world_size, -1)[self._rank]
            for micro_rows in mine.reshape(-1, self._micro_batch_size):
                yield MicroBatch(step, micro_rows, num_labels)

    def rows_of(self, step: int) -> Array:
        """(batch_size,): the rows of a step, over all ranks."""
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        size = len(self._num_labels)
        return np.array(
            [permuted(place % size, size, seed=self._seed, epoch=place // size) for place in places.tolist()]
        )


class EvaluationBatches:
    """Every row once, in order, shared out among the ranks; each rank has as many batches, the last ones may be empty."""

    def __init__(self, num_labels: Array, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._num_labels, self._batch_size = num_labels, batch_size
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self._num_labels) // (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[MicroBatch]:
        rows = np.arange(len(self._num_labels))
        for index in range(len(self)):
            begin = (index * self._world_size + self._rank) * self._batch_size
            mine = rows[begin : begin + self._batch_size]
            if len(mine):
                yield MicroBatch(index, mine, int(self._num_labels[mine].sum()))


def permuted(index: int, size: int, *, seed: int, epoch: int) -> int:
    """Where a permutation of range(size), chosen by seed and epoch, sends `index`: no table, the same on every machine.

    A balanced Feistel network over the next even power of two, walked until it lands below `size`.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    key = _mix(_mix(seed) ^ epoch)
    while True:
        left, right = index >> half_bits, index & mask
        for round_number in range(ROUNDS):
            left, right = right, left ^ (_mix(key ^ (right << 8) ^ round_number) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def _mix(value: int) -> int:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): 64 well-mixed bits."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
