"""The report's numbers, by hand and by another way; the gate that refuses what loses text; what is sampled."""

import importlib.util
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unicodedata import normalize

import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from llm.config.data import DataConfig, DataKind
from llm.config.tokenizer import Morphemes, TokenizerConfig
from llm.data.corpus import open_corpus
from llm.data.documents import write_documents
from llm.data.order import EvaluationBatches
from llm.data.rows import TokenRows
from llm.data.shards import read_manifest, write_shards
from llm.errors import ConfigError, DataError
from llm.run.runs import Run
from llm.tokenizer.folder import load_tokenizer, save
from llm.tokenizer.report import lost_bytes, measure, renyi_efficiency
from llm.tokenizer.training import MARK, Sample, analyser, marked, train
from llm.trainer.validation import evaluate
from tests import test_stages
from tests.korean import HARD_TEXTS, documents, preset, save_preset

END = "<|endoftext|>"


def words(vocab: dict[str, int], **stages: object) -> Tokenizer:
    """A tokenizer that looks words up, so that everything about it can be worked out by hand."""
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    frame = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    rest = {"pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": model}
    return Tokenizer.from_str(json.dumps(frame | rest | stages))


# The report


def test_the_report_of_a_case_worked_by_hand() -> None:
    tokenizer = words({"<unk>": 0, "가": 1, "나다": 2, "라": 3, "<0xEA>": 4, "ABC": 5})
    found = measure(tokenizer, ["가 나다 가", "가\n<0xEA> 뷁"])
    assert (found.vocab_size, found.documents, found.tokens) == (6, 2, 6)
    assert found.raw_bytes == 14 + 14
    assert found.tokens_per_eojeol == 1
    assert found.characters_per_token == (6 + 10) / 6
    assert found.bytes_per_token == 28 / 6
    assert (found.exact_round_trip, found.nfc_round_trip) == (2 / 3, 2 / 3)  # a lone decoder joins words with spaces
    assert found.lossless_documents == 1 / 2
    assert found.failing_lines == ["<0xEA> 뷁"]
    assert found.lost_characters == {"뷁": 1, "\n": 1}
    assert (found.lost_bytes, found.lost_bytes_share) == (4, 4 / 28)
    assert found.unknown_rate == 1 / 6
    assert found.byte_piece_rate == 1 / 6
    assert found.single_token_common_syllables == 2 / 2350  # 가 and 라
    assert found.single_token_syllables == 2 / 11172
    assert found.vocabulary_used == 4 / 6
    assert (found.morpheme_crossing_rate, found.morpheme_analyser) == (None, None)
    assert not found.is_lossless


def test_a_text_that_comes_back_as_another_of_its_length_is_not_lossless() -> None:
    replaced = {"type": "Replace", "pattern": {"String": "다"}, "content": "나"}
    found = measure(words({"<unk>": 0, "가": 1, "나": 2}, normalizer=replaced), ["가 다", "가 나"])
    assert (found.lossless_documents, found.is_lossless, found.lost_bytes) == (1 / 2, False, 3)


def test_renyi_efficiency_of_cases_worked_by_hand() -> None:
    assert renyi_efficiency(Counter({1: 5, 2: 5, 3: 5, 4: 5}), vocab_size=4) == pytest.approx(1)
    assert renyi_efficiency(Counter({1: 7}), vocab_size=4) == 0
    # p = 3/4, 1/4; order 2: -log2(9/16 + 1/16) = log2(8/5), of log2(2) = 1
    assert renyi_efficiency(Counter({1: 3, 2: 1}), vocab_size=2, order=2) == pytest.approx(math.log2(8 / 5))
    assert renyi_efficiency(Counter(), vocab_size=4) == 0


def test_tokens_that_cross_a_morpheme_are_counted_by_their_place_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.tokenizer.report.analyser", lambda kind: lambda text: [1, 5])
    tokenizer = words({"<unk>": 0, "가나": 1, "다": 2, "라": 3, "마": 4})
    found = measure(
        tokenizer, ["가나 다라 마"], morphemes=Morphemes.mecab
    )  # cut after 가 and before 라's end: 가|나, 라|
    assert found.morpheme_crossing_rate == 1 / 3
    assert found.morpheme_analyser == "mecab"


