"""The tokenizers of conf/: each is the recipe that it is named after, and keeps what it says it keeps."""

import json
import re
from pathlib import Path
from unicodedata import normalize

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from llm.config.tokenizer import Alphabet, Morphemes
from llm.model.generation import Detokenizer
from llm.tokenizer import load, load_chat, lost_bytes, save, special, train
from llm.tokenizer.training import alphabet
from tests.korean import HARD_TEXTS, documents, preset, save_preset, sentences

ALL = sorted(path.stem for path in Path("conf/tokenizer").glob("*.yaml") if path.stem != "pretrained")
LOSSY = ["bert_wordpiece", "blog", "xlnet_unigram"]
LOSSLESS = [name for name in ALL if name not in LOSSY]
NFC = ["byte_bpe_qwen2", "char_bpe", "jamo", "unigram"]  # these normalize; the others give the very bytes back
WITHOUT_EXTRA = {"morphemes": Morphemes.none}  # the analyser changes what is learned, not what this file is about


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("presets")
    return {name: save_preset(name, root / name, **WITHOUT_EXTRA) for name in ALL}


def test_the_presets_that_lose_text_say_so_and_the_others_do_not() -> None:
    assert [name for name in ALL if preset(name).allow_lossy] == LOSSY
    for name in LOSSY:
        assert "loses text" in Path(f"conf/tokenizer/{name}.yaml").read_text(encoding="utf-8").replace("\n# ", " ")


@pytest.mark.parametrize("name", LOSSLESS)
def test_hard_text_comes_back_exactly(folders: dict[str, Path], name: str) -> None:
    ours, chat = load(folders[name]), load_chat(folders[name])
    for text in HARD_TEXTS.values():
        expected = normalize("NFC", text) if name in NFC else text
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == expected
        assert chat.decode(ids) == expected
        assert lost_bytes(text, ours.decode(ids)) == 0


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_syllable_and_many_a_character_comes_back(folders: dict[str, Path], name: str) -> None:
    tokenizer = load(folders[name])
    texts = [chr(code) for code in [*range(0x3130), *range(0x4E00, 0x5000), *range(0xAC00, 0xD7B0), 0x1F642]]
    texts.remove("▁") if "▁" in texts else None
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert tokenizer.decode_batch(ids) == [normalize("NFC", text) if name in NFC else text for text in texts]


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_name_of_a_byte_or_of_a_special_token_is_text(folders: dict[str, Path], name: str) -> None:
    tokenizer, named = load(folders[name]), special(folders[name]).tokens
    bytes_ids = {tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)} - {None}
    for token in (*named, "<0x41>", "<0xEA>"):
        for text in (token, f"가{token}나", f"가 {token}", f"<{token}>"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids) == text
            assert not set(ids) & {tokenizer.token_to_id(t) for t in named}
            assert not any(i in bytes_ids and tokenizer.id_to_token(i) == token for i in ids)


@pytest.mark.parametrize("name", ALL)
def test_auto_tokenizer_encodes_and_decodes_the_same(folders: dict[str, Path], name: str) -> None:
    auto, ours = AutoTokenizer.from_pretrained(folders[name], local_files_only=True), load(folders[name])
    for text in [*sentences(10, seed=9), *HARD_TEXTS.values()]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert auto(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        assert auto.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_have_their_roles_and_the_chat_template_uses_them(folders: dict[str, Path], name: str) -> None:
    config, chat, found = preset(name), load_chat(folders[name]), special(folders[name])
    first = config.special_tokens[0]
    assert chat.bos_token == (config.bos_token or first) and chat.eos_token == (config.eos_token or first)
    assert found.bos_id == config.special_tokens.index(chat.bos_token)
    assert found.eos_id == config.special_tokens.index(chat.eos_token)
    assert found.pad_id == config.special_tokens.index(config.pad_token or chat.eos_token)
    messages = [{"role": "user", "content": "책을"}, {"role": "assistant", "content": "읽었다"}]
    assert (
        chat.apply_chat_template(messages, tokenize=False)
        == f"{chat.bos_token}질문: 책을\n답변: 읽었다{chat.eos_token}"
    )
    ids = chat.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert (ids[0], ids[-1]) == (found.bos_id, found.eos_id)


# The recipes


def course_bert() -> tuple[Tokenizer, object]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special_tokens = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=25000, special_tokens=special_tokens, show_progress=False)
    return tokenizer, trainer


def course_gpt2() -> tuple[Tokenizer, object]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=25000,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # GPT-2 has it, the course leaves it out
    )
    return tokenizer, trainer


