"""Documents and shards: every document once, its bytes counted, no damage unnoticed, whatever is killed and when."""

import json
import math
import multiprocessing
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import llm.data.documents as documents_module
import llm.data.shards as shards_module
from llm.config.data import DataConfig, DataKind
from llm.config.tokenizer import TokenizerConfig
from llm.data.corpus import Corpus, open_corpus
from llm.data.documents import document_files, read_texts, write_documents
from llm.data.rows import TokenRows
from llm.data.shards import Encoder, Manifest, Split, available_cores, open_shard, pieces, read_manifest, write_shards
from llm.errors import DamagedError, DataError, MachineError
from llm.tokenizer.folder import load_tokenizer, read_special, save
from llm.tokenizer.report import lost_bytes
from llm.tokenizer.training import train
from tests.korean import HARD_TEXTS, documents, save_preset

PRESETS = ("blog", "byte_bpe", "char_bpe")
TEXTS = [*documents(120, seed=4), *(text for text in HARD_TEXTS.values() if text.strip())]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: save_preset(name, root / name) for name in PRESETS}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and batches so small that a little text makes many."""
    monkeypatch.setattr(documents_module, "FILE_BYTES", 2000)
    monkeypatch.setattr(shards_module, "BATCH_CHARACTERS", 300)
    monkeypatch.setattr(shards_module, "PIECE_CHARACTERS", 400)


def corpus_of(texts: list[str], folder: Path) -> Corpus:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return open_corpus(DataConfig(name="text", kind=DataKind.text, path=str(path), held_out_share=0.3))


def documents_of(texts: list[str], folder: Path) -> Path:
    write_documents(corpus_of(texts, folder), folder / "documents")
    return folder / "documents"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def read_back(folder: Path, manifest: Manifest, split: Split) -> Iterator[tuple[list[int], int]]:
    """(token ids, raw bytes) of each document, in the order of the shards."""
    for shard in split.shards:
        tokens, index = open_shard(folder, shard, manifest.dtype)
        assert (len(tokens), len(index)) == (shard.tokens, shard.documents)
        ends = np.cumsum(index[:, 0])
        for (length, raw_bytes), end in zip(index.tolist(), ends.tolist(), strict=True):
            yield tokens[end - length : end].tolist(), raw_bytes


# Documents


@pytest.mark.usefixtures("small")
def test_documents_are_the_corpus_in_its_order_with_their_origins(tmp_path: Path) -> None:
    corpus = corpus_of(TEXTS, tmp_path)
    made = write_documents(corpus, tmp_path / "documents")
    for split, held_out in (("train", False), ("held_out", True)):
        expected = [(record.text, record.origin) for record in corpus.records(held_out=held_out)]
        files = document_files(tmp_path / "documents", split)
        assert len(files) == made[split]["files"] > 1
        rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
        assert [(row["text"], row["origin"]) for row in rows] == expected
        assert list(read_texts(tmp_path / "documents", split)) == [text for text, _ in expected]
        assert made[split]["documents"] == len(expected)
        assert made[split]["raw_bytes"] == sum(len(text.encode()) for text, _ in expected)


def test_the_digest_is_of_the_texts_and_not_of_where_they_came_from(tmp_path: Path) -> None:
    def digest(name: str, texts: list[str]) -> str:
        (tmp_path / name).mkdir()
        return str(write_documents(corpus_of(texts, tmp_path / name), tmp_path / name / "documents")["digest"])

    first = digest("one", TEXTS)
    assert digest("two", TEXTS) == first
    others = [[*TEXTS[:-1], TEXTS[-1] + "."], TEXTS[::-1], [TEXTS[0] + TEXTS[1], *TEXTS[2:]]]
    assert first not in [digest(f"other{number}", texts) for number, texts in enumerate(others)]


def test_an_error_midway_leaves_nothing(tmp_path: Path) -> None:
    corpus = corpus_of(TEXTS, tmp_path)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("\n{torn")
    with pytest.raises(DataError, match="not JSON"):
        write_documents(corpus, tmp_path / "documents")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


# What is in a shard


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.usefixtures("small")
def test_each_file_of_documents_is_a_shard_of_its_tokens_with_their_ends_bytes_and_losses(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    made_of, tokenizer, tokens = (
        documents_of(TEXTS, tmp_path),
        load_tokenizer(folders[name]),
        read_special(folders[name]),
    )
    manifest = write_shards(made_of, folders[name], tmp_path / "shards")
    assert read_manifest(tmp_path / "shards") == manifest
    for split_name, split in (("train", manifest.train), ("held_out", manifest.held_out)):
        texts = list(read_texts(made_of, split_name))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        expected = [
            ([tokens.bos_id, *line, tokens.eos_id], len(text.encode())) for line, text in zip(ids, texts, strict=True)
        ]
        assert list(read_back(tmp_path / "shards", manifest, split)) == expected
        stems = [Path(shard.tokens_file).stem for shard in split.shards]
        assert stems == [file.stem for file in document_files(made_of, split_name)]
        for total_of in ("documents", "tokens", "raw_bytes", "lost_bytes"):
            assert getattr(split, total_of) == sum(getattr(shard, total_of) for shard in split.shards)
        lost = sum(lost_bytes(text, tokenizer.decode(line)) for line, text in zip(ids, texts, strict=True))
        assert split.lost_bytes == (lost if split_name == "held_out" else 0)
        rows = TokenRows({"": (tmp_path / "shards", manifest)}, split_name, sequence_length=16)
        assert (rows.raw_bytes, rows.lost_bytes) == (split.raw_bytes, split.lost_bytes)
        counts = Counter(token for line in ids for token in [*line, tokens.eos_id])
        bits = sum(times * -math.log2(times / counts.total()) for times in counts.values())
        assert split.unigram_bits_per_byte == pytest.approx(bits / split.raw_bytes, rel=1e-12)
    assert (manifest.held_out.lost_bytes > 0) == (name == "blog")


@pytest.mark.parametrize("name", PRESETS)
def test_the_pieces_of_a_long_text_have_the_tokens_and_the_losses_of_the_whole(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join([*documents(40, seed=3), *(t for t in HARD_TEXTS.values() if t.strip())])
    encoder = Encoder(folders[name])
    ((whole, decoded),) = encoder.encode([text], decode=True)
    assert whole == load_tokenizer(folders[name]).encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(shards_module, "PIECE_CHARACTERS", 150)
    cut = list(pieces(text))
    assert "".join(cut) == text and len(cut) > 15 and all(len(piece) <= 150 for piece in cut)
    ((in_pieces, decoded_pieces),) = encoder.encode([text], decode=True)
    assert in_pieces == whole
    assert lost_bytes(text, decoded_pieces or "") == lost_bytes(text, decoded or "")


def test_a_text_without_spaces_is_cut_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "PIECE_CHARACTERS", 10)
    assert list(pieces("가" * 25)) == ["가" * 10, "가" * 10, "가" * 5]
    assert list(pieces("가나 다라 마바사 아자")) == ["가나 다라", " 마바사 아자"]


def save_letters(folder: Path, vocab_size: int) -> Path:
    """A tokenizer of one token a character, with as large a vocabulary as wanted."""
    characters = sorted({character for text in documents(30) for character in text})
    vocabulary = {"<|endoftext|>": vocab_size - 1} | {character: place for place, character in enumerate(characters)}
    vocabulary |= {f"<{number}>": number for number in range(len(characters), vocab_size - 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(["<|endoftext|>"])
    save(tokenizer, TokenizerConfig(name="letters", model="WordLevel", vocab_size=vocab_size).roles, folder)
    return folder


@pytest.mark.parametrize(("vocab_size", "dtype", "width"), [(2**16, "uint16", 2), (2**16 + 1, "uint32", 4)])
def test_the_width_of_an_id_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str, width: int) -> None:
    letters, made_of = save_letters(tmp_path / "letters", vocab_size), documents_of(documents(30), tmp_path)
    manifest = write_shards(made_of, letters, tmp_path / "shards")
    shard = manifest.train.shards[0]
    assert manifest.dtype == dtype
    assert (tmp_path / "shards" / shard.tokens_file).stat().st_size == width * shard.tokens
    (first, _), *_ = read_back(tmp_path / "shards", manifest, manifest.train)
    text = next(read_texts(made_of, "train"))
    assert first == [vocab_size - 1, *map(load_tokenizer(letters).token_to_id, text), vocab_size - 1]


def test_text_that_would_be_read_as_a_control_token_is_refused(tmp_path: Path) -> None:
    unigram = TokenizerConfig(
        name="unigram", vocab_size=300, model="Unigram", special_tokens=["<|endoftext|>", "<unk>"]
    )
    save(train(unigram, iter(documents(50))), unigram.roles, tmp_path / "unigram")
    made_of = documents_of(["글 <unk> 안", *documents(40), "글 <|endoftext|> 끝"], tmp_path)
    with pytest.raises(DataError, match=r"corpus.jsonl:42: the text holds <\|endoftext\|>, .* Remove or rewrite it"):
        write_shards(made_of, tmp_path / "unigram", tmp_path / "shards")


# Workers


@pytest.mark.usefixtures("small")
def test_any_number_of_workers_writes_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    made_of = documents_of(documents(150, seed=4), tmp_path)
    for num_workers in (1, 2):
        write_shards(made_of, folders["char_bpe"], tmp_path / str(num_workers), num_workers=num_workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) > 20
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("small")
def test_a_worker_that_is_killed_is_one_line_and_the_same_call_goes_on(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of = documents_of(documents(150, seed=4), tmp_path)
    expected = write_shards(made_of, folders["char_bpe"], tmp_path / "expected")
    encode = shards_module._encode

    def killing(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for shard in encode(*args, **kwargs):
            yield shard
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with monkeypatch.context() as patch, pytest.raises(MachineError, match="one of the 2 processes that encode text"):
        patch.setattr(shards_module, "_encode", killing)
        write_shards(made_of, folders["char_bpe"], tmp_path / "shards", num_workers=2)
    assert not multiprocessing.active_children()
    assert not (tmp_path / "shards" / "manifest.json").exists()
    assert write_shards(made_of, folders["char_bpe"], tmp_path / "shards") == expected


def test_there_are_as_many_workers_as_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert available_cores() == 2


# Killed and started again


def end_at_call(number: int, work: Callable[[], Any]) -> bool:
    """Do the work in a process that is killed before its `number`-th call that the disk sees; whether it came to it."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **named)

            return call

        for name in ("fsync", "rename", "replace", "unlink", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_each_call_that_the_disk_sees_it_goes_on_to_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    made_of = documents_of(documents(14, seed=4), tmp_path)
    write_shards(made_of, folders["char_bpe"], tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    number = 1
    while end_at_call(number, partial(write_shards, made_of, folders["char_bpe"], tmp_path / str(number))):
        write_shards(made_of, folders["char_bpe"], tmp_path / str(number))
        found = contents(tmp_path / str(number))
        assert {name: found[name] for name in expected} == expected
        assert all(name in expected or name.endswith(".json") for name in found)  # the note of a shard, at the most
        number += 1
    assert number > 6 * (len(expected) - 1) / 2  # six calls a shard, at least


@pytest.mark.usefixtures("small")
def test_finished_shards_are_kept_and_a_damaged_one_is_made_again(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of, target = documents_of(documents(100, seed=4), tmp_path), tmp_path / "shards"
    write_shards(made_of, folders["char_bpe"], tmp_path / "expected")

    def stop(_: Path, manifest: Manifest) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards_module, "write_manifest", stop)
        write_shards(made_of, folders["char_bpe"], target)
    (target / "train-00004.json").unlink()  # as if the kill had come before
    flipped = bytearray((target / "train-00002.bin").read_bytes())
    flipped[-1] ^= 1
    (target / "train-00002.bin").write_bytes(flipped)
    before = {path.name: path.stat().st_mtime_ns for path in target.glob("*.bin")}
    write_shards(made_of, folders["char_bpe"], target)
    assert contents(target) == contents(tmp_path / "expected")
    again = {name for name, time in before.items() if (target / name).stat().st_mtime_ns != time}
    assert again == {"train-00002.bin", "train-00004.bin"}


@pytest.mark.usefixtures("small")
def test_a_disk_that_takes_no_more_is_named_with_its_file_and_the_same_call_goes_on(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    made_of = documents_of(documents(100, seed=4), tmp_path)
    expected = write_shards(made_of, folders["char_bpe"], tmp_path / "expected")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/shards/train-00000\.bin'"):
            write_shards(made_of, folders["char_bpe"], tmp_path / "shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert write_shards(made_of, folders["char_bpe"], tmp_path / "shards") == expected


# Damage


@pytest.mark.usefixtures("small")
def test_damage_anywhere_is_noticed_and_its_file_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, rng = tmp_path / "shards", np.random.default_rng(0)
    write_shards(documents_of(documents(30), tmp_path), folders["byte_bpe"], folder)
    files = sorted(folder.iterdir())
    assert len(files) > 6
    for file in files:
        content = file.read_bytes()
        damaged = [content[:-2], b""] + ([b"[]", b"{}"] if file.suffix == ".json" else [content + b"\0"])
        for place in rng.integers(0, len(content) - 1, 5).tolist():
            damaged.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        for other in damaged:
            file.write_bytes(other)
            with pytest.raises(DamagedError, match=rf"{file.name} (is not what its manifest|cannot be read)"):
                read_manifest(folder)
        file.unlink()
        with pytest.raises(DamagedError, match=f"{file.name} .* Remove its run's folder to make it again"):
            read_manifest(folder)
        file.write_bytes(content)
    read_manifest(folder)
