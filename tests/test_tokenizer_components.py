"""Every component of the tokenizers library: built from a config, trained, saved, loaded; and what cannot be built."""

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from llm.config.tokenizer import Alphabet, Morphemes, TokenizerConfig
from llm.errors import ConfigError
from llm.tokenizer.folder import load_tokenizer, save
from llm.tokenizer.training import train
from tests.korean import HARD_TEXTS, documents, sentences

END, UNKNOWN = "<|endoftext|>", "<unk>"
TEXTS = [*sentences(4, seed=5), *HARD_TEXTS.values()]

NORMALIZERS = [
    None,
    "BertNormalizer",
    "ByteLevel",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Prepend",
    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
    {"type": "Sequence", "normalizers": ["NFC", "Strip"]},
    "Strip",
    "StripAccents",
]
PRE_TOKENIZERS = [
    None,
    "BertPreTokenizer",
    "ByteLevel",
    {"type": "CharDelimiterSplit", "delimiter": "다"},
    "Digits",
    "FixedLength",
    "Metaspace",
    "Punctuation",
    {"type": "Sequence", "pretokenizers": ["Whitespace", "Digits"]},
    {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated"},
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
]
MODELS = [
    {"type": "BPE", "unk_token": UNKNOWN},
    {"type": "BPE", "unk_token": UNKNOWN, "byte_fallback": True, "fuse_unk": True},
    {"type": "BPE", "unk_token": UNKNOWN, "end_of_word_suffix": "</w>"},
    {"type": "WordPiece", "unk_token": UNKNOWN},
    "Unigram",
    {"type": "Unigram", "byte_fallback": True},
    "WordLevel",
]
POST_PROCESSORS = [
    None,
    "ByteLevel",
    {"type": "TemplateProcessing", "single": f"{END} $A {END}"},
    {"type": "BertProcessing", "sep": END, "cls": UNKNOWN},
    {"type": "RobertaProcessing", "sep": END, "cls": UNKNOWN},
    {"type": "Sequence", "processors": ["ByteLevel", {"type": "TemplateProcessing", "single": f"$A {END}"}]},
]
DECODERS = [
    None,
    "BPEDecoder",
    "ByteFallback",
    "ByteLevel",
    "CTC",
    "Fuse",
    "Metaspace",
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "Sequence", "decoders": ["ByteFallback", "Fuse", {"type": "Strip", "start": 1}]},
    "Strip",
    "WordPiece",
]
ALL = {
    normalizers: NORMALIZERS,
    pre_tokenizers: PRE_TOKENIZERS,
    models: MODELS,
    processors: POST_PROCESSORS,
    decoders: DECODERS,
}


def config(**settings: object) -> TokenizerConfig:
    defaults = {"name": "test", "vocab_size": 600, "model": "BPE", "special_tokens": [END, UNKNOWN]}
    return TokenizerConfig(**(defaults | settings))


def type_of(component: object) -> str | None:
    return str(component["type"]) if isinstance(component, dict) else component  # type: ignore[return-value]


@pytest.mark.parametrize("module", ALL, ids=lambda module: module.__name__)
def test_the_tables_hold_every_component_of_the_library(module: object) -> None:
    bases = ("Normalizer", "PreTokenizer", "Model", "PostProcessor", "Decoder")
    classes = {name for name, kind in vars(module).items() if isinstance(kind, type)} - {*bases, "DecodeStream"}
    untested = {"Precompiled"}  # takes a map that sentencepiece compiles: nothing here can make one
    assert classes - untested == {type_of(component) for component in ALL[module] if component}


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=type_of)
def test_every_pair_of_components_trains_and_encodes_equally_when_it_is_loaded_again(
    normalizer: object, tmp_path: Path
) -> None:
    corpus, first = documents(15), NORMALIZERS.index(normalizer)
    for number, pre_tokenizer in enumerate(PRE_TOKENIZERS):
        settings = config(
            normalizer=normalizer,
            pre_tokenizer=pre_tokenizer,
            model=MODELS[(first + number) % len(MODELS)],
            post_processor=POST_PROCESSORS[(first + number) % len(POST_PROCESSORS)],
            decoder=DECODERS[(first + number) % len(DECODERS)],
        )
        trained = train(settings, iter(corpus))
        ids = [encoding.ids for encoding in trained.encode_batch(TEXTS, add_special_tokens=False)]
        again = Tokenizer.from_str(trained.to_str())
        assert [encoding.ids for encoding in again.encode_batch(TEXTS, add_special_tokens=False)] == ids
        assert again.decode_batch(ids) == trained.decode_batch(ids)
        if number % 4 == first % 4:  # transformers takes a hundred times as long
            save(trained, settings.roles, tmp_path)
            auto, ours = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True), load_tokenizer(tmp_path)
            for text in sentences(2, seed=6):
                assert auto(text)["input_ids"] == ours.encode(text).ids == trained.encode(text).ids


