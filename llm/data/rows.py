"""Shards -> rows of equal length for next-token training, which keep documents apart.

concatenate   documents end to end, cut wherever a row is full: no padding, many documents cut
best_fit      documents longer than a row are cut, the rest are put where they fit best: nearly no padding, none cut
padded        one document a row, and padding after it

Everywhere each token is a label exactly once, but a document's first one (bos), which nothing foretells. `position_ids`
start again at each document and with each row: that is what tells a Hugging Face model (without an attention mask and
without a cache) not to attend across.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from llm.config.data import Packing
from llm.data.order import MicroBatch, Share
from llm.data.shards import Array, Sources, open_shard

Batch = dict[str, Any]
IGNORED = -100  # the label that torch's cross entropy leaves out
MOST_BLOCKS = 500  # whose nats a validation keeps: documents, or of more so many rows of documents of like number
LENGTH_STEP = 8  # tokens, of which GPUs want a multiple; of a row of 200 it moves the bytes by 2 % at most


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


def length_of_bytes(num_bytes: int, *, tokens: int, raw_bytes: int) -> int:
    """The tokens that hold `num_bytes` of a text on average, in whole multiples of LENGTH_STEP."""
    return LENGTH_STEP * max(1, round(num_bytes * tokens / raw_bytes / LENGTH_STEP))


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The rows of one part of a mixture, one after the other, and what their loss is measured by."""

    first_row: int
    num_labels: Array  # (rows of the part,)
    raw_bytes: int
    lost_bytes: int


class TokenRows:
    """The documents of a split in rows of `sequence_length` tokens, memory-mapped; no row has tokens of two shards.

    Of a mixture the rows of all its parts, one part after the other by name.
    """

    def __init__(
        self,
        sources: Sources,
        split: str,
        *,
        sequence_length: int,
        packing: Packing = Packing.concatenate,  # what held-out text is measured by, whatever a model is trained on
    ) -> None:
        self.sequence_length = sequence_length
        self._sources, self._split = sources, split
        self.shares: list[Share] = []  # what an epoch of a mixture has of each part
        self._shards: list[tuple[str, Array, Packed]] = []  # name, tokens, what lies where in the rows
        parts: dict[str, Part] = {}
        num_rows = 0
        for name in sorted(sources):
            folder, manifest = sources[name]
            self._pad_id, of_split, first = manifest.eos_id, getattr(manifest, split), len(self._shards)
            for shard in of_split.shards:
                tokens, documents = open_shard(folder, shard, manifest.dtype)
                packed = lay_out(documents[:, 0], sequence_length=sequence_length, packing=packing)
                self._shards.append((f"{name} {shard.tokens_file}".strip(), tokens, packed))
            parts[name] = Part(
                first_row=num_rows,
                num_labels=np.concatenate([packed.num_labels for *_, packed in self._shards[first:]]),
                raw_bytes=of_split.raw_bytes,
                lost_bytes=of_split.lost_bytes,
            )
            num_rows += len(parts[name].num_labels)
        self._first_rows = np.cumsum([0, *(len(packed.num_labels) for *_, packed in self._shards)])  # of each shard
        self.parts = parts if "" not in parts else {}  # of a mixture, by name
        self.first_rows = [part.first_row for part in parts.values()]  # of each part
        self.num_labels: Array = np.concatenate([part.num_labels for part in parts.values()])
        self.raw_bytes = sum(part.raw_bytes for part in parts.values())
        self.lost_bytes = sum(part.lost_bytes for part in parts.values())

    def __len__(self) -> int:
        return len(self.num_labels)

    def part_of(self, row: int) -> int:
        """The number of the part that has a row."""
        return int(np.searchsorted(self.first_rows, row, side="right")) - 1

    @property
    def padding_share(self) -> float:
        """Of the positions of all rows, those without a label: padding, and where a document ends."""
        return 1 - float(self.num_labels.sum()) / (len(self) * self.sequence_length)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        import torch  # takes seconds, which the stages before training need not wait for

        batch = self._read(np.asarray(micro_batch.rows), lambda shard: self._shards[shard][1])
        input_ids, labels, position_ids = torch.from_numpy(batch)  # (rows, seq) each
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
            "num_labels": micro_batch.num_labels,
        }

    def _read(self, rows: Array, of_shard: Callable[[int], Array]) -> Array:
        """int64 (3, rows, seq), see Packed.read, of what a shard has for each of its tokens."""
        batch = np.empty((3, len(rows), self.sequence_length), dtype=np.int64)
        shards = self._shards_of(rows)
        for shard in np.unique(shards):
            here, packed = shards == shard, self._shards[shard][2]
            batch[:, here] = packed.read(of_shard(shard), rows[here] - self._first_rows[shard], pad_id=self._pad_id)
        return batch

    @property
    def block_bytes(self) -> Array:
        """(blocks,): the raw bytes of each; the same documents make a block under every tokenizer."""
        return self._blocks[0]

    def blocks_of(self, rows: Array) -> Array:
        """int64 (rows, seq): the block of each position with a label; of any other it means nothing."""
        blocks: Array = self._read(np.asarray(rows), lambda shard: self._blocks[1][shard])[0]
        return np.minimum(blocks, len(self.block_bytes) - 1)

    @cached_property
    def _blocks(self) -> tuple[Array, list[Array]]:
        """(the raw bytes of each block, for each shard the block of each of its tokens)."""
        of_split = [(folder, made, getattr(made, self._split)) for _, (folder, made) in sorted(self._sources.items())]
        documents = [
            open_shard(folder, each, made.dtype)[1] for folder, made, split in of_split for each in split.shards
        ]
        sizes = np.concatenate([each[:, 1] for each in documents])
        numbers = np.arange(len(sizes)) * min(len(sizes), MOST_BLOCKS) // len(sizes)
        of_shards = np.split(numbers, np.cumsum([len(each) for each in documents])[:-1])
        of_tokens = [np.repeat(own, each[:, 0]) for own, each in zip(of_shards, documents, strict=True)]
        return np.bincount(numbers, sizes).astype(np.int64), of_tokens

    def describe(self, rows: Array) -> list[str]:
        """The documents of each row, counted from 0 within their shard."""
        said = []
        for shard, row in zip(self._shards_of(rows), rows, strict=True):
            name, _, packed = self._shards[shard]
            numbers = packed.documents_of(row - self._first_rows[shard])
            said.append(f"{name} document{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}")
        return said

    def _shards_of(self, rows: Array) -> Array:
        return np.searchsorted(self._first_rows, rows, side="right") - 1


