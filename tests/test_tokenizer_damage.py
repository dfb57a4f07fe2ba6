"""Hundreds of damaged tokenizers: each is refused in one line or encodes as before; none crashes, hangs or panics."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.errors import DamagedError
from llm.tokenizer import digest, load, load_chat
from tests.korean import HARD_TEXTS, save_preset, sentences

PRESETS = ("byte_bpe", "unigram", "bert_wordpiece")
MUTATIONS = 200
TEXTS = [*sentences(5, seed=3), *HARD_TEXTS.values()]


def flip_byte(raw: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(raw))
    return raw[:place] + bytes([raw[place] ^ 1 << draw.randrange(8)]) + raw[place + 1 :]


def drop_bytes(raw: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(raw))
    return raw[:place] + raw[place + draw.randrange(1, 40) :]


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
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = draw.choice(keys)
        if not isinstance(parent[key], dict | list) or not parent[key] or draw.random() < 0.2:
            break
        parent = parent[key]
    odd = [None, True, -1, 0, 2**31, 2**64, 1e308, "", "가", "\ud800", "NFC", [], {}, [[]], {"type": "BPE"}, "(" * 50]
    parent[key] = draw.choice(odd)
    text = json.dumps(state)
    return text.replace("1e+308", draw.choice(["NaN", "1e999", "-Infinity"])).encode()


def nested(raw: bytes, draw: random.Random) -> bytes:
    deep = draw.choice([50, 200, 5000, 100_000])
    return b'{"normalizer":' + b"[" * deep + b"]" * deep + b"," + raw[1:]


MUTATE: list[Callable[[bytes, random.Random], bytes]] = [
    flip_byte, drop_bytes, cut_short, double_part, more_space, other_value, other_value, other_value, nested,
]  # fmt: skip


def outcomes(folder: Path, *, signed: bool) -> list[str]:
    """What became of each damaged copy of a tokenizer: same, other, or refused."""
    raw, recorded = (folder / "tokenizer.json").read_bytes(), folder / "tokenizer.sha256"
    whole = load(folder)
    expected = [encoding.ids for encoding in whole.encode_batch(TEXTS)]
    if not signed:
        recorded.unlink()
    found = []
    for number in range(MUTATIONS):
        draw = random.Random(f"{folder.name} {number}")
        (folder / "tokenizer.json").write_bytes(MUTATE[number % len(MUTATE)](raw, draw))
        try:
            tokenizer = load(folder)
        except DamagedError as error:
            assert len(str(error).splitlines()) == 1 and "tokenizer.json cannot be read" in str(error)
            found.append("refused")
            continue
        same = signed and [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)] == expected
        found.append("same" if same else "other")
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_a_damaged_tokenizer_is_refused_or_encodes_as_before(name: str, tmp_path: Path) -> None:
    save_preset(name, tmp_path / name, vocab_size=3000)
    found = outcomes(tmp_path / name, signed=True)
    assert set(found) == {"refused", "same"}
    assert found.count("same") >= found.count("refused") / 20  # white space alone changes nothing


@pytest.mark.parametrize("name", PRESETS)
def test_a_damaged_tokenizer_without_a_digest_is_refused_or_loads(name: str, tmp_path: Path) -> None:
    save_preset(name, tmp_path / name, vocab_size=3000)
    found = outcomes(tmp_path / name, signed=False)
    assert set(found) == {"refused", "other"} and found.count("refused") > len(found) / 2


def test_another_role_of_a_special_token_is_noticed(tmp_path: Path) -> None:
    save_preset("byte_bpe", tmp_path, vocab_size=300)
    before = digest(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<|endoftext|>"}))
    assert digest(tmp_path) != before
    for read in (load, load_chat):
        with pytest.raises(
            DamagedError, match=r"tokenizer.json cannot be read \(tokenizer.sha256 beside it says other"
        ):
            read(tmp_path)


def test_a_tokenizer_that_cannot_be_used_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    save_preset("unigram", tmp_path, vocab_size=3000)
    state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["unk_id"] = 10**6
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (tmp_path / "tokenizer.sha256").unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        load(tmp_path)
