"""The tokenizer: its presets, its losses, and the configs that cannot work."""

import json
import shutil
from pathlib import Path
from unicodedata import normalize

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from llm.config.tokenizer import Alphabet, TokenizerConfig
from llm.errors import ConfigError, DamagedError
from llm.tokenizer import digest, load, lost_bytes, report, save, special, train
from llm.tokenizer.training import alphabet
from tests.korean import HARD_TEXTS, documents, preset, save_preset

PRESETS = ("blog", "byte_bpe", "char_bpe")
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: save_preset(name, root / name) for name in PRESETS}


def config(**settings: object) -> TokenizerConfig:
    return TokenizerConfig(**({"name": "test", "vocab_size": 300, "model": "BPE"} | settings))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


# The presets


def test_the_blog_preset_is_the_recipe_of_the_blog(folders: dict[str, Path]) -> None:
    recipe = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    recipe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    recipe.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.BpeTrainer(
        vocab_size=32000, special_tokens=[END], continuing_subword_prefix="##", show_progress=False
    )
    recipe.train_from_iterator(documents(200), trainer)
    expected, saved = (
        json.loads(text) for text in (recipe.to_str(), (folders["blog"] / "tokenizer.json").read_text(encoding="utf-8"))
    )
    for state in (expected, saved):  # which of two pairs that occur equally often is merged first is left to chance
        state["model"] |= {part: len(state["model"][part]) for part in ("vocab", "merges")}
    assert saved == expected
    assert preset("blog").vocab_size == 32000
    for text in documents(200):  # so many merges that each word of the text is one token, whatever came first
        assert recipe.encode(text).tokens == load(folders["blog"]).encode(text).tokens


def test_a_literal_space_mark_is_counted_as_lost(folders: dict[str, Path]) -> None:
    tokenizer = load(folders["char_bpe"])
    decoded = tokenizer.decode(ids_of(tokenizer, "가▁나"))
    assert decoded == "가 나"
    assert lost_bytes("가▁나", decoded) == 3
    assert report(tokenizer, ["가▁나"]).lost_bytes == 3


def test_each_syllable_of_ks_x_1001_is_one_token(folders: dict[str, Path]) -> None:
    syllables = alphabet(Alphabet.ks_x_1001)
    assert len(syllables) == len(set(syllables)) == 2350
    assert syllables[0] == "가" and syllables[-1] == "힝"  # of the standard's table, rows 16 to 40
    tokenizer = load(folders["char_bpe"])
    assert [len(ids_of(tokenizer, syllable)) for syllable in syllables] == [1] * 2350


# Other models


MODELS = {
    "BPE": config(),
    "BPE with a suffix": config(
        model={"type": "BPE", "end_of_word_suffix": "</w>"}, pre_tokenizer="Whitespace", decoder="BPEDecoder"
    ),
    "WordPiece": config(
        model="WordPiece", pre_tokenizer="BertPreTokenizer", decoder="WordPiece", special_tokens=[END, "[UNK]"]
    ),
    "Unigram": config(model="Unigram", pre_tokenizer="Metaspace", decoder="Metaspace", special_tokens=[END, "<unk>"]),
    "WordLevel": config(model="WordLevel", pre_tokenizer="Whitespace", special_tokens=[END, "<unk>"], min_frequency=1),
    "limited alphabet": config(limit_alphabet=50, pre_tokenizer="WhitespaceSplit"),
}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_every_model_of_the_library_trains_and_is_loaded_again(settings: TokenizerConfig, tmp_path: Path) -> None:
    trained = train(settings, iter(documents(100)))
    save(trained, settings.roles, tmp_path / "saved")
    ours, auto = load(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert len(settings.special_tokens) < ours.get_vocab_size() == len(auto) <= 300
    for text in documents(5, seed=3):
        ids = trained.encode(text).ids
        assert ids
        assert ids_of(ours, text) == ids == auto(text, add_special_tokens=False)["input_ids"]
    assert special(tmp_path / "saved").eos_id == 0
    assert auto.unk_token == next((t for t in settings.special_tokens if t in ("[UNK]", "<unk>")), None)


# Configs that cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "BPF"}, r"tokenizer.model: there is no model of type BPF. Did you mean BPE\?"),
        ({"normalizer": "xyzw"}, r"no normalizer of type xyzw. Known: BertNormalizer, .*NFC"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix": True}},
            r"ByteLevel takes no add_prefix. It takes: add_prefix_space, trim_offsets, use_regex.",
        ),
        (
            {"pre_tokenizer": {"type": "Sequence", "pre_tokenizers": []}},
            r"a Sequence needs the list pretokenizers. Write \{type: Sequence, pretokenizers: \[...\]\}",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": ["NFC", "NFQ"]}},
            r"tokenizer.normalizer.normalizers\[1\]: there is no normalizer of type NFQ. Did you mean NF",
        ),
        (
            {"pre_tokenizer": "Split"},
            r"tokenizer.pre_tokenizer: Split needs pattern. Give it pattern, behavior.",
        ),
        (
            {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "sometimes"}},
            r"tokenizer.pre_tokenizer=.*sometimes.* is not what tokenizers takes",
        ),
        (
            {"model": "WordPiece"},
            r"tokenizer.model=WordPiece writes \[UNK\] .*tokenizer.special_tokens=.* lacks it. Add it there.",
        ),
        ({"model": "Unigram"}, r"tokenizer.model=Unigram writes <unk>"),
        (
            {"model": {"type": "Unigram", "unk_id": None}},
            r"tokenizer.model.unk_id is null.* Write tokenizer.model=Unigram",
        ),
        (
            {"model": "WordLevel", "special_tokens": [END, "<unk>"], "initial_alphabet": Alphabet.bytes},
            r"tokenizer.initial_alphabet is not used by WordLevel",
        ),
        (
            {"model": "Unigram", "special_tokens": [END, "<unk>"], "limit_alphabet": 10},
            r"tokenizer.limit_alphabet is not used by Unigram. Set it to null.",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_a_text_is_read(settings: dict[str, object], message: str) -> None:
    read: list[str] = []
    texts = (read.append(text) or text for text in documents(3))
    with pytest.raises(ConfigError, match=message):
        train(config(**settings), texts)
    assert not read


# What is lost


@pytest.mark.parametrize(
    ("text", "decoded", "lost"),
    [
        ("가나다", "가나다", 0),
        ("가나다", "가다", 3),
        ("가나다", "다나가", 0),  # order is not looked at
        ("가가가", "가", 6),
        ("가 나", "가  나", 0),  # what is added costs nothing
        ("가\n나", "가 나", 1),
        ("a🙂", "a", 4),
        ("한", "한", 0),  # NFD and NFC of one syllable
        ("", "", 0),
        ("가", "", 3),
    ],
)
def test_lost_bytes_of_cases_worked_by_hand(text: str, decoded: str, lost: int) -> None:
    assert lost_bytes(text, decoded) == lost


DOUBLING = {"type": "Replace", "pattern": {"String": "가"}, "content": "가가"}


@pytest.mark.parametrize(
    ("normalizer", "line"),
    [
        ({"type": "Sequence", "normalizers": [DOUBLING] * 40}, "makes more than 100 characters of one, as in '나가"),
        (
            {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [DOUBLING] * 40}]},
            "makes more than",
        ),
        (DOUBLING | {"content": "가" * 2000}, "replaces by 2000 characters. Use 1000 at most."),
    ],
)
def test_a_normalizer_that_makes_text_grow_without_end_is_refused(normalizer: dict[str, object], line: str) -> None:
    texts = ["처음에는 아무것도 없다", "나" + "가" * 1000]
    with pytest.raises(ConfigError, match=f"^tokenizer.normalizer {line}"):
        train(config(normalizer=normalizer), iter(texts))


