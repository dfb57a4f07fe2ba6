"""Packing: which tokens lie in which row, against rows that are built one token at a time."""

from pathlib import Path

import numpy as np
import pytest

from llm.config.data import Packing
from llm.data.rows import best_fit
from tests.test_data_rows import BOS, EOS, IGNORED, all_rows, random_shards, write_rows

Row = tuple[list[int], list[int], list[int]]
PACKED = [Packing.best_fit, Packing.padded]


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


def slow_packed(shards: list[list[list[int]]], length: int, packing: Packing) -> list[Row]:
    made = []
    for documents in shards:
        pieces = slow_pieces(documents, length)
        sizes = [len(piece) - 1 for piece in pieces]
        rows = slow_best_fit(sizes, length) if packing is Packing.best_fit else [[i] for i in range(len(pieces))]
        for row in rows:
            input_ids, labels, position_ids = [], [], []
            for piece in row:
                input_ids += pieces[piece][:-1]
                labels += pieces[piece][1:]
                position_ids += range(sizes[piece])
            padding = length - len(labels)
            made.append(
                (input_ids + [EOS] * padding, labels + [IGNORED] * padding, position_ids + list(range(padding)))
            )
    return made


def test_packed_rows_worked_by_hand(tmp_path: Path) -> None:
    # 0 5 6 0 | 0 7 0 | 0 0 | 0 1 2 3 4 8 9 0, of which the last has 7 labels: a row of 4, and 3
    documents = [[5, 6], [7], [], [1, 2, 3, 4, 8, 9]]
    best, padded = (
        all_rows(write_rows(tmp_path, [documents], sequence_length=4, packing=packing)) for packing in PACKED
    )
    assert best == [
        ([0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3]),
        ([0, 5, 6, 0], [5, 6, 0, 0], [0, 1, 2, 0]),  # the document of one label fills what the first of three leaves
        ([4, 8, 9, EOS], [8, 9, 0, IGNORED], [0, 1, 2, 0]),
        ([0, 7, EOS, EOS], [7, 0, IGNORED, IGNORED], [0, 1, 0, 1]),
    ]
    assert padded == [
        ([0, 5, 6, EOS], [5, 6, 0, IGNORED], [0, 1, 2, 0]),
        ([0, 7, EOS, EOS], [7, 0, IGNORED, IGNORED], [0, 1, 0, 1]),
        ([0, EOS, EOS, EOS], [0, IGNORED, IGNORED, IGNORED], [0, 0, 1, 2]),
        ([0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3]),
        ([4, 8, 9, EOS], [8, 9, 0, IGNORED], [0, 1, 2, 0]),
    ]


@pytest.mark.parametrize(
    ("packing", "expected"),
    [
        (Packing.concatenate, ["s 0, 1", "s 1, 2", "s 2, 3", " 3"]),
        (Packing.best_fit, [" 3", "s 0, 2", " 3", " 1"]),
        (Packing.padded, [" 0", " 1", " 2", " 3", " 3"]),
    ],
)
def test_a_row_says_which_documents_it_has(packing: Packing, expected: list[str], tmp_path: Path) -> None:
    documents = [[5, 6], [7], [], [1, 2, 3, 4, 8, 9]]
    rows = write_rows(tmp_path, [documents, [[5, 6]]], sequence_length=4, packing=packing)
    said = rows.describe(np.arange(len(rows)))
    assert said[:-1] == [f"train-00000.bin document{numbers}" for numbers in expected]
    assert said[-1] == "train-00001.bin document 0"


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("seed", range(40))
def test_packed_rows_equal_a_slow_loop(tmp_path: Path, seed: int, packing: Packing) -> None:
    shards, length = random_shards(seed)
    dtype = "uint16" if seed % 2 else "uint32"
    rows = write_rows(tmp_path, shards, sequence_length=length, dtype=dtype, packing=packing)
    expected = slow_packed(shards, length, packing)
    assert all_rows(rows) == expected
    assert rows.num_labels.tolist() == [sum(label != IGNORED for label in labels) for _, labels, _ in expected]


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("seed", range(10))
def test_every_token_but_bos_is_a_label_exactly_once_per_epoch(tmp_path: Path, seed: int, packing: Packing) -> None:
    shards, length = random_shards(seed)
    numbers = iter(range(1, 10_000))
    shards = [[[next(numbers) for _ in document] for document in shard] for shard in shards]  # each token another
    rows = write_rows(tmp_path, shards, sequence_length=length, packing=packing)
    labels = [label for _, row, _ in all_rows(rows) for label in row if label != IGNORED]
    ends = sum(map(len, shards))
    assert sorted(labels) == [EOS] * ends + list(range(1, next(numbers)))
    assert rows.num_labels.sum() == len(labels)
    assert rows.padding_share == pytest.approx(1 - len(labels) / (len(rows) * length), abs=1e-12)


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