@pytest.mark.parametrize(
    ("text", "decoded", "lost"),
    [
        ("가나다", "가다", 3),
        ("가나다", "다나가", 0),  # order is not looked at
        ("가가가", "가", 6),
        ("가 나", "가  나", 0),  # what is added costs nothing
        ("가\n나", "가 나", 1),
        ("a🙂", "a", 4),
        ("한", normalize("NFD", "한"), 0),
        ("가", "", 3),
    ],
)
def test_lost_bytes_of_cases_worked_by_hand(text: str, decoded: str, lost: int) -> None:
    assert lost_bytes(text, decoded) == lost


@pytest.mark.parametrize("name", ["blog", "char_bpe"])
def test_the_report_equals_a_slow_loop(tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(save_preset(name, tmp_path))
    texts = [*documents(1010, seed=7), *HARD_TEXTS.values(), "\n\n", "빈 줄\n\n뒤"]
    unknown_id = tokenizer.token_to_id("<unk>")
    tokens = unknown = eojeols = raw = lost = lines = exact = same = 0
    first = None
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokens, raw, eojeols = tokens + len(ids), raw + len(text.encode()), eojeols + len(text.split())
        unknown += ids.count(unknown_id)
        left = list(normalize("NFC", tokenizer.decode(ids)))
        for character in normalize("NFC", text):
            if character in left:
                left.remove(character)
            else:
                lost += len(character.encode())
        for line in filter(None, text.split("\n")):
            back = tokenizer.decode(tokenizer.encode(line, add_special_tokens=False).ids)
            is_same = normalize("NFC", back) == normalize("NFC", line)
            lines, exact, same = lines + 1, exact + (back == line), same + is_same
            first = line if first is None and not is_same else first
    found = measure(tokenizer, iter(texts))
    assert (found.documents, found.raw_bytes, found.tokens, found.lost_bytes) == (len(texts), raw, tokens, lost)
    assert (found.exact_round_trip, found.nfc_round_trip) == (exact / lines, same / lines)
    assert (found.tokens_per_eojeol, found.bytes_per_token) == (tokens / eojeols, raw / tokens)
    assert (found.lost_bytes_share, found.unknown_rate) == (lost / raw, unknown / tokens)
    assert next(iter(found.failing_lines), None) == first


@pytest.mark.parametrize("model", ["WordPiece", "Unigram", "WordLevel"])
def test_the_report_counts_the_unknown_token_of_every_model(model: str) -> None:
    unknown = "[UNK]" if model == "WordPiece" else "<unk>"
    config = TokenizerConfig(name=model, model=model, pre_tokenizer="Whitespace", special_tokens=[END, unknown])
    assert measure(train(config, iter(documents(100))), ["뷁"]).unknown_rate > 0


# Bits per byte


class _Uniform(torch.nn.Module):
    """A model that finds every token equally likely."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocab_size))


def test_bits_per_byte_under_nfc_and_nfd_have_one_denominator_worked_by_hand(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(["각", "갂", "갃", "간"]), encoding="utf-8")
    data = DataConfig(name="text", kind=DataKind.text, path=str(tmp_path / "text.txt"), held_out_share=0.4)
    found = {}
    held_out = write_documents(open_corpus(data), tmp_path / "documents")["held_out"]["documents"]
    assert held_out == 3  # by the hash of their text
    for form in ("NFC", "NFD"):
        config = TokenizerConfig(
            name=form, model="BPE", normalizer=form, decoder="Fuse", special_tokens=[END], min_frequency=9
        )
        folder = tmp_path / form
        save(train(config, iter(["각갂갃간"])), config.roles, folder)  # no pair is frequent enough to be merged
        manifest = write_shards(tmp_path / "documents", folder, folder / "shards")
        assert read_manifest(folder / "shards") == manifest
        rows = TokenRows({"": (folder / "shards", manifest)}, "held_out", sequence_length=8)
        batches = EvaluationBatches(rows.num_labels, batch_size=1)
        loader = DataLoader(rows, batch_sampler=batches, collate_fn=lambda batch: batch)
        result = evaluate(_Uniform(manifest.vocab_size), loader, rows, device=torch.device("cpu"))
        found[form] = (manifest.vocab_size, rows.raw_bytes, result.bits_per_byte)
    # A syllable has 3 bytes. NFC: 4 syllables and the end are 5 tokens; a document has 2 labels: its syllable, its end.
    # NFD: ㄱ ㅏ and 4 last letters and the end are 7 tokens; a document has 4 labels: three letters, its end.
    assert found["NFC"][:2] == (5, 3 * held_out) and found["NFD"][:2] == (7, 3 * held_out)
    assert found["NFC"][2] == pytest.approx(2 * math.log2(5) / 3, rel=1e-6)
    assert found["NFD"][2] == pytest.approx(4 * math.log2(7) / 3, rel=1e-6)


# What training takes


def texts() -> Iterator[str]:
    return iter(documents(600, seed=4))


def test_a_sample_takes_about_its_bytes_in_order_and_a_larger_one_holds_it() -> None:
    every, total = list(texts()), sum(len(text.encode()) for text in texts())
    small = Sample(texts, total // 5, seed=0)
    fifth, half = list(small), list(Sample(texts, total // 2, seed=0))
    assert small.raw_bytes == sum(len(text.encode()) for text in fifth) == pytest.approx(total / 5, rel=0.3)
    assert (small.documents, small.total_bytes) == (len(fifth), total)
    assert fifth == [text for text in every if text in set(fifth)]
    assert set(fifth) < set(half)
    assert fifth == list(Sample(texts, total // 5, seed=0))
    assert set(fifth) != set(Sample(texts, total // 5, seed=1))


def test_without_a_limit_all_is_taken_in_one_pass() -> None:
    passes = []
    whole = Sample(lambda: passes.append(1) or texts(), None, seed=0)  # type: ignore[func-returns-value]
    found = list(whole)
    assert found == list(texts()) and passes == [1]
    assert (whole.documents, whole.total_bytes) == (600, None)


# Morphemes


def fake(text: str) -> list[int]:
    """A morpheme begins at each particle."""
    return [place for place, char in enumerate(text) if char in "는에을" and place]


def test_marks_stand_between_morphemes_and_nowhere_else() -> None:
    assert list(marked(["나는 학교에 감", f"{MARK}밥을", ""], fake)) == [
        f"나{MARK}는 학교{MARK}에 감",
        f"밥{MARK}을",
        "",
    ]


def test_no_token_learned_from_morphemes_crosses_one_and_no_mark_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.tokenizer.training.analyser", lambda kind: fake)
    corpus = ["나는 학교에 밥을 가방을 산에"] * 50
    plain = preset("byte_bpe", vocab_size=400)
    morph = preset("byte_bpe", vocab_size=400, morphemes="kiwi")
    free, bound = train(plain, iter(corpus)), train(morph, iter(corpus))
    assert "ĠíķĻêµĲìĹĲ" in free.get_vocab() and "ĠíķĻêµĲìĹĲ" not in bound.get_vocab()  # " 학교에"
    tokens = [bound.decode([i]) for i in bound.encode("나는 학교에").ids]
    assert tokens == ["나", "는", " 학교", "에"]
    assert bound.decode(bound.encode("나는 학교에").ids) == "나는 학교에"
    states = [json.loads(tokenizer.to_str()) for tokenizer in (free, bound)]
    assert states[0]["pre_tokenizer"] == states[1]["pre_tokenizer"]
    assert not any(MARK in token for token in bound.get_vocab())


def test_an_analyser_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr("llm.tokenizer.training.import_module", missing)
    with pytest.raises(ConfigError, match=r"morphemes=mecab needs .*pip install -e '.\[morph"):
        analyser.__wrapped__(Morphemes.mecab)


@pytest.mark.parametrize("kind", [Morphemes.kiwi, Morphemes.mecab])
def test_a_real_analyser_cuts_particles_and_endings(kind: Morphemes) -> None:
    if not importlib.util.find_spec({Morphemes.kiwi: "kiwipiepy", Morphemes.mecab: "mecab"}[kind]):
        pytest.skip(f"the optional extra morph, with {kind.name}, is not installed")
    [text] = marked(["나는 학교에서\n밥을 먹었다."], analyser(kind))
    assert text.split(MARK) == ["나", "는 학교", "에서\n밥", "을 먹", "었", "다", "."]
    [contracted] = marked(["그는 빠르게 했다"], analyser(kind))
    assert "했" in contracted  # 하 and 었 share a syllable, which stays whole


# The gate


def run(folder: Path, *overrides: str) -> Run:
    """What `python train.py stage=tokenizer ...` does."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(documents(100)), encoding="utf-8")
    given = ["logger=local", "data=text", f"data.path={text}", "data.held_out_share=0.1", f"outputs={folder}/out"]
    return test_stages.run("tokenizer", *given, *overrides)


def test_a_tokenizer_that_loses_held_out_text_is_refused_with_what_it_loses(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"tokenizer=blog loses text: .* do not come back; the first line is .*; characters lost: '\\n' \d+ times"
        r".*set tokenizer.allow_lossy=true",
    ):
        run(tmp_path, "tokenizer=blog", "tokenizer.vocab_size=600", "tokenizer.allow_lossy=false")
    [record] = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("out/tokenizer/*/run.json")]
    assert record["status"] == "failed" and "loses text" in record["error"]
    [saved] = tmp_path.glob("out/tokenizer/*/report.json")
    listed = json.loads(saved.read_text(encoding="utf-8"))
    assert listed["failing_lines"] and listed["lost_characters"]


