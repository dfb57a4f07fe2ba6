"""Shards -> rows of equal length for next-token training, which keep documents apart.

`position_ids` start again at each document: that is what tells a Hugging Face model (without an attention mask and
without a cache) not to attend across. Which tokens a row has is packing.py's.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm.config.data import Packing
from llm.data.order import MicroBatch
from llm.data.packing import IGNORED, lay_out
from llm.data.shards import Array, Manifest, Split, open_shard

__all__ = ["IGNORED", "Array", "Batch", "Rows", "TokenRows"]

Batch = dict[str, Any]


class Rows(Protocol):
    """What training and evaluation read: rows of tokens, and what their loss is measured by."""

    num_labels: Array  # (rows,): labels that count, per row
    raw_bytes: int  # of the text that the labels spell, UTF-8 before any normalization
    lost_bytes: int  # of these, what the tokenizer cannot represent

    def __len__(self) -> int: ...

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        """input_ids, labels, position_ids: int64 (rows, seq); num_labels: those of the whole step, an int.

        labels[t] is the token that follows input_ids[t], or IGNORED.
        """
        ...

    def describe(self, rows: Array) -> list[str]:
        """Where what stands in these rows is from, a few words for each document: for messages."""
        ...


class TokenRows:
    """The documents of a split in rows of `sequence_length` tokens, memory-mapped; no row has tokens of two shards."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: Split,
        *,
        sequence_length: int,
        packing: Packing = Packing.concatenate,  # what held-out text is measured by, whatever a model is trained on
    ) -> None:
        self.sequence_length = sequence_length
        self.raw_bytes, self.lost_bytes = split.raw_bytes, split.lost_bytes
        self._pad_id = manifest.eos_id
        opened = [open_shard(folder, shard, manifest.dtype) for shard in split.shards]
        self._tokens = [tokens for tokens, _ in opened]
        self._layouts = [
            lay_out(documents[:, 0], sequence_length=sequence_length, packing=packing) for _, documents in opened
        ]
        self._names = [shard.tokens_file for shard in split.shards]
        self._starts = [np.cumsum(documents[:, 0]) - documents[:, 0] for _, documents in opened]
        num_labels = [layout.num_labels for layout in self._layouts]
        self.num_labels = np.concatenate(num_labels)
        self._first_rows = np.cumsum([0, *map(len, num_labels)])  # the first row of each shard

    def __len__(self) -> int:
        return len(self.num_labels)

    @property
    def padding_share(self) -> float:
        """Of the positions of all rows, those without a label: padding, and where a document ends."""
        return 1 - float(self.num_labels.sum()) / (len(self) * self.sequence_length)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        import torch  # takes seconds, which the stages before training need not wait for

        rows = np.asarray(micro_batch.rows)
        batch = np.empty((3, len(rows), self.sequence_length), dtype=np.int64)
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            within = rows[here] - self._first_rows[shard]
            batch[:, here] = self._layouts[shard].read(self._tokens[shard], within, pad_id=self._pad_id)
        input_ids, labels, position_ids = torch.from_numpy(batch)  # (rows, seq) each
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
            "num_labels": micro_batch.num_labels,
        }

    def describe(self, rows: Array) -> list[str]:
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        return [
            self._describe(int(shard), int(row - self._first_rows[shard]))
            for shard, row in zip(shards, rows, strict=True)
        ]

    def _describe(self, shard: int, row: int) -> str:
        """The documents of one row, counted from 0 within their shard."""
        places = self._layouts[shard].places(row)
        numbers = np.unique(np.searchsorted(self._starts[shard], places, side="right") - 1).tolist()
        return f"{self._names[shard]} document{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
