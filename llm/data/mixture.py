"""The parts of a mixture -> the text that its tokenizer learns from, and the rows that its model does, in proportion.

Weights are shares of bytes of raw text: whatever a tokenizer makes of it, models see the same proportions. An epoch of
a mixture has as much text as its parts have together; a part whose weight is above its size comes several times in it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np

from llm.config.data import PartConfig
from llm.data.documents import Documents
from llm.data.order import MicroBatch, Share, pool_order
from llm.data.rows import Array, Batch, Rows, TokenRows
from llm.errors import ConfigError

_TENSORS = ("input_ids", "labels", "position_ids")


def texts_in_proportion(
    documents: Mapping[str, Documents], sizes: Mapping[str, int], parts: Mapping[str, PartConfig]
) -> Iterator[str]:
    """The training texts of all parts, of `sizes` bytes, as weights and caps say: some several times or not at all."""
    pools = {name: min(parts[name].max_bytes or size, size) for name, size in sizes.items()}
    wanted = amounts(parts, pools)
    for name, size in sizes.items():
        kept, times = pools[name] / size, float(wanted[name] / pools[name])
        for text in documents[name].texts("train"):
            if kept == 1 or _draw("cap", text) < kept:
                yield from [text] * (int(times) + (times % 1 > 0 and _draw("repeat", text) < times % 1))


def amounts(parts: Mapping[str, PartConfig], pools: Mapping[str, Fraction | int]) -> dict[str, Fraction]:
    """Bytes that each part has of an epoch, of `pools` bytes that there are of it: these, or the same by weight."""
    total = sum(map(Fraction, pools.values()))
    weights = {name: parts[name].weight for name in pools}
    if None in weights.values():
        return {name: Fraction(pool) for name, pool in pools.items()}
    whole = sum(Fraction(weight or 0) for weight in weights.values())
    return {name: total * Fraction(weight or 0) / whole for name, weight in weights.items()}


class MixedRows:
    """The rows of all parts, one part after the other by name; in training `shares` says what an epoch has of each."""

    def __init__(self, rows: Mapping[str, TokenRows], parts: Mapping[str, PartConfig] | None = None) -> None:
        """`parts` have the weights and caps of what is trained on.

        Raises:
            ConfigError: a cap leaves no row.
        """
        self.parts: dict[str, TokenRows] = {name: rows[name] for name in sorted(rows)}
        own = list(self.parts.values())
        self.sequence_length = own[0].sequence_length
        self.num_labels: Array = np.concatenate([part.num_labels for part in own])
        self.raw_bytes = sum(part.raw_bytes for part in own)
        self.lost_bytes = sum(part.lost_bytes for part in own)
        self.first_rows: list[int] = [0, *np.cumsum([len(part) for part in own[:-1]]).tolist()]
        self.shares = self._shares(parts) if parts else []

    def __len__(self) -> int:
        return len(self.num_labels)

    def part_of(self, row: int) -> int:
        """The number of the part that has a row."""
        return int(np.searchsorted(self.first_rows, row, side="right")) - 1

    @property
    def padding_share(self) -> float:
        return 1 - float(self.num_labels.sum()) / (len(self) * self.sequence_length)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        import torch  # takes seconds, which the stages before training need not wait for

        rows = np.asarray(micro_batch.rows)
        parts = np.searchsorted(self.first_rows, rows, side="right") - 1
        batch = {key: torch.empty((len(rows), self.sequence_length), dtype=torch.int64) for key in _TENSORS}
        for number, part in enumerate(self.parts.values()):
            here = np.flatnonzero(parts == number)
            if len(here):
                within = MicroBatch(micro_batch.step, rows[here] - self.first_rows[number], micro_batch.num_labels)
                read = part.__getitems__(within)
                for key in _TENSORS:
                    batch[key][torch.from_numpy(here)] = read[key]
        return {**batch, "num_labels": micro_batch.num_labels}

    def describe(self, rows: Array) -> list[str]:
        found = []
        for row in map(int, rows):
            number = self.part_of(row)
            (said,) = list(self.parts.values())[number].describe(np.array([row - self.first_rows[number]]))
            found.append(f"{list(self.parts)[number]} {said}")
        return found

    def _shares(self, parts: Mapping[str, PartConfig]) -> list[Share]:
        pools = {name: _pool(name, rows, parts[name]) for name, rows in self.parts.items()}
        kept = {name: size for name, (_, size) in pools.items()}
        wanted = amounts(parts, kept)
        return [
            Share(first, len(rows), pools[name][0], max(1, round(wanted[name] / kept[name] * pools[name][0])))
            for (name, rows), first in zip(self.parts.items(), self.first_rows, strict=True)
        ]


def _pool(name: str, rows: Rows, part: PartConfig) -> tuple[int, Fraction]:
    """(rows that a part's caps leave, bytes of these), by the labels that they have."""
    labels = int(rows.num_labels.sum())
    max_bytes = part.max_bytes and part.max_bytes * labels // rows.raw_bytes
    caps = [("max_tokens", part.max_tokens), ("max_bytes", max_bytes)]
    key, cap = min(
        ((key, cap) for key, cap in caps if cap is not None), key=lambda found: found[1], default=("", labels)
    )
    if cap >= labels:
        return len(rows), Fraction(rows.raw_bytes)
    in_order = np.cumsum(rows.num_labels[pool_order(len(rows), len(rows))])
    pool = int(np.searchsorted(in_order, cap, side="right"))
    if pool == 0:
        raise ConfigError(
            f"data.parts.{name}.{key}={getattr(part, key)} is less than a row of {int(in_order[0])} tokens. Raise it, "
            "or lower data.sequence_length."
        )
    return pool, Fraction(int(in_order[pool - 1]) * rows.raw_bytes, labels)


def _draw(purpose: str, text: str) -> float:
    """A number from 0 to 1 that looks random, the same for the same text."""
    digest = hashlib.sha256(f"mixture {purpose}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
