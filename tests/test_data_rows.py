"""Rows of tokens, in each packing against rows that are built one token at a time, and which of them a step takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import llm.data.order as order_module
from llm.config.data import Packing
from llm.data.order import ROUNDS, EvaluationBatches, MicroBatch, TrainingBatches, permuted
from llm.data.rows import IGNORED, TokenRows, best_fit
from llm.data.shards import Manifest, Shard, Split

BOS = EOS = 0
Row = tuple[list[int], list[int], list[int]]  # input_ids, labels, position_ids
PACKINGS = [Packing.concatenate, Packing.best_fit, Packing.padded]


def write_split(folder: Path, shards: list[list[list[int]]], *, name: str = "train", dtype: str = "uint16") -> Split:
    """A split over documents of given tokens, shard by shard; each document gets its bos and eos here."""
    made = []
    for number, documents in enumerate(shards):
        whole = [[BOS, *document, EOS] for document in documents]
        tokens_file, documents_file = f"{name}-{number:05d}.bin", f"{name}-{number:05d}.documents.npy"
        np.concatenate(whole).astype(dtype).tofile(folder / tokens_file)
        np.save(folder / documents_file, np.array([[len(d), 3 * len(d)] for d in whole], dtype=np.int64))
        size = sum(map(len, whole))
        counts = {"tokens": size, "documents": len(whole), "raw_bytes": 3 * size, "lost_bytes": 0}
        made.append(Shard(tokens_file=tokens_file, documents_file=documents_file, sha256={}, **counts))
    totals = {key: sum(getattr(shard, key) for shard in made) for key in ("documents", "tokens")}
    return Split(**totals, raw_bytes=1, lost_bytes=0, unigram_bits_per_byte=0.0, shards=made)


def write_rows(
    folder: Path,
    shards: list[list[list[int]]],
    *,
    sequence_length: int,
    dtype: str = "uint16",
    packing: Packing = Packing.concatenate,
) -> TokenRows:
    """TokenRows over documents of given tokens, shard by shard."""
    split = write_split(folder, shards, dtype=dtype)
    manifest = Manifest(dtype=dtype, vocab_size=2**16, bos_id=BOS, eos_id=EOS, train=split, held_out=split)
    return TokenRows({"": (folder, manifest)}, "train", sequence_length=sequence_length, packing=packing)


def slow_rows(shards: list[list[list[int]]], length: int, packing: Packing) -> list[Row]:
    if packing is Packing.concatenate:
        return [row for shard in shards for row in slow_concatenated(shard, length)]
    return [row for shard in shards for row in slow_packed(shard, length, packing)]


def slow_concatenated(documents: list[list[int]], length: int) -> list[Row]:
    """The rows of a shard, one token at a time."""
    rows: list[Row] = []
    # each token and its place in its document
    stream = [(token, place) for document in documents for place, token in enumerate([BOS, *document, EOS])]
    start = 0
    while start == 0 or start < len(stream) - 1:
        input_ids, labels, position_ids = [], [], []
        for at in range(start, start + length):
            inside = at < len(stream)
            input_ids.append(stream[at][0] if inside else EOS)
            follows = at + 1 < len(stream) and stream[at + 1][1] > 0
            labels.append(stream[at + 1][0] if follows else IGNORED)
            starts_here = inside and stream[at][1] == 0
            position_ids.append(0 if at == start or starts_here else position_ids[-1] + 1)
        rows.append((input_ids, labels, position_ids))
        start += length
    return rows


def slow_pieces(documents: list[list[int]], length: int) -> list[list[int]]:
    """Each document with its ends, cut after every `length` labels; a piece begins with the last token before it."""
    pieces = []
    for document in documents:
        whole = [BOS, *document, EOS]
        pieces += [whole[start : start + length + 1] for start in range(0, len(whole) - 1, length)]
    return pieces


def slow_best_fit(sizes: list[int], capacity: int) -> list[list[int]]:
    """The pieces of each row, placed one by one: the largest first, where it leaves the least room.

    Of rows with the same room the one that has had it longest is taken.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of each row: (room, when it came to that)
    for when, piece in enumerate(sorted(range(len(sizes)), key=lambda piece: -sizes[piece])):
        fitting = [(*room[row], row) for row in range(len(rows)) if room[row][0] >= sizes[piece]]
        if fitting:
            row = min(fitting)[2]
        else:
            row = len(rows)
            rows.append([])
            room.append((capacity, when))
        rows[row].append(piece)
        room[row] = (room[row][0] - sizes[piece], when)
    return rows


