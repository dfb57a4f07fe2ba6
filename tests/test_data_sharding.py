"""Sharding: the same bytes by any number of workers, whatever is killed at whatever moment."""

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import llm.data.encoding as encoding_module
import llm.data.sharding as sharding_module
from llm.config.data import BadRecords, DataConfig, DataKind
from llm.data import Corpus, Manifest, available_cores, open_corpus, write_shards
from llm.data.encoding import CHUNKS_AHEAD, CHUNKS_ALONE, Chunk, Encoder, chunks_of, encode_in_order, pieces
from llm.data.records import Document
from llm.data.shards import SPLITS
from llm.errors import DataError, MachineError
from llm.run.console import log
from llm.tokenizer import load
from tests.korean import HARD_TEXTS, documents, save_preset

PRESETS = ("blog", "byte_bpe", "char_bpe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: save_preset(name, root / name) for name in PRESETS}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and chunks so small that a little text makes many."""
    monkeypatch.setattr(sharding_module, "SHARD_TOKENS", 500)
    monkeypatch.setattr(encoding_module, "CHUNK_CHARACTERS", 1500)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", "llm")
    return caplog


def corpus_of(texts: list[str], folder: Path, **settings: Any) -> Corpus:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return open_corpus(DataConfig(name="text", kind=DataKind.text, path=str(path), held_out_share=0.2, **settings))


def write(corpus: Corpus, tokenizer: Path, folder: Path, *, made_from: str = "it", num_workers: int = 1) -> Manifest:
    return write_shards(corpus, tokenizer, folder, made_from=made_from, num_workers=num_workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Chunks and pieces


def test_chunks_are_all_documents_in_order_and_no_longer_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "CHUNK_CHARACTERS", 100)
    given = [(SPLITS[number % 3 == 0], Document(text, str(number))) for number, text in enumerate(documents(50))]
    chunks = list(chunks_of(iter(given)))
    for split in SPLITS:
        mine = [chunk.documents for chunk in chunks if chunk.split == split]
        assert [document for chunk in mine for document in chunk] == [
            document for side, document in given if side == split
        ]
        for chunk in mine[:-1]:
            assert sum(len(d.text) for d in chunk) >= 100 > sum(len(d.text) for d in chunk[:-1])
    assert list(chunks_of(iter([]))) == []


@pytest.mark.parametrize("name", PRESETS)
def test_the_pieces_of_a_long_text_have_the_tokens_and_the_losses_of_the_whole(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join([*documents(40, seed=3), *(t for t in HARD_TEXTS.values() if t.strip())])
    encoder = Encoder(folders[name])
    whole = encoder.encode(Chunk("held_out", [Document(text, "")]))
    assert whole.ids.tolist()[1:-1] == load(folders[name]).encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(encoding_module, "CHUNK_CHARACTERS", 150)
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert len(cut) > 15
    assert all(len(piece) <= 150 for piece in cut)
    in_pieces = encoder.encode(Chunk("held_out", [Document(text, "")]))
    assert in_pieces.ids.tolist() == whole.ids.tolist()
    assert in_pieces.documents.tolist() == whole.documents.tolist()
    assert (whole.documents[0, 2] > 0) == (name == "blog")


def test_a_text_without_spaces_is_cut_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "CHUNK_CHARACTERS", 10)
    assert list(pieces("가" * 25)) == ["가" * 10, "가" * 10, "가" * 5]
    assert list(pieces("가나 다라 마바사 아자")) == ["가나 다라", " 마바사 아자"]
    assert list(pieces("짧다")) == ["짧다"]


# Workers


@pytest.mark.usefixtures("small")
def test_any_number_of_workers_writes_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    corpus = corpus_of(documents(300, seed=4), tmp_path)
    made = {}
    for num_workers in (1, 2, 3):
        manifest = write(corpus, folders["char_bpe"], tmp_path / str(num_workers), num_workers=num_workers)
        made[num_workers] = contents(tmp_path / str(num_workers))
        assert len(manifest.train.shards) > 5
        training = (("train", record) for record in corpus.records(held_out=False))
        assert len(list(chunks_of(training))) > 3 * CHUNKS_ALONE  # type: ignore[arg-type]
    assert made[1] == made[2] == made[3]
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("small")
def test_text_is_read_no_further_ahead_than_the_workers_need(folders: dict[str, Path]) -> None:
    read = 0

    def given() -> Iterator[Chunk]:
        nonlocal read
        for text in documents(200):
            read += 1
            yield Chunk("train", [Document(text, "")])

    for number, _ in enumerate(encode_in_order(given(), folders["char_bpe"], num_workers=2)):
        assert read <= max(number + 1 + CHUNKS_AHEAD * 2 + 1, CHUNKS_ALONE)
    assert read == 200


def test_a_worker_that_is_killed_is_one_line_and_the_same_call_goes_on(
    folders: dict[str, Path], tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpus_of(documents(300, seed=4), tmp_path)
    write(corpus, folders["char_bpe"], tmp_path / "expected")
    finish_shard = sharding_module._ShardWriter.finish_shard

    def kill_a_worker(writer: Any) -> None:
        finish_shard(writer)
        if len(writer._partial.shards["train"]) == 2:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    with monkeypatch.context() as patch, pytest.raises(MachineError) as caught:
        patch.setattr(sharding_module._ShardWriter, "finish_shard", kill_a_worker)
        write(corpus, folders["char_bpe"], tmp_path / "shards", num_workers=4)
    assert caught.value.kind == "killed" and str(caught.value) == (
        "one of the 4 processes that encode text was killed, by a lack of memory or by hand. Start the same command "
        "again: it goes on after the shards that are finished. Where memory is short, set data.num_workers=2."
    )
    assert not multiprocessing.active_children()
    assert names(tmp_path) == ["corpus.jsonl", "expected", "shards.partial", "shards.partial.json"]
    write(corpus, folders["char_bpe"], tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(tmp_path / "expected")


@pytest.mark.usefixtures("small")
def test_an_error_in_a_worker_is_that_of_the_parent(folders: dict[str, Path]) -> None:
    chunks = iter([*(Chunk("train", [Document(text, "")]) for text in documents(20)), Chunk("train", [None])])  # type: ignore[list-item]
    with pytest.raises(AttributeError, match="has no attribute 'text'"):
        list(encode_in_order(chunks, folders["char_bpe"], num_workers=2))
    assert not multiprocessing.active_children()


def test_there_are_as_many_workers_as_cores_that_may_be_used() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cores() == len(before)


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


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_each_call_that_the_disk_sees_it_goes_on_to_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding_module, "SHARD_TOKENS", 200)
    corpus = corpus_of(documents(60, seed=4), tmp_path)
    write(corpus, folders["char_bpe"], tmp_path / "expected")
    expected = contents(tmp_path / "expected")
    number = 1
    while True:
        target = tmp_path / "attempts" / str(number)
        target.mkdir(parents=True)
        if not end_at_call(number, lambda target=target: write(corpus, folders["char_bpe"], target / "shards")):
            break
        if (target / "shards").exists():
            assert contents(target / "shards") == expected
        write(corpus, folders["char_bpe"], target / "shards")
        assert contents(target / "shards") == expected
        assert [name for name in names(target) if not name.startswith(".tmp-")] == ["shards"]
        number += 1
    assert number > 6 * (len(expected) - 1) / 2  # six calls a shard, at least


@pytest.fixture
def half(folders: dict[str, Path], tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards are half made: eight of training text are finished, and one held out.

    What is to come of them lies beside, under `expected`.
    """
    corpus = corpus_of(documents(300, seed=4), tmp_path)
    write(corpus, folders["char_bpe"], tmp_path / "expected")
    finish_shard = sharding_module._ShardWriter.finish_shard

    def stop(writer: Any) -> None:
        finish_shard(writer)
        if len(writer._partial.shards["train"]) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sharding_module._ShardWriter, "finish_shard", stop)
        write(corpus, folders["char_bpe"], tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    return tmp_path


def go_on(folder: Path, folders: dict[str, Path], *, made_from: str = "it", num_workers: int = 1) -> dict[str, int]:
    """Make the shards; when each of their files was written."""
    corpus = open_corpus(
        DataConfig(name="text", kind=DataKind.text, path=str(folder / "corpus.jsonl"), held_out_share=0.2)
    )
    write(corpus, folders["char_bpe"], folder / "shards", made_from=made_from, num_workers=num_workers)
    assert contents(folder / "shards") == contents(folder / "expected")
    assert names(folder) == ["corpus.jsonl", "expected", "shards"]
    return written_at(folder / "shards")


def written_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_finished_shards_are_kept(
    half: Path, folders: dict[str, Path], warnings: pytest.LogCaptureFixture, num_workers: int
) -> None:
    noted = json.loads((half / "shards.partial.json").read_text())["shards"]
    finished = [shard for shards in noted.values() for shard in shards]
    assert len(noted["train"]) == 8
    assert noted["held_out"]
    (half / "shards.partial" / "train-00008.bin").write_bytes(b"half a shard")
    (half / "shards.partial" / "stranger").mkdir()
    before = written_at(half / "shards.partial")
    after = go_on(half, folders, num_workers=num_workers)
    assert {name for name in before if before[name] == after.get(name)} == {
        name for shard in finished for name in shard["sha256"]
    }
    total = sum(shard["documents"] for shard in finished)
    assert f"going on after {len(finished)} finished shards with {total} documents" in warnings.text


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_shard_and_those_after_it_are_made_again(
    half: Path, folders: dict[str, Path], warnings: pytest.LogCaptureFixture, damage: str
) -> None:
    before = written_at(half / "shards.partial")
    bad = half / "shards.partial" / "train-00002.documents.npy"
    content = bytearray(bad.read_bytes())
    content[-1] ^= 1
    bad.unlink()
    if damage == "flip":
        bad.write_bytes(content)
    after = go_on(half, folders)
    assert [name for name in sorted(before) if before[name] == after[name] and name.startswith("train")] == [
        *(f"train-0000{number}.{end}" for number in (0, 1) for end in ("bin", "documents.npy"))
    ]
    assert before["held_out-00000.bin"] == after["held_out-00000.bin"]
    assert f"{bad} is damaged: it is made again, and the 5 after it" in warnings.text


def test_shards_of_something_else_are_made_again(
    half: Path, folders: dict[str, Path], warnings: pytest.LogCaptureFixture
) -> None:
    before = written_at(half / "shards.partial")
    after = go_on(half, folders, made_from="something else")
    assert "made from another corpus, or by another tokenizer or version" in warnings.text
    assert len(before) > 10
    assert not before.items() & after.items()


@pytest.mark.parametrize("notes", ["", "{", "[]", "null", '{"made_from": 3}'])
def test_notes_that_cannot_be_read_are_of_no_use(
    half: Path, folders: dict[str, Path], warnings: pytest.LogCaptureFixture, notes: str
) -> None:
    (half / "shards.partial.json").write_text(notes)
    go_on(half, folders)
    assert "shards.partial.json is of no use" in warnings.text


def test_bad_data_leaves_nothing(half: Path, folders: dict[str, Path]) -> None:
    with (half / "corpus.jsonl").open("a") as file:
        file.write("\n{torn")
    with pytest.raises(DataError, match="not JSON"):
        go_on(half, folders)
    assert names(half) == ["corpus.jsonl", "expected"]


def test_a_whole_folder_is_returned_with_what_was_dropped_counted(
    folders: dict[str, Path], tmp_path: Path, small: None
) -> None:
    corpus_of(documents(60), tmp_path)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("\n{torn")

    def corpus() -> Corpus:
        path = str(tmp_path / "corpus.jsonl")
        settings = {"held_out_share": 0.2, "bad_records": BadRecords.drop}
        return open_corpus(DataConfig(name="text", kind=DataKind.text, path=path, **settings))  # type: ignore[arg-type]

    first = write(corpus(), folders["char_bpe"], tmp_path / "shards")
    before = written_at(tmp_path / "shards")
    (tmp_path / "shards.partial.json").write_text("{}")  # as a kill right after the renaming leaves it
    again = corpus()
    assert write(again, folders["char_bpe"], tmp_path / "shards") == first
    assert written_at(tmp_path / "shards") == before
    assert again.dropped == {"not JSON": 1}
    assert names(tmp_path) == ["corpus.jsonl", "shards"]


@pytest.mark.parametrize("limit", [100, 900, 1700])
def test_a_disk_that_takes_no_more_is_named_with_its_file_and_the_same_call_goes_on(
    folders: dict[str, Path], tmp_path: Path, small: None, limit: int
) -> None:
    corpus = corpus_of(documents(300, seed=4), tmp_path)
    write(corpus, folders["char_bpe"], tmp_path / "expected")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/shards\.partial.*'"):
            write(corpus, folders["char_bpe"], tmp_path / "shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    write(corpus, folders["char_bpe"], tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(tmp_path / "expected")
