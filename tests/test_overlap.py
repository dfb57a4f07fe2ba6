"""Held-out text that stands in the training text nearly word for word: counted by hand, and by a slow loop."""

import re
from pathlib import Path

import numpy as np
import pytest

from llm.data.overlap import EOJEOLS, TOKENS, ngram_hashes, overlap_of_shards, overlap_of_texts
from llm.data.shards import Manifest
from tests.korean import documents
from tests.test_data_rows import BOS, EOS, write_split


def shards_of(folder: Path, train: list[list[list[int]]], held_out: list[list[list[int]]]) -> tuple[Path, Manifest]:
    folder.mkdir(exist_ok=True)
    splits = {"train": write_split(folder, train), "held_out": write_split(folder, held_out, name="held_out")}
    return folder, Manifest(dtype="uint16", vocab_size=999, bos_id=BOS, eos_id=EOS, **splits)


def words(count: int, *, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, 999, count).tolist()


def ngrams(document: list[int]) -> list[tuple[int, ...]]:
    return [tuple(document[i : i + TOKENS]) for i in range(len(document) - TOKENS + 1)]


def test_a_near_copy_is_counted_and_a_document_of_its_own_is_not(tmp_path: Path) -> None:
    text = words(200, seed=1)
    changed = [*text[:100], 5, *text[101:]]  # 16 of its 185 n-grams are others
    alone, short = words(200, seed=2), text[: TOKENS - 1]
    opened = shards_of(tmp_path, [[words(50, seed=3), text]], [[changed, alone, short]])
    found = overlap_of_shards(opened, [opened], bits=0)
    assert (found.documents, found.ngrams, found.overlapping_ngrams, found.near_copies) == (2, 370, 169, 1)


def test_counts_are_those_of_a_slow_loop_over_blocks_and_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.data.overlap.TOKENS_AT_ONCE", 37)
    text = words(3000, seed=4)
    train = [[text[:700], text[700:720]], [text[720:1500]]]
    held_out = [[text[600:800], text[100:140], words(90, seed=5)], [text[1400:1600], text[690:730]]]
    opened = shards_of(tmp_path, train, held_out)
    known = {gram for shard in train for document in shard for gram in ngrams(document)}
    own = [ngrams(document) for shard in held_out for document in shard]
    hits = [sum(gram in known for gram in grams) for grams in own]
    near = sum(hit >= len(grams) / 2 for hit, grams in zip(hits, own, strict=True))
    found = overlap_of_shards(opened, [opened], bits=0)
    assert (found.documents, found.ngrams, found.overlapping_ngrams, found.near_copies) == (
        5, sum(map(len, own)), sum(hits), near,
    )  # fmt: skip


def test_the_training_text_of_every_part_counts(tmp_path: Path) -> None:
    text = words(100, seed=6)
    first = shards_of(tmp_path / "a", [[words(60, seed=7)]], [[text]])
    second = shards_of(tmp_path / "b", [[text]], [[words(60, seed=8)]])
    assert overlap_of_shards(first, [first], bits=0).near_copies == 0
    assert overlap_of_shards(first, [first, second], bits=0).near_copies == 1


def test_a_sample_of_the_ngrams_estimates_their_share(tmp_path: Path) -> None:
    text = words(40_000, seed=9)
    opened = shards_of(tmp_path, [[text[:30_000]]], [[text[20_000:]]])
    found = overlap_of_shards(opened, [opened])
    assert found.ngrams == pytest.approx(20_000 / 8, rel=0.1)
    assert found.overlapping_ngrams / found.ngrams == pytest.approx(0.5, abs=0.03)


def test_text_without_an_ngram_is_counted_as_none(tmp_path: Path) -> None:
    opened = shards_of(tmp_path, [[[2, 3]]], [[[2, 3]]])
    assert str(overlap_of_shards(opened, [opened])).startswith("0 of 0 held-out documents stand in the training text")


def test_hashes_of_different_ngrams_differ_and_tell_their_order() -> None:
    hashes = ngram_hashes(np.array(words(20_000, seed=10), dtype=np.uint16), TOKENS)
    assert len(hashes) == 20_000 - TOKENS + 1 and len(np.unique(hashes)) == len(hashes)
    assert ngram_hashes(np.arange(TOKENS), TOKENS)[0] != ngram_hashes(np.arange(TOKENS)[::-1], TOKENS)[0]


def slow_ngrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[at : at + EOJEOLS]) for at in range(len(words) - EOJEOLS + 1)]


def test_the_overlap_of_texts_is_that_of_a_slow_count_and_the_worst_are_shown() -> None:
    training, measured = documents(60, seed=1), documents(40, seed=2)
    measured[:4] = training[5].upper(), training[6] + " 그리고 " + measured[0], "", "짧은 글"
    known = {ngram for text in training for ngram in slow_ngrams(text)}
    counted = [[ngram in known for ngram in slow_ngrams(text)] for text in measured]
    overlap, worst = overlap_of_texts(training, [(f"글:{line}", text) for line, text in enumerate(measured, 1)])
    assert overlap.documents == sum(map(bool, counted))
    assert (overlap.ngrams, overlap.overlapping_ngrams) == (sum(map(len, counted)), sum(map(sum, counted)))
    assert overlap.near_copies == sum(bool(hits) and sum(hits) >= len(hits) / 2 for hits in counted)
    assert worst[0] == {"origin": "글:1", "share": 1.0, "text": measured[0][:120]}


def test_nothing_to_measure_is_no_overlap() -> None:
    assert overlap_of_texts(["가 나"], [])[0].ngrams == 0
