"""Leaks: how much of the measured texts stands in the training text, against a slow count by hand."""

import re

import pytest

from llm.data.leaks import Ngrams, measure_overlap
from llm.data.records import Conversation, Document
from tests.korean import documents


def docs(*texts: str) -> list[Document]:
    return [Document(text, f"글:{line}") for line, text in enumerate(texts, 1)]


def slow_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    length = min(n, len(words))
    return [tuple(words[at : at + length]) for at in range(len(words) - length + 1)] if words else []


@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_overlap_is_that_of_a_slow_count(n: int) -> None:
    training, measured = documents(60, seed=1), documents(40, seed=2)
    measured[:4] = training[5], training[6] + " 그리고 " + measured[0], "", "짧은 글"
    known = {ngram for text in training for ngram in slow_ngrams(text, n)}
    counted = [[ngram in known for ngram in slow_ngrams(text, n)] for text in measured]

    overlap = measure_overlap(docs(*training), {"held out": docs(*measured)}, n=n)["held out"]
    assert overlap.documents == 40
    assert overlap.ngrams == sum(map(len, counted))
    assert overlap.overlapping_ngrams == sum(map(sum, counted))
    assert overlap.touched_documents == sum(map(any, counted))
    assert overlap.leaked_documents == sum(bool(hits) and sum(hits) >= 0.8 * len(hits) for hits in counted)


def test_case_and_punctuation_hide_nothing() -> None:
    training = docs("오늘은 “Seoul”에서, 책을 읽었다. 그리고 잤다!")
    overlap = measure_overlap(training, {"x": docs("오늘은 seoul 에서 책을 읽었다 그리고 잤다")}, n=5)["x"]
    assert (overlap.ngrams, overlap.overlapping_ngrams, overlap.leaked_documents) == (3, 3, 1)


def test_the_worst_documents_are_shown_with_their_origin_and_share() -> None:
    training = docs("가 나 다 라", "마 바 사 아")
    measured = docs("하나 둘 셋 넷", "가 나 다 하나", "마 바 사 아")
    overlap = measure_overlap(training, {"x": measured}, n=3)["x"]
    assert overlap.worst == [
        {"origin": "글:3", "text": "마 바 사 아", "share": 1.0},
        {"origin": "글:2", "text": "가 나 다 하나", "share": 0.5},
    ]


def test_each_set_is_measured_by_itself_and_the_training_text_is_read_once() -> None:
    reads = 0

    def training():
        nonlocal reads
        reads += 1
        yield from docs("가 나 다 라")

    found = measure_overlap(training(), {"a": docs("가 나 다"), "b": docs("라 다 나")}, n=3)
    assert (found["a"].leaked_documents, found["b"].leaked_documents, reads) == (1, 0, 1)


def test_an_answer_leaks_as_a_question_does() -> None:
    turns = [{"role": "user", "content": "묻는 말"}, {"role": "assistant", "content": "이미 나온 답 이다"}]
    overlap = measure_overlap(docs("이미 나온 답 이다"), {"x": [Conversation(turns, "말:1")]}, n=4)["x"]
    assert overlap.overlapping_ngrams == 1


def test_nothing_to_measure_is_no_overlap() -> None:
    assert measure_overlap(docs("가 나"), {"x": []})["x"].ngrams == 0


def test_a_hash_is_the_same_in_every_process() -> None:
    worked_out_in_plain_integers = [7277794830844790124, 11054826939650663686]
    assert [int(number) for number in Ngrams(2).of("가 나 다")] == worked_out_in_plain_integers
