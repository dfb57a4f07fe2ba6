"""The probes: which items are made of a text, what a choice costs, and what is counted as right; worked by hand."""

from math import isclose
from unicodedata import normalize

import pytest
import torch

from llm import model as models
from llm.config.training import Architecture, ModelConfig
from llm.evaluation.probes import (
    ALIKE,
    PAIRS,
    TOO_LONG,
    UNEQUAL,
    Item,
    expected,
    make_items,
    measure,
    nouns,
    openings,
    other_forms,
    sentences,
)
from llm.evaluation.scoring import Scorer
from llm.evaluation.writing import describe, interval
from llm.tokenizer.folder import load_tokenizer, read_special
from llm.tokenizer.training import train
from tests.korean import preset, save_preset
from tests.korean import sentences as korean_sentences

NOUNS = ["기관", "회사", "학교", "서울", "사람", "나무", "은행", "바다"]  # of either kind, and one that ends in ㄹ
VERBS = ["오늘 다시 보았다.", "어제 먼저 지나갔다.", "내일 천천히 살핀다.", "거기 오래 두었다."]  # after two words

WALKED = [f"오늘 그는 {number}번 아주 천천히 걸었다." for number in range(9)]


def form_of(noun: str, pair: tuple[str, str]) -> str:
    """The right form, by the syllable's canonical decomposition, which is another way than the code's."""
    letters = normalize("NFD", noun[-1])
    return pair[0] if len(letters) == 3 and not (pair[1] == "로" and letters[2] == "\u11af") else pair[1]


def asked_of(probe: str, *, num_items: int = 100) -> list[Item]:
    items = make_items(made_documents(), Oracle({}), num_items=num_items, seed=0)
    return [item for item in items if item.probe == probe]


def made_documents() -> list[str]:
    """Documents of four sentences; every noun stands with every pair, and every sentence is another one."""
    lines = [
        f"{number}번 {noun}{form_of(noun, pair)} {VERBS[number % 4]}"
        for number, (noun, pair) in enumerate((noun, pair) for noun in NOUNS for pair in PAIRS)
    ]
    return ["\n".join(lines[start : start + 4]) for start in range(0, len(lines), 4)]


class Oracle:
    """Stands for a model: each text costs what it is told, other texts 10; a token a character, but one for 으로."""

    def __init__(self, costs: dict[str, float], *, positions: int = 1000, encode=None) -> None:
        self.costs, self.positions = costs, positions
        self.encode = encode or (lambda text: [ord(character) for character in text.replace("으로", "⇒")])

    def nats(self, texts):
        return {text: self.costs.get(text, 10.0) for text in texts}


@pytest.mark.parametrize(
    ("stem", "forms"),
    [
        ("학생", ["은", "이", "을", "과", "으로"]),
        ("학교", ["는", "가", "를", "와", "로"]),
        ("서울", ["은", "이", "을", "과", "로"]),  # 로 follows ㄹ
        ("흙", ["은", "이", "을", "과", "으로"]),  # ㄺ is no ㄹ
    ],
)
def test_the_form_of_a_particle_follows_the_final_consonant(stem, forms):
    assert [expected(stem, pair) for pair in PAIRS] == forms


def test_a_particle_is_asked_about_with_the_other_form_in_its_place():
    (found,) = other_forms("어제 그 기관은 오늘 문을 닫았다.", {"기관"})
    assert found == (("은", "는"), "은", "기관", "어제 그 기관는 오늘 문을 닫았다.")


@pytest.mark.parametrize(
    "sentence",
    [
        "이것은 규정하는 바에 따른다.",  # an ending of a verb, whose stem is no noun
        "그 학생는 오늘 학교에 갔다.",  # not the form of the rule: no particle, or an error
        "오늘 여기에 온 사람은 학생이",  # the last word: nothing follows that could tell
        "그는 학생은커녕 아무도 못 보았다.",  # within a word
    ],
)
def test_what_is_no_particle_is_not_asked_about(sentence):
    assert not list(other_forms(sentence, {"학생"}))


def test_a_noun_is_a_stem_that_stands_with_two_particles():
    texts = ["학생은 학교에 갔다", "학생을 보았다", "규정하는 바를 규정하는 법", "어린이가 웃고 어린이는 논다"]
    assert nouns(texts) == {"학생", "어린이"}  # not 규정하, nor 어린 of 어린이, nor 학교, seen once


