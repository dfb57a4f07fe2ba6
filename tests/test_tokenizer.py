"""A tokenizer on disk: one digest for what is one tokenizer; damaged, refused in one line, or encodes as before."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.errors import DamagedError
from llm.tokenizer.folder import digest, load_chat, load_tokenizer, read_special
from tests.korean import HARD_TEXTS, save_preset, sentences

SMALL = {"vocab_size": 400, "initial_alphabet": "none"}
MUTATIONS = 100
TEXTS = [*sentences(5, seed=3), *HARD_TEXTS.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_preset("byte_bpe", tmp_path_factory.mktemp("tokenizers") / "byte_bpe", vocab_size=300)


def test_two_trainings_that_give_the_same_tokenizer_have_one_digest(folder: Path, tmp_path: Path) -> None:
    again = save_preset("byte_bpe", tmp_path / "again", vocab_size=300)
    other = save_preset("byte_bpe", tmp_path / "other", vocab_size=301)
    assert digest(folder) == digest(again) != digest(other)


def test_the_digest_does_not_depend_on_the_order_of_keys(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer_config.json", tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(state.items()))), encoding="utf-8")
    assert digest(tmp_path) == digest(folder)


def test_another_role_of_a_special_token_is_noticed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|endoftext|>"}))
    assert digest(tmp_path) != digest(folder)
    for read in (load_tokenizer, load_chat):
        with pytest.raises(DamagedError, match=r"tokenizer.json cannot be read \(tokenizer.sha256 beside it says othe"):
            read(tmp_path)


@pytest.mark.parametrize("read", [load_tokenizer, digest, read_special])
@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_file_is_named(tmp_path: Path, read: Callable[[Path], Any], content: str | None) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DamagedError, match=r"tokenizer\w*\.json cannot be read"):
        read(tmp_path)


def test_a_tokenizer_that_cannot_be_used_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    save_preset("unigram", tmp_path, **SMALL)
    state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["unk_id"] = 10**6
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (tmp_path / "tokenizer.sha256").unlink()
    for read in (load_tokenizer, load_chat):
        with pytest.raises(DamagedError, match="cannot be read"):
            read(tmp_path)


# Many ways to damage one


def flip_byte(raw: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(raw))
    return raw[:place] + bytes([raw[place] ^ 1 << draw.randrange(8)]) + raw[place + 1 :]


def cut_short(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw))]


def double_part(raw: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(raw))
    return raw[:start] + raw[start : start + 60] * 2 + raw[start + 60 :]


def more_space(raw: bytes, draw: random.Random) -> bytes:
    return json.dumps(json.loads(raw), indent=draw.randrange(4)).encode()


def other_value(raw: bytes, draw: random.Random) -> bytes:
    """One leaf of the JSON, or a whole part of it, in place of which stands something that JSON can say."""
    state = json.loads(raw)
    parent: Any = state
    while True:
        key = draw.choice(list(parent) if isinstance(parent, dict) else list(range(len(parent))))
        if not isinstance(parent[key], dict | list) or not parent[key] or draw.random() < 0.2:
            break
        parent = parent[key]
    odd = [None, True, -1, 0, 2**31, 2**64, 1e308, "", "가", "\ud800", "NFC", [], {}, [[]], {"type": "BPE"}, "(" * 50]
    parent[key] = draw.choice(odd)
    return json.dumps(state).replace("1e+308", draw.choice(["NaN", "1e999", "-Infinity"])).encode()


def nested(raw: bytes, draw: random.Random) -> bytes:
    deep = draw.choice([50, 200, 5000, 100_000])
    return b'{"normalizer":' + b"[" * deep + b"]" * deep + b"," + raw[1:]


MUTATE = [flip_byte, cut_short, double_part, more_space, other_value, other_value, nested]


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("name", ["byte_bpe", "unigram", "bert_wordpiece"])
def test_a_damaged_tokenizer_is_refused_in_one_line_or_encodes_as_before(
    name: str, is_signed: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a digest beside it, it may also be another one."""
    path = save_preset(name, tmp_path, **SMALL) / "tokenizer.json"
    raw, expected = path.read_bytes(), [encoding.ids for encoding in load_tokenizer(tmp_path).encode_batch(TEXTS)]
    if not is_signed:
        (tmp_path / "tokenizer.sha256").unlink()
    found = []
    for number in range(MUTATIONS):
        path.write_bytes(MUTATE[number % len(MUTATE)](raw, random.Random(f"{name} {number}")))
        try:
            tokenizer = load_tokenizer(tmp_path)
        except DamagedError as error:
            assert len(str(error).splitlines()) == 1 and "tokenizer.json cannot be read" in str(error)
            found.append("refused")
            continue
        same = is_signed and [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)] == expected
        found.append("same" if same else "other")
    assert set(found) == ({"refused", "same"} if is_signed else {"refused", "other"})
    assert MUTATIONS / 20 <= found.count("refused") < MUTATIONS  # white space alone changes nothing
    assert "panicked" not in capfd.readouterr().err
