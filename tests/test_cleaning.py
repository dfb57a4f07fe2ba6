"""Cleaning: what each step makes of a text, what it drops, and that every document and byte is accounted for."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from llm.config.data import BadRecords, CleaningConfig, CleaningLevel, DataConfig, DataKind
from llm.data.clean import STEPS, Cleaner, as_table, judge_hangul, judge_length, judge_repetition, steps_of
from llm.data.corpus import Corpus, open_corpus
from llm.data.records import Conversation, Document, Rejected
from llm.data.repair import mask_personal_data, remove_markup, repair_characters, repair_spaces
from tests.korean import HARD_TEXTS, documents, sentences

LIGHT, STRICT = CleaningConfig(level=CleaningLevel.light), CleaningConfig(level=CleaningLevel.strict)


def cleaned(texts: list[str], config: CleaningConfig) -> tuple[list[Document | Conversation | Rejected], Cleaner]:
    cleaner = Cleaner(config)
    made = [cleaner.clean(Document(text, f"글:{line}")) for line, text in enumerate(texts, 1)]
    return made, cleaner


def kept(texts: list[str], config: CleaningConfig) -> list[str]:
    return [record.text for record in cleaned(texts, config)[0] if isinstance(record, Document)]


# Edits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (unicodedata.normalize("NFD", "한글 각"), "한글 각"),
        ("한\u200b글\ufeff 은\u00ad 글", "한글 은 글"),
        ("벨\x07 탭\t줄\r\n끝\r", "벨 탭\t줄\n끝\n"),
        ("줄\u2028문단\u2029끝\x85", "줄\n문단\n끝\n"),
        ("가ㆍ나･다・라‧마∙바⋅사", "가·나·다·라·마·바·사"),
        ("\ue001글\uf0a7\U000f0001", "글"),
        ("가족 👨\u200d👩\u200d👧", "가족 👨\u200d👩\u200d👧"),
        ("나랏말ᄊᆞ미 ㆍ", "나랏말ᄊᆞ미 ㆍ"),
        ("왼\u202e오른", "왼오른"),
    ],
)
def test_characters_are_repaired(text: str, expected: str) -> None:
    assert repair_characters(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("가\u00a0나\u3000다\u2003라\tㅁ", "가 나 다 라 ㅁ"),
        ("가   나 \n  다\n\n\n\n라  ", "가 나\n 다\n\n라"),
        ("\n\n 가\n", "가"),
        ("가\u3164나", "가 나"),
        ("가 나\n\n다", "가 나\n\n다"),
    ],
)
def test_spaces_are_repaired(text: str, expected: str) -> None:
    assert repair_spaces(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>첫 문단</p><p class='x'>둘째 <b>굵게</b></p>", "첫 문단\n둘째 굵게\n"),
        ("<script>var a = '<글>';</script>본문", "본문"),
        ("가 &amp; 나 &lt;다&gt; &#44032;", "가 & 나 <다> 가"),
        ("3 < 5 이고 7 > 2 이다", "3 < 5 이고 7 > 2 이다"),
        ("<개정 2014. 7. 23.> 제1조", "<개정 2014. 7. 23.> 제1조"),
        ("본문이다.\n무단 전재 및 재배포 금지\n끝.", "본문이다.\n끝."),
        ("본문\nⓒ 한국신문, All rights reserved\nCopyright 2024 회사", "본문"),
        ("로그인 | 회원가입\n글\n댓글 3개\n페이스북 트위터", "글"),
        ("https://example.com/a?b=c\n글 https://example.com 에서", "글 https://example.com 에서"),
        ("로그인하지 않으면 못 보는 글이다.", "로그인하지 않으면 못 보는 글이다."),
    ],
)  # fmt: skip
def test_markup_and_boilerplate_go_and_text_stays(text: str, expected: str) -> None:
    assert remove_markup(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("주민번호 900101-1234567이다", "주민번호 [주민등록번호]이다"),
        ("9001011234567", "[주민등록번호]"),
        ("991231 - 8234567", "[주민등록번호]"),
        ("전화 010-1234-5678, 01012345678, 010 1234 5678", "전화 [전화번호], [전화번호], [전화번호]"),
        ("02-123-4567 031) 123-4567 070-1234-5678 1588-1234", "[전화번호] [전화번호] [전화번호] [전화번호]"),
        ("+82 10-1234-5678 / +82-2-123-4567", "[전화번호] / [전화번호]"),
        ("hong.gil+a@mail.example.co.kr로 보내세요", "[이메일]로 보내세요"),
        ("카드 4111-1111-1111-1111 그리고 4111111111111111", "카드 [카드번호] 그리고 [카드번호]"),
        # what only looks like it
        ("카드 4111-1111-1111-1112", "카드 4111-1111-1111-1112"),
        ("901301-1234567 와 900132-1234567", "901301-1234567 와 900132-1234567"),
        ("사건번호 2010다12345, 2024-03-15 2010-1234", "사건번호 2010다12345, 2024-03-15 2010-1234"),
        ("계좌 110-123-456789", "계좌 110-123-456789"),
        ("번호 90010112345678901", "번호 90010112345678901"),
        ("합계 1,234,567,890원, 3.14159265358979", "합계 1,234,567,890원, 3.14159265358979"),
        ("가@나 @골뱅이 a@b", "가@나 @골뱅이 a@b"),
    ],
)
def test_personal_data_is_masked_and_other_numbers_are_not(text: str, expected: str) -> None:
    assert mask_personal_data(text) == expected


@pytest.mark.parametrize("edit", [repair_characters, repair_spaces, remove_markup, mask_personal_data])
def test_an_edit_done_twice_is_done_once(edit: Any) -> None:
    for text in HARD_TEXTS.values():
        assert edit(edit(text)) == edit(text)


def test_hostile_text_takes_no_longer_than_its_length_asks_for() -> None:
    """A pattern that goes back over what it read would take hours, not seconds."""
    for piece in ("a", "1", "1 ", "<", "<a ", "&", "0-", "a@", "무단 ", "\n", "(", "+82"):
        text = piece * (300_000 // len(piece))
        for edit in (repair_characters, repair_spaces, remove_markup, mask_personal_data):
            edit(text)


# Drops


def test_rules_say_why() -> None:
    config = CleaningConfig(min_characters=5, max_characters=10)
    assert judge_length("네 글자", config) == "shorter than 5 characters"
    assert judge_length("이 글은 열 자를 넘는다", config) == "longer than 10 characters"
    assert judge_length("여섯 글자다", config) is None
    assert judge_hangul("가나 abcdefgh", CleaningConfig()) == "less Hangul than 0.3 of the letters"
    assert judge_hangul("가나다 abcdef", CleaningConfig()) is None  # 3 of 9 letters
    assert judge_hangul("123 !!", CleaningConfig()) == "less Hangul than 0.3 of the letters"


def test_repetition_is_of_lines_or_of_runs_of_eojeols() -> None:
    config = CleaningConfig(max_repetition=0.3)
    lines = [f"줄 {number}" for number in range(6)]
    assert judge_repetition("\n".join(lines), config) is None
    assert judge_repetition("\n".join([*lines, *lines[:2]]), config) is None  # 2 of 8 lines
    assert judge_repetition("\n".join([*lines, *lines[:3]]), config) == "repeats more than 0.3 of itself"  # 3 of 9
    words = " ".join(f"말{number}" for number in range(30))
    assert judge_repetition(words, config) is None
    assert judge_repetition(f"{words} {words}", config) == "repeats more than 0.3 of itself"


def test_of_texts_that_differ_in_white_space_the_first_is_kept() -> None:
    config = CleaningConfig(exact_duplicates=True)
    assert kept(["가 나", "가나", "다", "가\n나", unicodedata.normalize("NFD", "가나")], config) == ["가 나", "다"]


def test_near_duplicates_go_and_other_texts_of_the_same_words_stay() -> None:
    texts = [" ".join(sentences(30, seed=seed)) for seed in range(40)]
    nearly = [text.replace("오늘", "어제", 1) + " 끝." for text in texts]
    assert kept([*texts, *nearly], CleaningConfig(near_duplicates=True)) == texts


def test_near_duplicates_are_those_that_an_exact_jaccard_similarity_finds() -> None:
    def shingles(text: str) -> set[str]:
        letters = "".join(text.split())
        return {letters[at : at + 5] for at in range(len(letters) - 4)}

    high = low = 0
    for seed in range(60):
        words = " ".join(sentences(12, seed=100 + seed)).split()
        other = [f"딴말{place}" if place % (60 - seed) == 0 else word for place, word in enumerate(words)]
        first, second = " ".join(words), " ".join(other)
        similarity = len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))
        left = len(kept([first, second], CleaningConfig(near_duplicates=True)))  # at 0.8
        if similarity > 0.92:
            high += 1
            assert left == 1, similarity
        elif similarity < 0.65:
            low += 1
            assert left == 2, similarity
    assert high >= 5 and low >= 5


def test_the_levels_are_their_steps_and_a_step_can_be_turned_either_way() -> None:
    assert steps_of(CleaningConfig()) == []
    assert steps_of(LIGHT) == ["characters", "spaces", "personal_data", "exact_duplicates"]
    assert steps_of(STRICT) == list(STEPS)
    changed = CleaningConfig(level=CleaningLevel.light, personal_data=False, length=True)
    assert steps_of(changed) == ["characters", "spaces", "length", "exact_duplicates"]


# The account

MESSY = [
    *documents(60, seed=1),
    "짧다",
    "\u200b\u200b",
    "english only, with no hangul at all in it, and that is long enough",
    "전화는 010-1234-5678 이고 메일은 hong@example.com 이다. 그 뒤로는 글이 이어진다.",
    "\n".join(["똑같은 줄이 자꾸 나온다."] * 9),
    *documents(5, seed=1),
]


def test_documents_and_bytes_are_conserved() -> None:
    made, cleaner = cleaned(MESSY, STRICT)
    gone = [record for record in made if isinstance(record, Rejected)]
    size, count = sum(len(text.encode()) for text in MESSY), len(MESSY)
    for step in cleaner.report().values():
        assert (step["documents_in"], step["bytes_in"]) == (count, size)
        count -= sum(step["dropped"].values())
        size = step["bytes_out"]
        assert step["documents_out"] == count
    assert count == len(MESSY) - len(gone)
    assert size == sum(len(record.text.encode()) for record in made if isinstance(record, Document))


def test_what_is_dropped_keeps_its_origin_step_and_reason() -> None:
    made, cleaner = cleaned(MESSY, STRICT)
    by_step = {(record.step, record.reason): record.origin for record in made if isinstance(record, Rejected)}
    assert by_step[("characters", "nothing is left")] == "글:62"
    assert by_step[("hangul", "less Hangul than 0.3 of the letters")] == "글:63"
    assert by_step[("repetition", "repeats more than 0.3 of itself")] == "글:65"
    sample = cleaner.report()["length"]["samples"]["shorter than 30 characters"][-1]
    assert set(sample) == {"origin", "text"} and len(sample["text"]) < 30


def test_each_turn_of_a_conversation_is_cleaned_and_an_empty_one_drops_it() -> None:
    def talk(question: str, answer: str) -> Conversation:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Conversation(turns, "말:1")

    cleaner = Cleaner(LIGHT)
    made = cleaner.clean(talk("전화는  010-1234-5678?", "\u200b네"))
    assert made == talk("전화는 [전화번호]?", "네")
    assert cleaner.clean(talk("왜?", "\u200b")) == Rejected(
        "말:1", "nothing is left", step="characters", text="왜?\n\u200b"
    )
    assert isinstance(cleaner.clean(talk("전화는 010-1234-5678?", "네")), Rejected)  # the same after cleaning
    assert isinstance(cleaner.clean(talk("전화는 010-1234-5678?", "아니요")), Conversation)


def test_the_table_has_a_line_for_each_step_and_samples_of_what_went() -> None:
    _, cleaner = cleaned(MESSY, STRICT)
    shown = as_table(cleaner.report(), width=120)
    for name in STEPS:
        assert f" {name} " in shown
    assert "repetition dropped 1: repeats more than 0.3 of itself\n  글:65: 똑같은 줄이 자꾸 나온다. / 똑같은" in shown


# In a corpus


def corpus_of(folder: Path, **cleaning: Any) -> Corpus:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in MESSY]
    (folder / "글.jsonl").write_text("\n".join([*lines, "{"]), encoding="utf-8")
    return open_corpus(
        DataConfig(
            name="text",
            kind=DataKind.text,
            path=str(folder / "글.jsonl"),
            held_out_share=0.3,
            bad_records=BadRecords.drop,
            cleaning=CleaningConfig(**cleaning),
        )
    )


def test_records_are_kept_dropped_by_a_named_rule_or_quarantined(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, level=CleaningLevel.strict)
    corpus.keep_left_out(tmp_path)
    left = len(list(corpus.split_records()))
    assert left + corpus.dropped.total() == len(MESSY) + 1
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == corpus.dropped.total()
    origin = f"{tmp_path}/글.jsonl:{len(MESSY) + 1}"
    assert lines[-1] == {"origin": origin, "reason": "not JSON", "fix": lines[-1]["fix"]}
    assert {"origin", "reason", "step", "text"} == set(lines[0])
    assert json.loads((tmp_path / "cleaning.json").read_text(encoding="utf-8")) == corpus.cleaning()


def test_a_pass_that_leaves_nothing_out_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "글.txt").write_text("\n\n".join(documents(20)), encoding="utf-8")
    corpus = open_corpus(DataConfig(name="text", kind=DataKind.text, path=str(tmp_path / "글.txt"), held_out_share=0.5))
    corpus.keep_left_out(tmp_path)
    list(corpus.records(held_out=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["글.txt"]


def test_a_run_keeps_what_it_left_out_and_counts_it(tmp_path: Path) -> None:
    from llm.config.stages import DocumentsStage
    from llm.stage import run_stage

    corpus_of(tmp_path)
    path = str(tmp_path / "글.jsonl")
    data = DataConfig(name="text", kind=DataKind.text, path=path, held_out_share=0.3, bad_records=BadRecords.drop,
                      cleaning=STRICT)  # fmt: skip
    run = run_stage(DocumentsStage(stage="documents", outputs=str(tmp_path / "out"), data=data))
    lines = (run.path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    counts = json.loads((run.path / "run.json").read_text(encoding="utf-8"))["notes"]["dropped_records"]
    assert sum(counts.values()) == len(lines)
    assert counts["not JSON"] == 1 and counts["cleaning, repetition: repeats more than 0.3 of itself"] == 1
    report = json.loads((run.path / "cleaning.json").read_text(encoding="utf-8"))
    assert list(report) == list(STEPS) and report["characters"]["documents_in"] == len(MESSY)