def slow_packed(documents: list[list[int]], length: int, packing: Packing) -> list[Row]:
    made = []
    pieces = slow_pieces(documents, length)
    sizes = [len(piece) - 1 for piece in pieces]
    for row in slow_best_fit(sizes, length) if packing is Packing.best_fit else [[i] for i in range(len(pieces))]:
        input_ids, labels, position_ids = [], [], []
        for piece in row:
            input_ids += pieces[piece][:-1]
            labels += pieces[piece][1:]
            position_ids += range(sizes[piece])
        padding = length - len(labels)
        made.append((input_ids + [EOS] * padding, labels + [IGNORED] * padding, position_ids + list(range(padding))))
    return made


def all_rows(rows: TokenRows) -> list[Row]:
    batch = rows.__getitems__(MicroBatch(0, np.arange(len(rows)), 0))
    columns = (batch[name].tolist() for name in ("input_ids", "labels", "position_ids"))
    return list(zip(*columns, strict=True))


def random_shards(seed: int) -> tuple[list[list[list[int]]], int]:
    """Shards of documents with 0 to 4 x length tokens, each token another, and a length."""
    rng = np.random.default_rng(seed)
    length, numbers = int(rng.integers(2, 12)), iter(range(1, 2**16))
    sizes = [rng.integers(0, 4 * length if rng.random() < 0.5 else 3, rng.integers(1, 9)) for _ in range(3)]
    return [[[next(numbers) for _ in range(size)] for size in shard] for shard in sizes], length


# TokenRows

