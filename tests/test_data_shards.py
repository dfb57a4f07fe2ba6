"""Shards: every document once, its bytes counted, and no damage unnoticed."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import llm.data.encoding as encoding_module
import llm.data.sharding as sharding_module
from llm.config.data import DataConfig, DataKind
from llm.config.tokenizer import TokenizerConfig
from llm.data import Corpus, Manifest, open_corpus, read_manifest, write_shards
from llm.data.shards import Split, open_shard
from llm.errors import DamagedError, DataError
from llm.tokenizer import load, lost_bytes, save, special, train
from tests.korean import HARD_TEXTS, documents, save_preset

PRESETS = ("blog", "byte_bpe", "char_bpe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: save_preset(name, root / name) for name in PRESETS}


def corpus_of(texts: list[str], folder: Path) -> Corpus:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return open_corpus(DataConfig(name="text", kind=DataKind.text, path=str(path), held_out_share=0.3))


def write(corpus: Corpus, tokenizer: Path, folder: Path, *, made_from: str = "it", num_workers: int = 1) -> Manifest:
    return write_shards(corpus, tokenizer, folder, made_from=made_from, num_workers=num_workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def texts() -> list[str]:
    return [*documents(120, seed=4), *(text for text in HARD_TEXTS.values() if text.strip())]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding_module, "SHARD_TOKENS", 300)
    monkeypatch.setattr(encoding_module, "CHUNK_CHARACTERS", 200)


def read_back(folder: Path, manifest: Manifest, split: Split) -> Iterator[tuple[list[int], int]]:
    """(token ids, raw bytes) of each document, in the order of the shards."""
    for shard in split.shards:
        tokens, index = open_shard(folder, shard, manifest.dtype)
        assert (len(tokens), len(index)) == (shard.tokens, shard.documents)
        start = 0
        for length, raw_bytes in index.tolist():
            yield tokens[start : start + length].tolist(), raw_bytes
            start += length
        assert start == len(tokens)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.usefixtures("small_shards")
def test_every_document_is_there_once_with_its_ends_and_bytes(
    folders: dict[str, Path], tmp_path: Path, name: str, texts: list[str]
) -> None:
    corpus, tokenizer, tokens = corpus_of(texts, tmp_path), load(folders[name]), special(folders[name])
    manifest = write(corpus, folders[name], tmp_path / "shards")
    total = 0
    for held_out, split in ((False, manifest.train), (True, manifest.held_out)):
        expected = []
        for text in corpus.texts(held_out=held_out):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            expected.append(([tokens.bos_id, *ids, tokens.eos_id], len(text.encode())))
        assert list(read_back(tmp_path / "shards", manifest, split)) == expected
        assert len(split.shards) > 2
        assert all(shard.tokens <= 300 for shard in split.shards)
        assert split.documents == len(expected)
        assert split.tokens == sum(len(ids) for ids, _ in expected)
        assert split.raw_bytes == sum(raw for _, raw in expected)
        for total_of in ("documents", "tokens", "raw_bytes", "lost_bytes"):
            assert getattr(split, total_of) == sum(getattr(shard, total_of) for shard in split.shards)
        total += split.documents
    assert total == len(texts)


@pytest.mark.parametrize("name", PRESETS)
def test_lost_bytes_and_the_unigram_entropy_equal_a_slow_loop(
    folders: dict[str, Path], tmp_path: Path, name: str, texts: list[str]
) -> None:
    corpus, tokenizer, tokens = corpus_of(texts, tmp_path), load(folders[name]), special(folders[name])
    manifest = write(corpus, folders[name], tmp_path / "shards")
    for held_out, split in ((False, manifest.train), (True, manifest.held_out)):
        counts: Counter[int] = Counter()
        lost = raw_bytes = 0
        for text in corpus.texts(held_out=held_out):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            counts.update([*ids, tokens.eos_id])
            lost += lost_bytes(text, tokenizer.decode(ids))
            raw_bytes += len(text.encode())
        bits = sum(times * -math.log2(times / counts.total()) for times in counts.values())
        assert split.unigram_bits_per_byte == pytest.approx(bits / raw_bytes, rel=1e-12)
        assert split.lost_bytes == (lost if held_out else 0)
    assert (manifest.held_out.lost_bytes > 0) == (name == "blog")


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
    letters = save_letters(tmp_path / "letters", vocab_size)
    place_of = load(letters).token_to_id
    corpus = corpus_of(documents(30), tmp_path)
    manifest = write(corpus, letters, tmp_path / "shards")
    shard = manifest.train.shards[0]
    assert manifest.dtype == dtype
    assert (tmp_path / "shards" / shard.tokens_file).stat().st_size == width * shard.tokens
    for (ids, _), text in zip(
        read_back(tmp_path / "shards", manifest, manifest.train), corpus.texts(held_out=False), strict=True
    ):
        assert ids == [vocab_size - 1, *map(place_of, text), vocab_size - 1]


@pytest.mark.usefixtures("small_shards")
def test_two_runs_write_the_same_bytes(folders: dict[str, Path], tmp_path: Path, texts: list[str]) -> None:
    corpus = corpus_of(texts, tmp_path)
    for name in ("one", "two"):
        write(corpus, folders["byte_bpe"], tmp_path / name)
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert len(one) > 6


# Damage


@pytest.fixture
def written(folders: dict[str, Path], tmp_path: Path, small_shards: None) -> Path:
    folder = tmp_path / "shards"
    manifest = write(corpus_of(documents(30), tmp_path), folders["byte_bpe"], folder)
    assert read_manifest(folder) == manifest
    return folder


def test_each_of_200_random_bit_flips_is_noticed(written: Path) -> None:
    rng = np.random.default_rng(1)
    files = sorted(written.iterdir())
    places = [(file, place) for file in files for place in range(8 * file.stat().st_size)]
    detected = 0
    for number in rng.choice(len(places), 200, replace=False):
        file, place = places[number]
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(DamagedError, match=rf"{file.name} (is not what its manifest|cannot be read)"):
            read_manifest(written)
        file.write_bytes(content)
        detected += 1
    assert detected == 200
    read_manifest(written)


def test_a_flipped_bit_anywhere_is_noticed_and_its_file_named(written: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted(written.iterdir())
    assert len(files) > 6
    for file in files:
        content = file.read_bytes()
        places = {0, len(content) - 2, *rng.integers(0, len(content) - 1, 30).tolist()}
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1
            file.write_bytes(flipped)
            with pytest.raises(DamagedError, match=rf"{file.name} (is not what its manifest|cannot be read)"):
                read_manifest(written)
        file.write_bytes(content)
    read_manifest(written)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda content: b""])
def test_a_file_of_another_length_is_noticed(written: Path, change: Callable[[bytes], bytes]) -> None:
    for file in sorted(written.iterdir()):
        content = file.read_bytes()
        file.write_bytes(change(content) if file.suffix != ".json" else content[:-9])
        with pytest.raises(DamagedError, match=f"{file.name} .* Remove its run's folder to make it again"):
            read_manifest(written)
        file.write_bytes(content)


def test_a_missing_file_is_noticed(written: Path) -> None:
    for file in sorted(written.iterdir()):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(DamagedError, match=f"{file.name} .* Remove its run's folder to make it again"):
            read_manifest(written)
        file.write_bytes(content)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"sha256": "x"}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamagedError, match=r"manifest.json cannot be read"):
        read_manifest(tmp_path)


@pytest.mark.usefixtures("small_shards")
def test_an_error_midway_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    corpus = corpus_of(documents(60), tmp_path)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write("\n{torn")
    with pytest.raises(DataError, match="not JSON"):
        write(corpus, folders["byte_bpe"], tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_text_that_would_be_read_as_a_control_token_is_refused(tmp_path: Path) -> None:
    unigram = TokenizerConfig(
        name="unigram", vocab_size=300, model="Unigram", special_tokens=["<|endoftext|>", "<unk>"]
    )
    save(train(unigram, iter(documents(50))), unigram.roles, tmp_path / "unigram")
    corpus = corpus_of(["글 <unk> 안", *documents(40), "글 <|endoftext|> 끝"], tmp_path)
    with pytest.raises(DataError, match=r"corpus.jsonl:42: the text holds <\|endoftext\|>, .* Remove or rewrite it"):
        write(corpus, tmp_path / "unigram", tmp_path / "shards")
