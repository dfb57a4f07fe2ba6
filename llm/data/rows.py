"""Shards -> rows of equal length for next-token training, which keep documents apart.

Documents are laid end to end and cut into rows. `position_ids` start again at each document: that is what tells a
Hugging Face model (without an attention mask and without a cache) not to attend across. Each token is a label exactly
once per epoch, but a document's first one (bos), which nothing foretells.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm.data.order import MicroBatch
from llm.data.shards import Manifest, Split, open_shard

IGNORED = -100  # the label that torch's cross entropy leaves out

Array = np.ndarray[Any, Any]
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


class TokenRows:
    """The documents of a split in rows of `sequence_length` tokens, memory-mapped."""

    def __init__(self, folder: Path, manifest: Manifest, split: Split, *, sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self.raw_bytes, self.lost_bytes = split.raw_bytes, split.lost_bytes
        self._pad_id = manifest.eos_id
        self._tokens: list[Array] = []
        self._starts: list[Array] = []  # where each document begins
        num_labels = []
        for shard in split.shards:
            tokens, documents = open_shard(folder, shard, manifest.dtype)
            starts = np.concatenate([[0], np.cumsum(documents[:-1, 0])])
            self._tokens.append(tokens)
            self._starts.append(starts)
            num_labels.append(_count_labels(len(tokens), starts, sequence_length))
        self.num_labels = np.concatenate(num_labels)
        self._first_rows = np.cumsum([0, *map(len, num_labels)])  # the first row of each shard

    def __len__(self) -> int:
        return len(self.num_labels)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        rows = np.asarray(micro_batch.rows)
        batch = np.empty((3, len(rows), self.sequence_length), dtype=np.int64)
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            batch[:, here] = self._read(int(shard), rows[here] - self._first_rows[shard])
        import torch  # takes seconds, which the stages before training need not wait for

        input_ids, labels, position_ids = torch.from_numpy(batch)  # (rows, seq) each
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
            "num_labels": micro_batch.num_labels,
        }

    def _read(self, shard: int, rows: Array) -> tuple[Array, Array, Array]:
        """input_ids, labels, position_ids, (rows, seq) each, of the given rows of one shard."""
        tokens, starts = self._tokens[shard], self._starts[shard]
        begins = rows[:, None] * self.sequence_length  # (rows, 1)
        places = begins + np.arange(self.sequence_length + 1)  # (rows, seq + 1): the last is a label only
        ids = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64)
        document_starts = starts[np.searchsorted(starts, places, side="right") - 1]
        ids[places >= len(tokens)] = self._pad_id
        is_label = (places < len(tokens)) & (places > document_starts)
        labels = np.where(is_label, ids, IGNORED)[:, 1:]
        position_ids = (places - np.maximum(document_starts, begins))[:, :-1]
        return ids[:, :-1], labels, position_ids


def _count_labels(num_tokens: int, starts: Array, length: int) -> Array:
    """(rows,): tokens of each row's label positions that do not begin a document."""
    num_rows = max(1, -(-(num_tokens - 1) // length))
    edges = np.minimum(np.arange(num_rows + 1) * length, num_tokens - 1)  # row r labels tokens edges[r]+1 .. edges[r+1]
    before = np.searchsorted(starts, edges, side="right")
    return (np.diff(edges) - np.diff(before)).astype(np.int64)