def test_a_normalizer_that_puts_in_a_few_characters_is_taken() -> None:
    masks = [{"type": "Replace", "pattern": {"String": sign}, "content": f"[{sign}이 있던 곳]"} for sign in "①②③④⑤"]
    trained = train(config(normalizer={"type": "Sequence", "normalizers": masks}), iter(["①②③ 글", "둘째 글"]))
    assert trained.normalizer.normalize_str("③") == "[③이 있던 곳]"


@pytest.mark.parametrize("name", PRESETS)
def test_the_report_equals_a_slow_loop(folders: dict[str, Path], name: str) -> None:
    tokenizer = load(folders[name])
    texts = [*documents(1100, seed=7), *HARD_TEXTS.values(), "\n\n", "빈 줄\n\n뒤"]
    unknown_id = tokenizer.token_to_id("<unk>")
    tokens = unknown = eojeols = raw = lost = lines = exact = same = 0
    first = None
    for text in texts:
        ids = ids_of(tokenizer, text)
        tokens, raw, eojeols = tokens + len(ids), raw + len(text.encode()), eojeols + len(text.split())
        unknown += ids.count(unknown_id)
        left = list(normalize("NFC", tokenizer.decode(ids)))
        for character in normalize("NFC", text):
            if character in left:
                left.remove(character)
            else:
                lost += len(character.encode())
        for line in filter(None, text.split("\n")):
            back = tokenizer.decode(ids_of(tokenizer, line))
            is_same = normalize("NFC", back) == normalize("NFC", line)
            lines, exact, same = lines + 1, exact + (back == line), same + is_same
            first = line if first is None and not is_same else first
    found = report(tokenizer, iter(texts))
    assert (found.documents, found.raw_bytes, found.tokens, found.lost_bytes) == (len(texts), raw, tokens, lost)
    assert (found.exact_round_trip, found.nfc_round_trip) == (exact / lines, same / lines)
    assert (found.tokens_per_eojeol, found.bytes_per_token) == (tokens / eojeols, raw / tokens)
    assert (found.lost_bytes_share, found.unknown_rate) == (lost / raw, unknown / tokens)
    assert next(iter(found.failing_lines), None) == first
    assert found.vocab_size == tokenizer.get_vocab_size()


def test_the_report_counts_the_unknown_token_of_every_model(tmp_path: Path) -> None:
    for name in ("WordPiece", "Unigram", "WordLevel"):
        save(train(MODELS[name], iter(documents(100))), MODELS[name].roles, tmp_path / name)
        assert report(load(tmp_path / name), ["뷁"]).unknown_rate > 0


# On disk


def test_two_trainings_that_give_the_same_tokenizer_have_one_digest(folders: dict[str, Path], tmp_path: Path) -> None:
    again = save_preset("byte_bpe", tmp_path / "again")
    other = save_preset("byte_bpe", tmp_path / "other", vocab_size=300)
    assert digest(folders["byte_bpe"]) == digest(again) != digest(other)


def test_the_digest_does_not_depend_on_the_order_of_keys(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(folders["blog"] / "tokenizer_config.json", tmp_path)
    state = json.loads((folders["blog"] / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(state.items()))), encoding="utf-8")
    assert digest(tmp_path) == digest(folders["blog"])


@pytest.mark.parametrize("read", [load, digest, special])
@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_file_is_named(tmp_path: Path, read: object, content: str | None) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DamagedError, match=r"tokenizer\w*\.json cannot be read"):
        read(tmp_path)  # type: ignore[operator]