def course_xlnet() -> tuple[Tokenizer, object]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=[("<sep>", 1), ("<cls>", 0)],
    )
    tokenizer.decoder = decoders.Metaspace()
    special_tokens = ["<cls>", "<sep>", "<unk>", "<pad>", "<mask>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=25000, special_tokens=special_tokens, unk_token="<unk>", show_progress=False
    )
    return tokenizer, trainer


@pytest.mark.parametrize(
    ("name", "recipe"), [("bert_wordpiece", course_bert), ("gpt2_bpe", course_gpt2), ("xlnet_unigram", course_xlnet)]
)
def test_the_three_of_the_course_are_built_as_the_course_builds_them(
    folders: dict[str, Path], name: str, recipe: object
) -> None:
    expected, trainer = recipe()  # type: ignore[operator]
    expected.train_from_iterator(documents(200), trainer)
    states = [json.loads(t.to_str()) for t in (expected, Tokenizer.from_file(str(folders[name] / "tokenizer.json")))]
    vocabularies = [state["model"].pop("vocab") for state in states]
    merges = [state["model"].pop("merges", []) for state in states]
    assert states[0] == states[1]
    assert preset(name).vocab_size == 25000
    if name == "gpt2_bpe":  # the only one whose training is reproducible
        assert vocabularies[0] == vocabularies[1] and merges[0] == merges[1]


# What is shown of each text is worked out by hand from the published rules.
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "byte_bpe_gpt4",
            ["제", "123", "45", "조", "(목적", ")", " 이", " 법은", "\n\n", "it", "'s", "  ", " 끝", "!"],
        ),
        (
            "byte_bpe_qwen2",
            ["제", "1", "2", "3", "4", "5", "조", "(목적", ")", " 이", " 법은", "\n\n", "it", "'s", "  ", " 끝", "!"],
        ),
        ("byte_bpe", ["제", "12345", "조", "(", "목적", ")", " 이", " 법은", "\n", "\n", "it", "'s", "  ", " 끝", "!"]),
    ],
)
def test_words_are_cut_by_the_rule_that_the_preset_is_named_after(
    folders: dict[str, Path], name: str, words: list[str]
) -> None:
    text = "제12345조(목적) 이 법은\n\nit's   끝!"
    tokenizer = load(folders[name])
    found = [tokenizer.decoder.decode([piece]) for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert found == words


def test_jamo_shares_pieces_across_final_consonants_and_gives_syllables_back(tmp_path: Path) -> None:
    config = preset("jamo", vocab_size=400)
    corpus = ["가다 간다 갈 때 감", "오다 온다 올 때 옴"] * 20
    save(train(config, iter(corpus)), config.roles, tmp_path)
    tokenizer = load(tmp_path)
    for text in ("간 갈 감", "온 올 옴", "값 닭 없다", "café"):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert all(normalize("NFD", t) == t for t in map(tokenizer.id_to_token, ids))
    assert tokenizer.encode("갑").tokens == [
        normalize("NFD", "가"),
        "\u11b8",
    ]  # a syllable that was never seen: its letters


@pytest.mark.parametrize("name", ALL)
def test_a_stream_of_a_long_text_is_what_all_of_it_decodes_to(folders: dict[str, Path], name: str) -> None:
    tokenizer = load(folders[name])
    for text in [*HARD_TEXTS.values(), " ".join(sentences(30))]:
        prompt, *ids = tokenizer.encode("가 " + text, add_special_tokens=False).ids
        pieces = Detokenizer(tokenizer, [prompt])
        shown = "".join([*map(pieces.add, ids), pieces.rest()])
        assert tokenizer.decode([prompt, *ids]).endswith(shown) and len(shown) >= len(tokenizer.decode(ids)) - 2


def test_the_jamo_alphabet_is_what_modern_syllables_decompose_into() -> None:
    letters = {letter for code in range(ord("가"), ord("힣") + 1) for letter in normalize("NFD", chr(code))}
    assert alphabet(Alphabet.jamo) == sorted(letters)
    assert len(letters) == 67


def test_byte_pieces_are_plain_vocabulary_in_every_preset_that_falls_back_to_bytes(folders: dict[str, Path]) -> None:
    for name in ("char_bpe", "jamo", "unigram"):
        state = json.loads((folders[name] / "tokenizer.json").read_text(encoding="utf-8"))
        assert state["model"]["byte_fallback"] is True
        assert [token["content"] for token in state["added_tokens"]] == preset(name).special_tokens
        ids = load(folders[name]).encode("뷁λ", add_special_tokens=False).ids
        pieces = [load(folders[name]).id_to_token(i) for i in ids]
        assert any(re.fullmatch("<0x[0-9A-F]{2}>", piece) for piece in pieces)
        assert load_chat(folders[name]).decode(ids, skip_special_tokens=True) == "뷁λ"