# What goes beyond tokenizer.json's own format


SPECIAL = ["<a>", "<s>", "</s>"]


@pytest.mark.parametrize(
    ("post_processor", "single", "pair"),
    [
        ({"type": "TemplateProcessing", "single": "<s> $A </s>"}, [1, 3, 2], [1, 3, 2, 1, 3, 2]),
        (
            {"type": "TemplateProcessing", "single": "<s> $A </s>", "pair": "<s> $A </s> $B:1"},
            [1, 3, 2],
            [1, 3, 2, 3],
        ),
        (
            {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
            },
            [3, 2],
            [3, 3],
        ),
        ({"type": "BertProcessing", "sep": "</s>", "cls": "<s>"}, [1, 3, 2], [1, 3, 2, 3, 2]),
        ({"type": "BertProcessing", "sep": ["</s>", 2], "cls": "<s>"}, [1, 3, 2], [1, 3, 2, 3, 2]),
        ({"type": "RobertaProcessing", "sep": "</s>", "cls": "<s>"}, [1, 3, 2], [1, 3, 2, 2, 3, 2]),
    ],
    ids=lambda value: type_of(value) if isinstance(value, dict) else "",
)
def test_a_post_processor_adds_special_tokens_that_it_names(
    post_processor: dict[str, object], single: list[int], pair: list[int]
) -> None:
    settings = config(special_tokens=SPECIAL, model="BPE", post_processor=post_processor)
    trained = train(settings, iter(["가"]))
    assert trained.token_to_id("가") == 3
    assert trained.encode("가").ids == single
    assert trained.encode("가", "가").ids == pair
    assert trained.encode("가", add_special_tokens=False).ids == [3]


def template(**arguments: str) -> dict[str, object]:
    return {"special_tokens": SPECIAL, "post_processor": {"type": "TemplateProcessing"} | arguments}


