"""Shards -> rows of equal length for next-token training, which keep documents apart.

concatenate   documents end to end, cut wherever a row is full: no padding, many documents cut
best_fit      documents longer than a row are cut, the rest are put where they fit best: nearly no padding, none cut
padded        one document a row, and padding after it

Everywhere each token is a label exactly once, but a document's first one (bos), which nothing foretells. `position_ids`
start again at each document and with each row: that is what tells a Hugging Face model (without an attention mask and
without a cache) not to attend across.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm.config.data import Packing
from llm.data.order import MicroBatch
from llm.data.shards import Array, Manifest, Split, open_shard

Batch = dict[str, Any]
IGNORED = -100  # the label that torch's cross entropy leaves out


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


# Packing: which tokens of a shard lie in which row


def lay_out(lengths: Array, *, sequence_length: int, packing: Packing) -> "Concatenated | Placed":
    """The rows of a shard whose documents have `lengths` tokens (documents,), bos and eos included."""
    if packing is Packing.concatenate:
        return Concatenated(lengths, sequence_length)
    begins, sizes = cut(lengths, sequence_length)
    if packing is Packing.padded:
        return Placed(begins, sizes, np.arange(len(sizes)), np.zeros_like(sizes), sequence_length)
    return Placed(begins, sizes, *best_fit(sizes, sequence_length), sequence_length)


class Concatenated:
    """Row r has the tokens from r * sequence_length on, as inputs, and those from one later on, as labels."""

    def __init__(self, lengths: Array, sequence_length: int) -> None:
        self._length, self._num_tokens = sequence_length, int(lengths.sum())
        self._starts = np.cumsum(lengths) - lengths  # (documents,): where each begins
        num_rows = max(1, -(-(self._num_tokens - 1) // sequence_length))
        # row r labels the tokens edges[r] + 1 .. edges[r + 1]
        edges = np.minimum(np.arange(num_rows + 1) * sequence_length, self._num_tokens - 1)
        before = np.searchsorted(self._starts, edges, side="right")
        self.num_labels = (np.diff(edges) - np.diff(before)).astype(np.int64)  # (rows,): labels that count, per row

    def read(self, tokens: Array, rows: Array, *, pad_id: int) -> Array:
        """int64 (3, rows, seq): input_ids, labels and position_ids of the given rows; `tokens` are the shard's."""
        begins = rows[:, None] * self._length  # (rows, 1)
        places = begins + np.arange(self._length + 1)  # (rows, seq + 1): the last is a label only
        ids = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64)
        document_starts = self._starts[np.searchsorted(self._starts, places, side="right") - 1]
        ids[places >= len(tokens)] = pad_id
        is_label = (places < len(tokens)) & (places > document_starts)
        labels = np.where(is_label, ids, IGNORED)[:, 1:]
        position_ids = (places - np.maximum(document_starts, begins))[:, :-1]
        return np.stack([ids[:, :-1], labels, position_ids])

    def places(self, row: int) -> Array:
        """Places in the shard of at least one token of each document in a row."""
        return np.arange(row * self._length, min((row + 1) * self._length, self._num_tokens - 1) + 1)


class Placed:
    """Pieces of documents, each at a place of its own in a row; what no piece fills is padding, at a row's end."""

    def __init__(self, begins: Array, sizes: Array, rows: Array, offsets: Array, sequence_length: int) -> None:
        order = np.lexsort((offsets, rows))
        self._length = sequence_length
        self._begins, self._sizes, self._offsets = begins[order], sizes[order], offsets[order]
        self._first_pieces = np.searchsorted(rows[order], np.arange(rows.max() + 2))  # (rows + 1,)
        self.num_labels = np.add.reduceat(self._sizes, self._first_pieces[:-1])

    def read(self, tokens: Array, rows: Array, *, pad_id: int) -> Array:
        firsts, counts = self._first_pieces[rows], self._first_pieces[rows + 1] - self._first_pieces[rows]
        pieces = np.repeat(firsts, counts) + _count_up(counts)
        sizes = self._sizes[pieces]
        within = _count_up(sizes)  # (tokens,): the place of each token in its piece
        sources = np.repeat(self._begins[pieces], sizes) + within
        lines = np.repeat(np.arange(len(rows)) * self._length, counts)
        targets = np.repeat(lines + self._offsets[pieces], sizes) + within
        batch = np.empty((3, len(rows), self._length), dtype=np.int64)
        batch[0], batch[1] = pad_id, IGNORED
        batch[2] = np.maximum(np.arange(self._length) - self.num_labels[rows][:, None], 0)  # padding: one more document
        flat = batch.reshape(3, -1)
        flat[0, targets] = tokens[sources]
        flat[1, targets] = tokens[sources + 1]
        flat[2, targets] = within
        return batch

    def places(self, row: int) -> Array:
        return self._begins[self._first_pieces[row] : self._first_pieces[row + 1]]


def cut(lengths: Array, sequence_length: int) -> tuple[Array, Array]:
    """(first tokens, sizes) of the pieces of documents: as many labels as fit a row, and the rest.

    A document of n tokens has n - 1 labels, and as many inputs: its last token foretells nothing.
    """
    num_labels = lengths - 1
    counts = -(-num_labels // sequence_length)
    before = _count_up(counts) * sequence_length
    begins = np.repeat(np.cumsum(lengths) - lengths, counts) + before
    return begins, np.minimum(np.repeat(num_labels, counts) - before, sequence_length)


def best_fit(sizes: Array, capacity: int) -> tuple[Array, Array]:
    """(row, offset in it) of each piece: best-fit decreasing (Ding et al. 2024, arXiv:2404.10830).

    The largest piece that is left goes where it leaves the least room. Pieces of one size are placed together: a row
    with room f takes f // size of them, one after the other, for it is the fullest in which they fit.
    """
    rows, offsets = np.empty_like(sizes), np.empty_like(sizes)
    rows_by_room: dict[int, list[Array]] = {}
    num_rows = 0
    order = np.argsort(-sizes, kind="stable")
    for left in np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1):  # the pieces of one size
        size = int(sizes[left[0]])
        while len(left):
            room = min((room for room in rows_by_room if room >= size), default=None)
            if room is None:
                room, needed = capacity, -(-len(left) // (capacity // size))
                chosen = np.arange(num_rows, num_rows + needed)
                num_rows += needed
            else:
                chosen = np.concatenate(rows_by_room.pop(room))
            each = room // size
            placed, left = np.split(left, [each * len(chosen)])
            places = np.arange(len(placed))
            rows[placed] = chosen[places // each]
            offsets[placed] = capacity - room + places % each * size
            full, rest = divmod(len(placed), each)
            for some, taken in ((chosen[:full], each), (chosen[full : full + 1], rest), (chosen[full + 1 :], 0)):
                if len(some):
                    rows_by_room.setdefault(room - taken * size, []).append(some)
    return rows, offsets


def _count_up(counts: Array) -> Array:
    """0, 1, .. count - 1 for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