# 0 5 6 0 | 0 7 0 | 0 0 | 0 1 2 3 4 8 9 0, of which the last has 7 labels
DOCUMENTS = [[5, 6], [7], [], [1, 2, 3, 4, 8, 9]]
BY_HAND: dict[Packing, list[tuple[Row, str]]] = {  # with which documents a row has
    Packing.concatenate: [
        (([0, 5, 6, 0], [5, 6, 0, IGNORED], [0, 1, 2, 3]), " 0"),
        (([0, 7, 0, 0], [7, 0, IGNORED, 0], [0, 1, 2, 0]), "s 1, 2"),
        (([0, 0, 1, 2], [IGNORED, 1, 2, 3], [0, 0, 1, 2]), "s 2, 3"),
        (([3, 4, 8, 9], [4, 8, 9, 0], [0, 1, 2, 3]), " 3"),
    ],
    Packing.best_fit: [
        (([0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3]), " 3"),
        (([0, 5, 6, 0], [5, 6, 0, 0], [0, 1, 2, 0]), "s 0, 2"),  # the document of one label fills what is left
        (([4, 8, 9, EOS], [8, 9, 0, IGNORED], [0, 1, 2, 0]), " 3"),
        (([0, 7, EOS, EOS], [7, 0, IGNORED, IGNORED], [0, 1, 0, 1]), " 1"),
    ],
    Packing.padded: [
        (([0, 5, 6, EOS], [5, 6, 0, IGNORED], [0, 1, 2, 0]), " 0"),
        (([0, 7, EOS, EOS], [7, 0, IGNORED, IGNORED], [0, 1, 0, 1]), " 1"),
        (([0, EOS, EOS, EOS], [0, IGNORED, IGNORED, IGNORED], [0, 0, 1, 2]), " 2"),
        (([0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3]), " 3"),
        (([4, 8, 9, EOS], [8, 9, 0, IGNORED], [0, 1, 2, 0]), " 3"),
    ],
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_worked_by_hand_and_what_they_say_of_themselves(tmp_path: Path, packing: Packing) -> None:
    rows = write_rows(tmp_path, [DOCUMENTS, [[5, 6]]], sequence_length=4, packing=packing)
    assert all_rows(rows)[:-1] == [row for row, _ in BY_HAND[packing]]
    said = [f"train-00000.bin document{numbers}" for _, numbers in BY_HAND[packing]]
    assert rows.describe(np.arange(len(rows))) == [*said, "train-00001.bin document 0"]


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_equal_a_slow_loop_and_every_token_but_bos_is_a_label_once(tmp_path: Path, packing: Packing) -> None:
    for seed in range(60):
        shards, length = random_shards(seed)
        dtype = "uint16" if seed % 2 else "uint32"
        rows = write_rows(tmp_path, shards, sequence_length=length, dtype=dtype, packing=packing)
        assert all_rows(rows) == slow_rows(shards, length, packing), seed
        labels = [[label for label in row if label != IGNORED] for _, row, _ in all_rows(rows)]
        tokens = [token for shard in shards for document in shard for token in [*document, EOS]]
        assert sorted(label for row in labels for label in row) == sorted(tokens)
        assert rows.num_labels.tolist() == list(map(len, labels))
        assert rows.padding_share == pytest.approx(1 - len(tokens) / (len(rows) * length), abs=1e-12)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    shards, length = random_shards(2)
    rows = write_rows(tmp_path, shards, sequence_length=length)
    every, order = all_rows(rows), np.random.default_rng(0).permutation(len(rows))
    batch = rows.__getitems__(MicroBatch(3, order, 17))
    assert batch["input_ids"].tolist() == [every[row][0] for row in order]
    assert batch["labels"].tolist() == [every[row][1] for row in order]
    assert batch["num_labels"] == 17
    assert {batch[name].dtype for name in ("input_ids", "labels", "position_ids")} == {torch.int64}


@pytest.mark.parametrize(("capacity", "pieces", "most"), [(1024, 20_000, 1.002), (64, 5000, 1.01)])
def test_best_fit_needs_hardly_more_rows_than_there_are_tokens_for(capacity: int, pieces: int, most: float) -> None:
    sizes = np.random.default_rng(0).lognormal(4, 1.3, pieces).astype(np.int64).clip(1, capacity)
    rows, offsets = best_fit(sizes, capacity)
    taken = np.zeros((rows.max() + 1, capacity), dtype=np.int64)
    for row, offset, size in zip(rows, offsets, sizes, strict=True):
        taken[row, offset : offset + size] += 1
    assert taken.max() == 1  # nothing lies on another
    assert taken.sum() == sizes.sum()
    assert len(taken) < most * sizes.sum() / capacity + 1


# The order


def slow_permuted(index: int, size: int, *, seed: int, epoch: int) -> int:
    """The permutation in plain integers, as the paper's figure has it."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    key = slow_mix(slow_mix(seed) ^ epoch)
    while True:
        left, right = index >> half_bits, index & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (slow_mix(key ^ (right << 8) ^ number) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def slow_mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return value ^ (value >> 31)


def test_an_epoch_is_every_row_once() -> None:
    for size in (*range(1, 71), 4096, 99_991):
        order = permuted(np.arange(size), size, seed=3, epochs=np.full(size, 2))
        assert sorted(order.tolist()) == list(range(size))


@pytest.mark.parametrize(
    ("size", "seed"), [(1, 0), (2, 1), (5, -1), (64, 2**63), (1000, 12345678901234567890), (2**40 + 3, 5)]
)
def test_the_order_equals_plain_integer_arithmetic(size: int, seed: int) -> None:
    rng = np.random.default_rng(0)
    indices, epochs = rng.integers(0, size, 200), rng.integers(0, 5, 200)
    pairs = zip(indices.tolist(), epochs.tolist(), strict=True)
    expected = [slow_permuted(index, size, seed=seed, epoch=epoch) for index, epoch in pairs]
    assert permuted(indices, size, seed=seed, epochs=epochs).tolist() == expected


@pytest.mark.parametrize("size", [3, 10, 100])
def test_an_epoch_may_send_a_row_anywhere(size: int) -> None:
    """20 rows over 20,000 epochs each: the sum of their chi-squares is within 4 standard deviations of its mean."""
    cells, total = min(size, 10), 0.0
    for seed in range(20):
        places = permuted(np.full(20_000, seed % size), size, seed=seed, epochs=np.arange(20_000))
        counts = np.bincount(places * cells // size, minlength=cells)
        total += ((counts - 20_000 * _share(size, cells)) ** 2 / (20_000 * _share(size, cells))).sum()
    freedom = 20 * (cells - 1)
    assert abs(total - freedom) < 4 * (2 * freedom) ** 0.5


def _share(size: int, cells: int) -> Any:
    return np.bincount(np.arange(size) * cells // size, minlength=cells) / size


# Training batches

NUM_LABELS = np.random.default_rng(0).integers(1, 9, 37)


def batches(**settings: Any) -> TrainingBatches:
    return TrainingBatches(
        NUM_LABELS, **({"batch_size": 8, "micro_batch_size": 2, "num_steps": 13, "seed": 5} | settings)
    )


def plain(steps: Any) -> list[tuple[int, list[int], int]]:
    return [(batch.step, batch.rows.tolist(), batch.num_labels) for step in steps for batch in step]


def test_epochs_follow_one_another_without_a_gap() -> None:
    rows = [row for step in range(37) for row in batches().rows_of(step).tolist()]
    assert len(rows) == 8 * 37
    for epoch in range(8):
        assert sorted(rows[37 * epoch : 37 * (epoch + 1)]) == list(range(37))


def test_num_labels_is_that_of_the_whole_step() -> None:
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            for step, _, num_labels in plain(batches(rank=rank, world_size=world_size)):
                assert num_labels == sum(NUM_LABELS[row] for row in batches().rows_of(step))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_share_out_the_rows_of_a_step(world_size: int) -> None:
    shares = [plain(batches(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step in range(13):
        rows = [[row for at, some, _ in share if at == step for row in some] for share in shares]
        assert len({len(share) for share in rows}) == 1
        assert [row for share in rows for row in share] == batches().rows_of(step).tolist()
    assert [len(share) for share in shares] == [13 * 4 // world_size] * world_size


def test_a_resumed_run_takes_the_batches_that_were_left() -> None:
    for start_step in (0, 1, 6, 12, 13):
        resumed = batches()
        resumed.start_step = start_step
        assert plain(resumed) == [batch for batch in plain(batches()) if batch[0] >= start_step]
        assert len(resumed) == 13


def test_the_order_does_not_depend_on_how_many_steps_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [(step, batches().rows_of(step).tolist()) for step in range(13)]
    for steps in (1, 5, 13, 64):
        monkeypatch.setattr(order_module, "STEPS_AT_ONCE", steps)
        assert [(step, rows) for step, rows, _ in plain(batches(micro_batch_size=8))] == expected


def as_it_is(batch: Any) -> Any:
    return batch


@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning")
def test_any_number_of_workers_and_ranks_gives_the_same_rows(tmp_path: Path) -> None:
    shards, length = random_shards(7)
    rows = write_rows(tmp_path, shards, sequence_length=length, packing=Packing.best_fit)

    def load(workers: int, *, rank: int = 0, world_size: int = 1) -> list[dict[str, Any]]:
        order = TrainingBatches(
            rows.num_labels, batch_size=4, micro_batch_size=2, num_steps=9, seed=1, rank=rank, world_size=world_size
        )
        micro_batches: Any = [batch for step in order for batch in step]
        return list(DataLoader(rows, batch_sampler=micro_batches, collate_fn=as_it_is, num_workers=workers))  # type: ignore[arg-type]

    alone, together = load(0), load(3)
    shares = [load(2 * rank, rank=rank, world_size=2) for rank in range(2)]
    assert len(alone) == len(together) == 18
    for step, (one, other) in enumerate(zip(alone, together, strict=True)):
        of_rank = shares[step % 2][step // 2]  # the first half of a step's rows are rank 0's
        assert one["num_labels"] == other["num_labels"] == of_rank["num_labels"]
        for name in ("input_ids", "labels", "position_ids"):
            assert torch.equal(one[name], other[name]) and torch.equal(one[name], of_rank[name])


# Evaluation batches


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world_size"), [(1, 4, 2), (7, 1, 3), (8, 4, 1), (37, 4, 4), (37, 64, 2)]
)
def test_evaluation_takes_every_row_once(num_rows: int, batch_size: int, world_size: int) -> None:
    num_labels = NUM_LABELS[:num_rows]
    ranks = [
        EvaluationBatches(num_labels, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    made = [plain([rank]) for rank in ranks]
    assert sorted(row for share in made for _, rows, _ in share for row in rows) == list(range(num_rows))
    assert [len(rank) for rank in ranks] == [len(share) for share in made]
    assert max(map(len, made)) - min(map(len, made)) <= 1
    for _, rows, total in (batch for share in made for batch in share):
        assert 1 <= len(rows) <= batch_size
        assert total == num_labels[rows].sum()
