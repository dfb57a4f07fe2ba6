"""tiktoken in place of the library: the same ids on all that Unicode has, and only where that is proved."""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, pre_tokenizers

from llm.tokenizer import fast, load
from llm.tokenizer.fast import batch_encoder, why_not_fast
from tests.korean import HARD_TEXTS, documents, preset, save_preset, sentences

FAST = ["byte_bpe", "byte_bpe_gpt4", "byte_bpe_qwen2", "gpt2_bpe", "morph"]
needs_tiktoken = pytest.mark.skipif(not find_spec("tiktoken"), reason="the optional extra fast is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("fast")
    return {name: save_preset(name, root / name, morphemes="none", vocab_size=3000) for name in FAST}


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@needs_tiktoken
@pytest.mark.parametrize("name", FAST)
def test_the_ids_are_the_librarys_on_hard_text_and_on_joins_of_tokens(folders: dict[str, Path], name: str) -> None:
    tokenizer = load(folders[name])
    assert why_not_fast(tokenizer) is None
    draw, parts = random.Random(0), [tokenizer.decode([number]) for number in range(tokenizer.get_vocab_size())]
    joins = ["".join(draw.choice(parts) for _ in range(draw.randint(1, 6))) for _ in range(3000)]
    long = ["가" * 20_000, " " * 20_000 + "x", "\n" * 20_000, "^" * 20_000, "1" * 20_000]
    texts = [*documents(100, seed=8), *sentences(50, seed=8), *HARD_TEXTS.values(), *joins, *long]
    assert batch_encoder(tokenizer)(texts) == ids_of(tokenizer, texts)


@needs_tiktoken
@pytest.mark.parametrize("name", ["byte_bpe", "byte_bpe_gpt4", "byte_bpe_qwen2"])
def test_every_character_of_unicode_is_cut_alike(folders: dict[str, Path], name: str) -> None:
    tokenizer = load(folders[name])
    codes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)]  # the other planes are empty or private
    # Beside a letter, a digit, a mark and a space, a character shows to which class it belongs.
    lines = [f"가{c}1{c} .{c}가\n" for c in map(chr, codes)]
    texts = ["".join(lines[start : start + 64]) for start in range(0, len(lines), 64)]
    encode = batch_encoder(tokenizer)
    for start in range(0, len(texts), 2000):
        part = texts[start : start + 2000]
        assert encode(part) == ids_of(tokenizer, part)


def test_the_rules_are_those_of_the_presets() -> None:
    for name, rule in (("byte_bpe_gpt4", fast.GPT4), ("byte_bpe_qwen2", fast.QWEN2)):
        settings = yaml.safe_load(Path(f"conf/tokenizer/{name}.yaml").read_text(encoding="utf-8"))
        assert settings["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == rule
    assert sorted(fast.symbol_bytes()) == sorted(pre_tokenizers.ByteLevel.alphabet())


@needs_tiktoken
def test_the_others_stay_with_the_library(tmp_path: Path) -> None:
    for name, reason in (("char_bpe", "not plain BPE"), ("blog", "not plain BPE"), ("unigram", "not plain BPE")):
        tokenizer = load(save_preset(name, tmp_path / name, vocab_size=3000))
        assert reason in str(why_not_fast(tokenizer))
        texts = [*HARD_TEXTS.values()]
        assert batch_encoder(tokenizer)(texts) == ids_of(tokenizer, texts)


@needs_tiktoken
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "in its own way"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "in its own way"),
        ({"pre_tokenizer": None}, "in its own way"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
            "in its own way",
        ),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "it lacks a byte"),
        ({"merges": [["a", "b"], ["c", "d"]], "ids": [301, 300]}, "not in the order of the ids"),
        ({"merges": [["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"]], "ids": [300, 301, 302, 301]}, "by two pairs"),
        # "abc" alone: a b first gives ab c, which no pair joins; so abc is never met, and must not be looked up
        ({"merges": [["a", "b"], ["b", "c"], ["a", "bc"]], "ids": [300, 301, 302]}, "by itself is encoded as others"),
    ],
)
def test_what_is_not_proved_is_not_used(folders: dict[str, Path], change: dict, reason: str) -> None:
    state = json.loads((folders["byte_bpe"] / "tokenizer.json").read_text(encoding="utf-8"))
    if "merges" in change:
        symbols = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        made = {"".join(pair): number for pair, number in zip(change["merges"], change["ids"], strict=True)}
        state["model"] |= {"vocab": symbols | made, "merges": change["merges"]}
        state["added_tokens"] = []
    elif "model" in change:
        state["model"] |= change["model"]
        state["added_tokens"] = []
    else:
        state |= change
    tokenizer = Tokenizer.from_str(json.dumps(state))
    assert why_not_fast(tokenizer) == "it looks for special tokens in the text"
    tokenizer.encode_special_tokens = True
    assert reason in str(why_not_fast(tokenizer))
    texts = ["abc abcd", "나는 오늘"]
    assert batch_encoder(tokenizer)(texts) == ids_of(tokenizer, texts)


@needs_tiktoken
def test_added_tokens_that_are_looked_for_in_the_text_stay_with_the_library(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["byte_bpe"])
    tokenizer.add_special_tokens(["<|표|>"])
    texts = ["앞<|표|>뒤 <회사>에서"]
    assert why_not_fast(tokenizer) is None
    assert batch_encoder(tokenizer)(texts) == ids_of(tokenizer, texts)
    tokenizer.add_tokens(["<회사>"])
    assert why_not_fast(tokenizer) == "it looks for added tokens in the text"
    assert batch_encoder(tokenizer)(texts) == ids_of(tokenizer, texts)
    assert tokenizer.token_to_id("<회사>") in batch_encoder(tokenizer)(texts)[0]


def test_without_tiktoken_the_library_encodes(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "find_spec", lambda name: None)
    tokenizer = load(folders["byte_bpe"])
    assert why_not_fast(tokenizer) == "tiktoken is not installed"
    assert batch_encoder(tokenizer)(["나는 오늘"]) == ids_of(tokenizer, ["나는 오늘"])


def test_a_preset_that_the_lab_calls_fast_is_byte_level() -> None:
    assert all(preset(name).decoder == "ByteLevel" for name in FAST)