def test_a_lossy_tokenizer_is_kept_where_that_is_allowed_and_refused_again_where_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blog = ("tokenizer=blog", "tokenizer.vocab_size=600")
    made = run(tmp_path, *blog)
    assert made.is_done and made.results["lossless_documents"] < 1
    assert "this tokenizer is lossy" in caplog.text
    with pytest.raises(DataError, match="loses text"):
        run(tmp_path, *blog, "tokenizer.allow_lossy=false")
    assert run(tmp_path, *blog).path == made.path  # the refusal did not spoil it


def test_a_run_says_what_it_learned_from(tmp_path: Path) -> None:
    small = ("tokenizer=byte_bpe", "tokenizer.vocab_size=400")
    whole, part = run(tmp_path, *small), run(tmp_path, *small, "tokenizer.sample_bytes=5000")
    assert whole.results["lossless_documents"] == 1 and part.path != whole.path
    notes, corpus = whole.record["notes"], documents(100)
    assert notes["learned_from_documents"] == len(corpus) - whole.results["documents"]
    assert notes["learned_from_bytes"] == sum(len(t.encode()) for t in set(corpus)) - whole.results["raw_bytes"]
    assert notes["sampled_from_bytes"] is None and notes["reproducible"] is True
    assert 10**7 < notes["peak_memory_bytes"] < 10**11
    assert part.record["notes"]["sampled_from_bytes"] == notes["learned_from_bytes"]
    assert 2500 < part.record["notes"]["learned_from_bytes"] < 10_000


@pytest.mark.parametrize(("name", "size"), [("char_bpe", 300), ("blog", 20)])
def test_a_vocabulary_that_leaves_no_merges_is_warned_of_with_a_size_that_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, size: int
) -> None:
    given = [f"tokenizer={name}", "tokenizer.initial_alphabet=none", "tokenizer.allow_lossy=true"]
    made = run(tmp_path, *given, f"tokenizer.vocab_size={size}")
    [(taken, enough)] = re.findall(
        rf"tokenizer.vocab_size={size} leaves no room for merges: .* alone are (\d+) tokens. "
        r"Set tokenizer.vocab_size=(\d+) or more",
        caplog.text,
    )
    assert int(taken) == made.results["vocab_size"] >= size
    caplog.clear()
    larger = run(tmp_path, *given, f"tokenizer.vocab_size={enough}")
    assert "leaves no room for merges" not in caplog.text
    assert larger.results["tokens"] < made.results["tokens"]