def test_particle_items_have_as_many_of_each_form_and_each_noun_once():
    items = asked_of("particles")
    assert sorted({item.kind for item in items}) == sorted("/".join(pair) for pair in PAIRS)
    for pair in PAIRS:
        of_pair = [item.choices[0] for item in items if item.kind == "/".join(pair)]
        nouns = [next(noun for noun in NOUNS if noun in text) for text in of_pair]
        forms = [form_of(noun, pair) for noun in nouns]
        assert len(set(nouns)) == len(nouns) and forms.count(pair[0]) == forms.count(pair[1]) > 0
    assert len(asked_of("particles", num_items=10)) == 10


def test_the_next_sentence_is_chosen_among_one_that_follows_and_three_of_other_documents():
    documents, items = made_documents(), asked_of("next_sentence")
    assert len(items) == 3 * len(documents)  # four sentences follow one another three times
    for item in items:
        (home,) = [document for document in documents if item.alone[0] in document]
        before = item.choices[0].removesuffix(f"\n{item.alone[0]}")
        assert item.choices[0] in home and len(set(item.alone)) == 4
        assert item.choices == tuple(f"{before}\n{text}" for text in item.alone)
        assert not any(text in home for text in item.alone[1:])


def test_three_words_in_a_row_change_places_but_not_the_last():
    items = asked_of("word_order")
    assert len(items) == len(NOUNS) * len(PAIRS)
    for right, wrong in (item.choices for item in items):
        assert right != wrong and sorted(right.split()) == sorted(wrong.split())
        moved = [place for place, (a, b) in enumerate(zip(right.split(), wrong.split(), strict=True)) if a != b]
        assert moved[-1] - moved[0] < 3 and right.split()[-1] == wrong.split()[-1]


def test_sentences_are_pieces_of_korean_that_end_as_sentences_do():
    lines = [
        "제1장 총칙",
        "이 법은 국민의 안전을 지킨다. 그 밖의 것은 따로 정한다!",
        "This line is English and it ends so.",
        "짧다.",
    ]
    text = "\n".join(lines)
    found = [piece and (piece.text, piece.gap) for piece in sentences(text)]
    assert found == [None, ("이 법은 국민의 안전을 지킨다.", "\n"), ("그 밖의 것은 따로 정한다!", " "), None, None]


def test_prompts_are_first_halves_of_one_sentence_of_each_document():
    documents = [
        "머리말\n이 법은 국민의 안전을 지킨다. 그 밖의 것은 따로 정한다.",
        "제목뿐",
        "우리는 오늘 아침에 학교에 갔다.",
    ]
    assert openings(documents, 9) == ["이 법은", "우리는 오늘"]
    assert openings(documents, 1) == ["이 법은"]


def test_the_cheapest_choice_is_the_answer_and_a_tie_is_wrong():
    items = [Item("particles", kind, (f"{n} 참", f"{n} 거짓")) for n, kind in enumerate(["가", "가", "나"])]
    numbers, asked = measure(items, Oracle({"0 참": 9.0, "1 참": 11.0}))
    assert (numbers["probe/particles"], numbers["probe/particles_items"]) == (1 / 3, 3)
    assert (numbers["probe/particles/가"], numbers["probe/particles/나"]) == (1 / 2, 0)
    assert (numbers["probe/particles_low"], numbers["probe/particles_high"]) == interval(1, 3)
    assert [(line["is_right"], line["nats"]) for line in asked] == [
        (True, [9.0, 10.0]),
        (False, [11.0, 10.0]),
        (False, [10.0, 10.0]),
    ]


def test_a_choice_after_a_context_is_charged_beyond_what_it_costs_alone():
    alone = ("길고 드문 참", "가", "나", "다")
    item = Item("next_sentence", "", tuple(f"앞 {text}" for text in alone), alone)
    costs = {"길고 드문 참": 50.0, "앞 길고 드문 참": 55.0, "가": 5.0, "앞 가": 12.0, "앞 나": 18.0, "앞 다": 17.0}
    numbers, asked = measure([item], Oracle(costs))
    assert asked[0]["nats"] == [5.0, 7.0, 8.0, 7.0] and numbers["probe/next_sentence"] == 1