BOTH = ["NFC", "NFQ"]
REFUSED = [
    ({"model": "BPF"}, r"tokenizer.model: there is no model of type BPF. Did you mean BPE\?"),
    ({"model": "Sequence"}, r"tokenizer.model: there is no model of type Sequence. Known: BPE, Unigram, Word"),
    ({"normalizer": "xyzw"}, r"no normalizer of type xyzw. Known: BertNormalizer, .*NFC"),
    ({"decoder": "NFCD"}, r"no decoder of type NFCD. Did you mean NFC\?"),
    ({"decoder": {"type": "NFC", "form": 1}}, r"tokenizer.decoder: NFC takes no form. It takes: no arguments."),
    (
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix": True}},
        r"ByteLevel takes no add_prefix. It takes: add_prefix_space, trim_offsets, use_regex.",
    ),
    (
        {"pre_tokenizer": {"type": "Sequence", "pre_tokenizers": []}},
        r"a Sequence needs the list pretokenizers. Write \{type: Sequence, pretokenizers: \[...\]\}",
    ),
    (
        {"normalizer": {"type": "Sequence", "normalizers": [], "first": 1}},
        r"Sequence takes no first. It takes: normalizers.",
    ),
    (
        {"normalizer": {"type": "Sequence", "normalizers": BOTH}},
        r"tokenizer.normalizer.normalizers\[1\]: there is no normalizer of type NFQ. Did you mean NF",
    ),
    ({"pre_tokenizer": "Split"}, r"tokenizer.pre_tokenizer: Split needs pattern. Give it pattern, behavior."),
    (
        {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "sometimes"}},
        r"tokenizer.pre_tokenizer=.*sometimes.* is not what tokenizers takes",
    ),
    (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}},
        r"tokenizer.pre_tokenizer=.* is not what tokenizers takes",
    ),
    (
        {"model": "WordPiece"},
        r"tokenizer.model=WordPiece writes \[UNK\] .*tokenizer.special_tokens=.* lacks it. Add it there.",
    ),
    ({"model": {"type": "Unigram", "unk_id": None}}, r"tokenizer.model.unk_id is null.* Write tokenizer.model=Unigram"),
    (
        {"model": "WordLevel", "initial_alphabet": Alphabet.bytes},
        r"tokenizer.initial_alphabet is not used by WordLevel",
    ),
    ({"model": "Unigram", "limit_alphabet": 10}, r"tokenizer.limit_alphabet is not used by Unigram. Set it to null."),
    (
        {"model": "Unigram", "morphemes": Morphemes.kiwi},
        r"tokenizer.morphemes=kiwi needs tokenizer.model=BPE without prefix or",
    ),
    (
        {"model": {"type": "BPE", "continuing_subword_prefix": "##"}, "morphemes": Morphemes.mecab},
        r"tokenizer.morphemes=mecab needs tokenizer.model=BPE without prefix or",
    ),
    (template(single="[CLS] $A"), r"post_processor names \[CLS\], which tokenizer.special_tokens=.* lacks. Add it"),
    (template(single="$C"), r"tokenizer.post_processor: .*Write it as '<s> \$A </s>'"),
    (template(single="<s>"), r"single='<s>' must hold \$A once|Write it as"),
    (template(single="$A", pair="$A <s>"), r"Write it as '<s> \$A </s>'"),
    (template(single="$A", pairs="$A"), r"TemplateProcessing takes no pairs. It takes: pair, single, special_tokens"),
    (template(), r"TemplateProcessing needs single. Give it single."),
    (
        {"post_processor": {"type": "BertProcessing", "sep": "[SEP]", "cls": END}},
        r"tokenizer.post_processor.sep names \[SEP\], which .* lacks. Add it there.",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_a_config_that_cannot_work_is_refused_before_a_text_is_read(settings: dict[str, object], message: str) -> None:
    read: list[str] = []
    texts = (read.append(text) or text for text in documents(3))
    with pytest.raises(ConfigError, match=message):
        train(config(**settings), texts)
    assert not read


def test_the_nfc_decoder_composes_every_character_and_is_part_of_tokenizer_json() -> None:
    tokenizer = train(config(normalizer="NFD", decoder="NFC", vocab_size=20_000), iter(["가"]))
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    stable = [char for char in characters if normalize("NFC", char) == char]
    take_apart = normalizers.NFD().normalize_str  # the library knows an older Unicode than Python may
    apart = sorted({letter for char in stable for letter in take_apart(char)})
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] = {letter: number for number, letter in enumerate(apart)}
    tokenizer = Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))
    composed = [char for char in stable if take_apart(char) != char]
    assert len(composed) > 12_000
    line = " ".join(composed)
    assert tokenizer.decode(tokenizer.encode(line).ids) == line


DOUBLING = {"type": "Replace", "pattern": {"String": "가"}, "content": "가가"}


@pytest.mark.parametrize(
    ("normalizer", "line"),
    [
        ({"type": "Sequence", "normalizers": [DOUBLING] * 40}, "makes more than 100 characters of one, as in '나가"),
        (DOUBLING | {"content": "가" * 2000}, "replaces by 2000 characters. Use 1000 at most."),
    ],
)
def test_a_normalizer_that_makes_text_grow_without_end_is_refused(normalizer: dict[str, object], line: str) -> None:
    asked = TokenizerConfig(name="x", model="BPE", normalizer=normalizer, vocab_size=100)
    with pytest.raises(ConfigError, match=f"^tokenizer.normalizer {line}"):
        train(asked, iter(["처음에는 아무것도 없다", "나" + "가" * 1000]))
