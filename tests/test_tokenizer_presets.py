"""The tokenizers of conf/: each is the recipe that it is named after, and keeps what it says it keeps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm.config.tokenizer import Alphabet, Morphemes
from llm.model.generation import Detokenizer
from llm.tokenizer.folder import load_chat, load_tokenizer, read_special, save
from llm.tokenizer.training import alphabet, train
from tests.korean import HARD_TEXTS, documents, preset, save_preset, sentences

READ = ("extend", "pretrained")  # taken from a folder, not trained by their own stages
ALL = sorted(path.stem for path in Path("conf/tokenizer").glob("*.yaml") if path.stem not in READ)
LOSSY = ["bert_wordpiece", "blog", "xlnet_unigram"]
LOSSLESS = [name for name in ALL if name not in LOSSY]
NFC = ["byte_bpe_qwen2", "char_bpe", "jamo", "unigram"]  # these normalize; the others give the very bytes back
Loaded = dict[str, tuple[Path, Tokenizer, PreTrainedTokenizerFast]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """(folder, the tokenizer as it is loaded for raw text, and for chats) of each preset."""
    root = tmp_path_factory.mktemp("presets")
    # the analyser changes what is learned, not what this file is about
    folders = {name: save_preset(name, root / name, morphemes=Morphemes.none) for name in ALL}
    return {name: (folder, load_tokenizer(folder), load_chat(folder)) for name, folder in folders.items()}


def test_the_presets_that_lose_text_say_so_and_the_others_do_not() -> None:
    assert [name for name in ALL if preset(name).allow_lossy] == LOSSY
    for name in LOSSY:
        assert "loses text" in Path(f"conf/tokenizer/{name}.yaml").read_text(encoding="utf-8").replace("\n# ", " ")


@pytest.mark.parametrize("name", LOSSLESS)
def test_text_comes_back_exactly(loaded: Loaded, name: str) -> None:
    _, ours, chat = loaded[name]
    codes = [code for code in [*range(0x3130), *range(0x4E00, 0x5000), *range(0xAC00, 0xD7B0), 0x1F642]]
    every = " ".join(map(chr, codes)).replace("▁", "")
    for text in [*HARD_TEXTS.values(), every]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == chat.decode(ids) == (normalize("NFC", text) if name in NFC else text)


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_name_of_a_byte_or_of_a_special_token_is_text(loaded: Loaded, name: str) -> None:
    folder, tokenizer, _ = loaded[name]
    named = read_special(folder).tokens
    bytes_ids = {tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)} - {None}
    for token in (*named, "<0x41>"):
        for text in (token, f"가{token}나", f"가 {token}", f"<{token}>"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids) == text
            assert not set(ids) & {tokenizer.token_to_id(t) for t in named}
            assert not any(i in bytes_ids and tokenizer.id_to_token(i) == token for i in ids)


@pytest.mark.parametrize("name", ALL)
def test_auto_tokenizer_encodes_and_decodes_the_same(loaded: Loaded, name: str) -> None:
    folder, ours, _ = loaded[name]
    auto = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in [*sentences(3, seed=9), "\n".join(HARD_TEXTS.values())]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert auto(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        assert auto.decode(ids, skip_special_tokens=True) == ours.decode(ids)


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_have_their_roles_and_the_chat_template_uses_them(loaded: Loaded, name: str) -> None:
    folder, _, chat = loaded[name]
    config, found = preset(name), read_special(folder)
    first = config.special_tokens[0]
    assert (chat.bos_token, chat.eos_token) == (config.bos_token or first, config.eos_token or first)
    roles = (chat.bos_token, chat.eos_token, config.pad_token or chat.eos_token)
    assert (found.bos_id, found.eos_id, found.pad_id) == tuple(map(config.special_tokens.index, roles))
    assert chat.unk_token == next((token for token in config.special_tokens if token in ("[UNK]", "<unk>")), None)
    messages = [{"role": "user", "content": "책을"}, {"role": "assistant", "content": "읽었다"}]
    written = f"{chat.bos_token}질문: 책을\n답변: 읽었다{chat.eos_token}"
    assert chat.apply_chat_template(messages, tokenize=False) == written
    ids = chat.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert (ids[0], ids[-1]) == (found.bos_id, found.eos_id)


@pytest.mark.parametrize("name", ALL)
def test_a_stream_of_a_text_is_what_all_of_it_decodes_to(loaded: Loaded, name: str) -> None:
    _, tokenizer, _ = loaded[name]
    for text in ["\n".join(HARD_TEXTS.values()), " ".join(sentences(2))]:
        size = 3 if name == "bytes" else 1  # a prompt ends with a whole character
        ids = tokenizer.encode("가 " + text, add_special_tokens=False).ids
        prompt, ids = ids[:size], ids[size:]
        pieces = Detokenizer(tokenizer, prompt)
        shown = "".join([*map(pieces.add, ids), pieces.rest()])
        assert tokenizer.decode([*prompt, *ids]).endswith(shown) and len(shown) >= len(tokenizer.decode(ids)) - 2


def test_byte_pieces_are_plain_vocabulary_in_every_preset_that_falls_back_to_bytes(loaded: Loaded) -> None:
    for name in ("char_bpe", "jamo", "unigram"):
        folder, tokenizer, chat = loaded[name]
        state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        assert state["model"]["byte_fallback"] is True
        assert [token["content"] for token in state["added_tokens"]] == preset(name).special_tokens
        encoding = tokenizer.encode("뷁λ", add_special_tokens=False)
        assert any(piece.startswith("<0x") for piece in encoding.tokens)
        assert chat.decode(encoding.ids, skip_special_tokens=True) == "뷁λ"


# The recipes


def blog() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer, trainers.BpeTrainer(
        vocab_size=32000, special_tokens=["<|endoftext|>"], continuing_subword_prefix="##", show_progress=False
    )


def course_bert() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    steps = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special_tokens = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    return tokenizer, trainers.WordPieceTrainer(vocab_size=25000, special_tokens=special_tokens, show_progress=False)


def course_gpt2() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=25000,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # GPT-2 has it, the course leaves it out
    )


def course_xlnet() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD()]
    steps += [normalizers.StripAccents(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=[("<sep>", 1), ("<cls>", 0)],
    )
    tokenizer.decoder = decoders.Metaspace()
    special_tokens = ["<cls>", "<sep>", "<unk>", "<pad>", "<mask>", "<s>", "</s>"]
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=25000, special_tokens=special_tokens, unk_token="<unk>", show_progress=False
    )


RECIPES = {"blog": blog, "bert_wordpiece": course_bert, "gpt2_bpe": course_gpt2, "xlnet_unigram": course_xlnet}


@pytest.mark.parametrize(("name", "recipe"), RECIPES.items(), ids=RECIPES)
def test_a_preset_is_the_recipe_that_it_is_named_after(
    loaded: Loaded, name: str, recipe: Callable[[], tuple[Tokenizer, Any]]
) -> None:
    expected, trainer = recipe()
    expected.train_from_iterator(documents(200), trainer)
    states = [json.loads(t.to_str()) for t in (expected, Tokenizer.from_file(str(loaded[name][0] / "tokenizer.json")))]
    vocabularies = [(state["model"].pop("vocab"), state["model"].pop("merges", [])) for state in states]
    assert states[0] == states[1]
    assert preset(name).vocab_size == trainer.vocab_size
    if name == "gpt2_bpe":  # the only one whose training is reproducible
        assert vocabularies[0] == vocabularies[1]
    if name == "blog":  # so many merges that each word of the text is one token, whatever came first
        for text in documents(200):
            assert expected.encode(text).tokens == loaded[name][1].encode(text).tokens


# What is shown of each text is worked out by hand from the published rules.
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("byte_bpe_gpt4", "제|123|45|조|(목적|)| 이| 법은|\n\n|it|'s|  | 끝|!"),
        ("byte_bpe_qwen2", "제|1|2|3|4|5|조|(목적|)| 이| 법은|\n\n|it|'s|  | 끝|!"),
        ("byte_bpe", "제|12345|조|(|목적|)| 이| 법은|\n|\n|it|'s|  | 끝|!"),
    ],
)
def test_words_are_cut_by_the_rule_that_the_preset_is_named_after(loaded: Loaded, name: str, words: str) -> None:
    _, tokenizer, _ = loaded[name]
    cut = tokenizer.pre_tokenizer.pre_tokenize_str("제12345조(목적) 이 법은\n\nit's   끝!")
    assert [tokenizer.decoder.decode([piece]) for piece, _ in cut] == words.split("|")


def test_superwords_are_learned_on_top_of_words_and_cross_spaces_but_no_line() -> None:
    texts = documents(300)
    made, first = (
        train(preset("superword_bpe", vocab_size=600), texts),
        train(preset("byte_bpe", vocab_size=540), texts),
    )
    states = [json.loads(tokenizer.to_str())["model"] for tokenizer in (made, first)]
    assert made.get_vocab_size() == 600 and states[0]["merges"][: len(states[1]["merges"])] == states[1]["merges"]
    assert states[1]["vocab"].items() <= states[0]["vocab"].items()
    crossing = [token for token in states[0]["vocab"] if "Ġ" in token[1:]]
    assert crossing and all(states[0]["vocab"][token] >= 540 for token in crossing)
    assert not [token for token in states[0]["vocab"] if "Ċ" in token and set(token) - {"Ċ"}]
    counts = [
        sum(len(tokenizer.encode(text).ids) for text in texts)
        for tokenizer in (made, train(preset("byte_bpe", vocab_size=600), texts))
    ]
    assert counts[0] < counts[1]  # what it is for


def test_bytes_are_tokens_of_one_byte_whatever_the_size() -> None:
    made = train(preset("bytes", vocab_size=5000), documents(20))
    assert made.get_vocab_size() == 256 + len(preset("bytes").special_tokens)
    for text in documents(5, seed=1):
        assert len(made.encode(text).ids) == len(text.encode())


def test_jamo_shares_pieces_across_final_consonants_and_gives_syllables_back(tmp_path: Path) -> None:
    config = preset("jamo", vocab_size=400)
    save(train(config, iter(["가다 간다 갈 때 감", "오다 온다 올 때 옴"] * 20)), config.roles, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    encoding = tokenizer.encode("간 갈 감 온 올 옴 값 닭 없다 café")
    assert tokenizer.decode(encoding.ids) == "간 갈 감 온 올 옴 값 닭 없다 café"
    assert all(normalize("NFD", token) == token for token in encoding.tokens)
    # of a syllable that was never seen, its letters
    assert tokenizer.encode("갑").tokens == [normalize("NFD", "가"), "\u11b8"]


def test_alphabets_are_those_of_the_standards(loaded: Loaded) -> None:
    letters = {letter for code in range(ord("가"), ord("힣") + 1) for letter in normalize("NFD", chr(code))}
    assert alphabet(Alphabet.jamo) == sorted(letters) and len(letters) == 67
    syllables = alphabet(Alphabet.ks_x_1001)
    assert len(syllables) == len(set(syllables)) == 2350
    assert syllables[0] == "가" and syllables[-1] == "힝"  # of the standard's table, rows 16 to 40
    encodings = loaded["char_bpe"][1].encode_batch(syllables, add_special_tokens=False)
    assert [len(encoding.ids) for encoding in encodings] == [1] * 2350