@pytest.mark.parametrize(
    ("oracle", "reason"),
    [
        (Oracle({}, positions=3), TOO_LONG),
        (Oracle({}, encode=lambda text: [0] * len(text.split())), ALIKE),
        (Oracle({}, encode=lambda text: [1] * (2 if text in WALKED else 3)), UNEQUAL),
    ],
)
def test_items_that_cannot_be_asked_are_counted(oracle, reason, caplog):
    assert make_items(["\n".join(WALKED)], oracle, num_items=5, seed=0) == []
    assert f"word_order: left out 9 items: {reason}" in caplog.text


def test_a_model_that_learned_nothing_is_not_told_the_answer_by_fewer_tokens(caplog):
    """A tokenizer of this very text joins nouns to their particles; every token costs the same."""
    trained = train(preset("byte_bpe", vocab_size=420), iter(made_documents() * 20))
    oracle = Oracle({}, encode=lambda text: trained.encode(text).ids)
    items = make_items(made_documents(), oracle, num_items=100, seed=0)
    assert f"items: {UNEQUAL}" in caplog.text
    bare = [item for item in items if not item.alone]
    assert bare and all(len({len(oracle.encode(text)) for text in item.choices}) == 1 for item in bare)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return save_preset("byte_bpe", tmp_path_factory.mktemp("tokenizer"), vocab_size=500)


@pytest.mark.parametrize("architecture", list(Architecture), ids=lambda each: each.value)
def test_a_text_costs_in_a_batch_what_it_costs_alone(architecture, words):
    """By a slow loop over the model's own logits, one row and one token after the other."""
    torch.manual_seed(0)
    shape = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "max_position_embeddings": 64}
    special, vocabulary = read_special(words), load_tokenizer(words)
    model = models.build(ModelConfig(name="tiny", architecture=architecture, **shape), vocab_size=500, special=special)
    for parameter in model.eval().parameters():
        parameter.data.mul_(3)  # weights as small as new ones give every token nearly the same
    texts = [text[:length] for text, length in zip(korean_sentences(12), range(2, 26, 2), strict=True)]
    alone = []
    for text in texts:
        ids = [special.bos_id, *vocabulary.encode(text).ids]
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        alone.append(-sum(float(scores[place - 1, ids[place]]) for place in range(1, len(ids))))
    for batch_tokens in (1, 100, 10_000):
        found = Scorer(model, vocabulary, special, positions=64, batch_tokens=batch_tokens).nats([*texts, texts[0]])
        assert list(found) == texts and list(found.values()) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("count", "of"), [(0, 10), (1, 7), (371, 400)])
def test_the_ends_of_an_interval_are_where_the_count_is_just_believed(count, of):
    """Wilson's interval: all p for which the share lies within 1.96 standard deviations of p."""
    for end in interval(count, of):
        assert isclose((count / of - end) ** 2, 1.959964**2 * end * (1 - end) / of, rel_tol=1e-9, abs_tol=1e-12)


def test_statistics_of_texts_worked_by_hand():
    texts = ["가 나 다 라 가 나 다 라", "가 abc 마"]
    # 4-grams: 가나다라 나다라가 다라가나 라가나다 가나다라, one of five again; the second text has none
    found = describe(texts)
    assert found["repeated_4grams"] == 1 / 5
    assert found["distinct_1"] == 6 / 11  # 가 나 다 라 abc 마
    assert found["distinct_2"] == 6 / 9  # 가나 나다 다라 라가, 가-abc abc-마, of 7 and 2
    assert found["hangul_share"] == 10 / 13
    assert (found["broken_share"], found["empty_share"]) == (0, 0)


@pytest.mark.parametrize(
    ("text", "is_broken"),
    [
        ("한글", False),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", False),  # the same in pieces, which NFC composes
        ("ㅋㅋㅋ ㅠㅠ", False),
        ("한\ufffd", True),
        ("한\u11ab\u11ab", True),  # a consonant too many
        ("\u1161", True),
    ],
)
def test_broken_syllables_are_half_characters_and_letters_left_over(text, is_broken):
    assert describe([text])["broken_share"] == is_broken