# Packing: which tokens of a shard lie in which row


class Packed:
    """Pieces of documents, each at a place of its own in a row; what no piece fills is padding, at a row's end."""

    def __init__(
        self, lengths: Array, begins: Array, sizes: Array, rows: Array, offsets: Array, *, sequence_length: int
    ) -> None:
        """`lengths` (documents,) of these; (pieces,) each: first token, tokens, row, and place in it."""
        order = np.lexsort((offsets, rows))
        self._length, self._ends = sequence_length, np.cumsum(lengths)
        self._begins, self._sizes, self._offsets = begins[order], sizes[order], offsets[order]
        self._is_end = np.isin(self._begins + self._sizes, self._ends)  # with eos among its inputs, which has no label
        self._first_pieces = np.searchsorted(rows[order], np.arange(rows.max() + 2))  # (rows + 1,)
        self.num_labels = np.add.reduceat(self._sizes - self._is_end, self._first_pieces[:-1])
        last = self._first_pieces[1:] - 1
        # Padding is one document more, but after an eos the rest of its document, of the same token.
        self._padding = self._offsets[last] + np.where(self._is_end[last], 0, self._sizes[last])  # (rows,)

    def read(self, tokens: Array, rows: Array, *, pad_id: int) -> Array:
        """int64 (3, rows, seq): input_ids, labels and position_ids of the given rows; `tokens` are the shard's."""
        firsts, counts = self._first_pieces[rows], self._first_pieces[rows + 1] - self._first_pieces[rows]
        pieces = np.repeat(firsts, counts) + _count_up(counts)
        sizes = self._sizes[pieces]
        within = _count_up(sizes)  # (tokens,): the place of each token in its piece
        sources = np.repeat(self._begins[pieces], sizes) + within
        begins = np.repeat(np.arange(len(rows)) * self._length, counts) + self._offsets[pieces]
        targets = np.repeat(begins, sizes) + within
        batch = np.empty((3, len(rows), self._length), dtype=np.int64)
        batch[0], batch[1] = pad_id, IGNORED
        batch[2] = np.maximum(np.arange(self._length) - self._padding[rows][:, None], 0)
        flat = batch.reshape(3, -1)
        flat[0, targets] = tokens[sources]
        flat[1, targets] = tokens[np.minimum(sources + 1, len(tokens) - 1)]
        flat[1, (begins + sizes - 1)[self._is_end[pieces]]] = IGNORED
        flat[2, targets] = within
        return batch

    def documents_of(self, row: int) -> list[int]:
        """The numbers of the documents of which a row has a piece."""
        begins = self._begins[self._first_pieces[row] : self._first_pieces[row + 1]]
        numbers: list[int] = np.unique(np.searchsorted(self._ends, begins, side="right")).tolist()
        return numbers


def lay_out(lengths: Array, *, sequence_length: int, packing: Packing) -> Packed:
    """The rows of a shard whose documents have `lengths` tokens (documents,), bos and eos included."""
    if packing is Packing.concatenate:
        begins, sizes = cut_at_rows(lengths, sequence_length)
        rows, offsets = np.divmod(begins, sequence_length)
    else:
        begins, sizes = cut(lengths, sequence_length)
        rows, offsets = np.arange(len(sizes)), np.zeros_like(sizes)
        if packing is not Packing.padded:
            rows, offsets = best_fit(sizes, sequence_length)
    return Packed(lengths, begins, sizes, rows, offsets, sequence_length=sequence_length)


def cut_at_rows(lengths: Array, sequence_length: int) -> tuple[Array, Array]:
    """(first tokens, sizes) of the pieces of documents that lie end to end, cut where a row is full.

    The last token of all is in no row of its own, for nothing follows it.
    """
    total = int(lengths.sum())
    num_rows = -(-(total - 1) // sequence_length)
    begins = np.union1d(np.cumsum(lengths) - lengths, np.arange(num_rows) * sequence_length)
    return begins, np.diff(begins, append=min(total, num_rows * sequence_length))


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
