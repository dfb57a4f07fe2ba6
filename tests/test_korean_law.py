"""The package of Korean statutes and questions: what its files become, on text made here and on the package itself."""

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm.config.data import BadRecords, DataConfig, DataKind, DataSource
from llm.data import Conversation, korean_law, open_corpus
from llm.data.korean_law import PACKAGE, answer_text, question_text, questions, statute_articles, statute_text, statutes
from llm.data.records import Document, Rejected
from llm.errors import ConfigError

needs_package = pytest.mark.skipif(find_spec(PACKAGE) is None, reason="card-legal-data is not installed")

STATUTE = """\
---
제목: 시험법
공포일자: 20260623
---

# 시험법

제1장 총칙 <개정 2014. 7. 23.>

### 제1조(목적)
이 법은 시험을   위한 것이다. <개정 2014. 7. 23., 2015.1.1>

### 제2조(정의)
① "시험"이란 다음 각 호의 것을 말한다.<br/>
  1. 쓰기
  2. 삭제 <2016. 8. 1.>
  3. **말하기**(개정 2016. 7. 29.)
　② &lt;표 1&gt;과 같다. 〈신설 2017.1.1〉
| 번호 | 뜻 |
|---|---|
│ 1 │ 하나 │
[본조신설 2013. 1. 1.]
[제3조에서 이동 <2013. 1. 1.>]

### 제3조()
삭제 <2014. 7. 23.>

### 제4조(옛것)
<삭 제> (2015. 12. 29)

제2장 보칙

제1절 특례

### 제5조의2()
제1항에 따른다. <img src="x.gif"></img>![그림](x.png)

### 부칙
부칙 〈제1호,2013.1.1〉
제1조(시행일) 이 법은 공포한 날부터 시행한다.
제2조(경과조치) 생략
부칙(다른 법) 〈제2호,2014.7.23〉
이 법은 2015년 1월 1일부터 시행한다.

### 별표1(삭제)
<별표 1> 삭 제
"""


def test_a_statute_becomes_its_articles() -> None:
    assert list(statute_articles(STATUTE, "시험법.md")) == [
        Document("시험법\n제1장 총칙\n제1조(목적)\n이 법은 시험을 위한 것이다.", "시험법.md:10"),
        Document(
            '제2조(정의)\n① "시험"이란 다음 각 호의 것을 말한다.\n1. 쓰기\n2. 삭제\n3. 말하기\n② <표 1>과 같다.',
            "시험법.md:13",
        ),
        Document("제2장 보칙\n제1절 특례\n제5조의2\n제1항에 따른다.", "시험법.md:35"),
        Document(
            "부칙\n부칙 〈제1호,2013.1.1〉\n제1조(시행일) 이 법은 공포한 날부터 시행한다.\n제2조(경과조치) 생략",
            "시험법.md:39",
        ),
        Document("부칙(다른 법) 〈제2호,2014.7.23〉\n이 법은 2015년 1월 1일부터 시행한다.", "시험법.md:42"),
    ]


def test_articles_without_headings_are_parted_too() -> None:
    markdown = "# 규정\n\n제1-1조(목적) 이 규정은 좋다.\n제1-2조의2(정의) 말한다.\n제1-1조제2항에 따른다.\n제2장 끝\n"
    assert [document.text for document in statute_articles(markdown, "x")] == [
        "규정\n제1-1조(목적) 이 규정은 좋다.",
        "제1-2조의2(정의) 말한다.\n제1-1조제2항에 따른다.",
    ]


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("### 제1조(가)\n나", "제1조(가)\n나"),
        ("가 <개정 2014. 7. 23., 2015. 1. 1.> 나", "가 나"),
        ("가[본조신설 2013. 1. 1.]", "가"),
        ("가 [제5조에서 이동, 종전 제4조는 제6조로 이동 <2013. 1. 1.>]", "가"),
        ("가<신설 2022.. 12. 23.>\n나 <개정 202\n5. 10. 1.>\n다<개정 2010.12.29＞", "가\n나\n다"),
        ("가＜개정 2013.1.1＞나〈2014.2.3〉", "가나"),
        ("가 (2013. 1. 1. 이전 취득분)", "가 (2013. 1. 1. 이전 취득분)"),  # a date that is content
        ("법률 〈제14467호,1994.12.31〉", "법률 〈제14467호,1994.12.31〉"),
        ("<예시> [별표 1] <별지 제2호 서식>", "<예시> [별표 1] <별지 제2호 서식>"),
        ("가<br/>나<sup>2</sup>", "가 나 2"),
        ("a &lt; b &amp; c", "a < b & c"),
        ("┌──┐\n│ 가 │\n└──┘\n나", "나"),
        ("  가\u00a0\u3000나\t다  ", "가 나 다"),
        ("", ""),
    ],
)
def test_the_text_of_a_piece_of_a_statute(markdown: str, text: str) -> None:
    assert statute_text(markdown) == text


# Questions and answers


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("□ 은행이 대출할 수 있는지 여부", "은행이 대출할 수 있는지 여부"),
        ("ㅇ 하나인지\n ㅇ둘인지\n  - 셋인지", "하나인지\n둘인지\n- 셋인지"),
        ("가능한지  여부\u00a0?\n\n\n", "가능한지 여부 ?"),
        ("가능한지\n※ 법원은 아래의 해석에 기속되지 않음을 알려드립니다", "가능한지"),
        ("가능한지\n해석대상 법령 조문 및 관련법령:\nㅇ 은행법 제2조(정의)", "가능한지"),
        ("\U000f02b1 가능한지\x9e 여부\ue000", "가능한지 여부"),
        ("ㅇ", ""),
        ("ㅇㅇ은행은", "ㅇㅇ은행은"),  # a name left out, no bullet
        ("○○은행은", "○○은행은"),
        (
            "□\n\n 금융위원회는 「\n\n은행법\n\n」\n\n제\n\n34\n\n조에 따른\r\n규정\n*\n을 정함"
            "\n\n.\n\n\xa0\n\n\xa0\n\nㅇ\n\n "
            "다\n만\n\n,\n\n 예외가 있는지\n\n* 은행업감독규정",
            "금융위원회는 「은행법」제34조에 따른 규정*을 정함.\n다만, 예외가 있는지\n* 은행업감독규정",
        ),
    ],
)
def test_a_question_is_plain_text(raw: str, text: str) -> None:
    assert question_text(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("답변유형 : 비조치\n동 사안은 효력이 없습니다.", "동 사안은 효력이 없습니다."),
        ("1. 귀하의 질의에 대한 회신입니다.\n2. 가능합니다.", "2. 가능합니다."),
        ("□ 가능합니다 .", "가능합니다 ."),
        ("□\n\n가능합니다\n\n.\n\n□\n\n 다만\n\n,\n\n 예외는 있습니다\n\n.", "가능합니다.\n다만, 예외는 있습니다."),
    ],
)
def test_an_answer_is_plain_text(raw: str, text: str) -> None:
    assert answer_text(raw) == text


def test_pairs_that_cannot_be_learnt_from_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        ("□ 되는지", "ㅇ 됩니다."),
        ("되는지", "됩니다."),  # the same when it is clean
        ("되는지", "안 됩니다."),
        ("왜 그런지", "□ 하단의 이유 참조"),
        ("어떤지", "첨부파일 참조"),
        ("", "그렇습니다."),
        ("무엇인지", ""),
        ("무엇인지", None),
    ]
    folder = tmp_path / "fsc" / "opinions"
    folder.mkdir(parents=True)
    for number, (question, answer) in enumerate(pairs):
        content = json.dumps({"question": question, "answer": answer})
        (folder / f"{number}.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(korean_law, "_package_root", lambda: tmp_path)
    found = list(questions().records())
    turns = [[m["content"] for m in record.messages] for record in found if isinstance(record, Conversation)]
    assert turns == [["되는지", "됩니다."], ["되는지", "안 됩니다."]]
    assert [(record.origin, record.reason) for record in found if isinstance(record, Rejected)] == [
        ("fsc/opinions/1.json:1", "the same pair came before"),
        ("fsc/opinions/3.json:1", "the answer is somewhere else"),
        ("fsc/opinions/4.json:1", "the answer is somewhere else"),
        ("fsc/opinions/5.json:1", "question is empty"),
        ("fsc/opinions/6.json:1", "answer is empty"),
        ("fsc/opinions/7.json:1", "answer is empty"),
    ]


# The package


@pytest.mark.parametrize(("source", "kind"), [("korean_law", "text"), ("korean_law_qa", "conversations")])
def test_without_the_package_the_way_out_is_one_line(monkeypatch: pytest.MonkeyPatch, source: str, kind: str) -> None:
    monkeypatch.setattr(korean_law, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^data=korean_law .*Run pip install card-legal-data==[\d.]+, or .*data=text"
    ):
        open_corpus(DataConfig(name=source, kind=DataKind[kind], source=DataSource[source]))


@needs_package
def test_the_statutes_are_clean() -> None:
    documents = [record for record in statutes().records() if isinstance(record, Document)]
    assert 20_000 < len(documents) < 40_000
    assert 25e6 < sum(len(document.text.encode()) for document in documents) < 35e6
    dirt = re.compile(r"<개정|<신설|<br|&lt;|&gt;|&amp;|^\s|\s$|  |[│┃┌]|^---|^\|", re.MULTILINE)
    assert [document.origin for document in documents if dirt.search(document.text)] == []
    assert len({document.origin for document in documents}) == len(documents)


@needs_package
def test_the_questions_are_clean_and_each_pair_is_there_once() -> None:
    records = list(questions().records())
    pairs = [tuple(m["content"] for m in r.messages) for r in records if isinstance(r, Conversation)]
    reasons = Counter(record.reason for record in records if isinstance(record, Rejected))
    assert len(set(pairs)) == len(pairs) > 4000
    assert sum(len(question) <= 300 and len(answer) <= 400 for question, answer in pairs) > 2400
    assert set(reasons) == {
        "the answer is somewhere else",
        "the same pair came before",
        "question is empty",
        "answer is empty",
    }
    dirt = re.compile(r"^(?:[□☐◦](?!□)|ㅇ )|[\ue000-\uf8ff]|해석대상 법령 조문|  |^\s", re.MULTILINE)
    assert [pair for pair in pairs if dirt.search("\n".join(pair))] == []


@needs_package
def test_what_the_package_drops_is_counted_the_same_on_both_sides() -> None:
    config = DataConfig(
        name="korean_law_qa",
        kind=DataKind.conversations,
        source=DataSource.korean_law_qa,
        held_out_share=0.05,
        bad_records=BadRecords.drop,
    )
    corpus, counts = open_corpus(config), []
    kept = 0
    for held_out in (False, True):
        kept += len(list(corpus.records(held_out=held_out)))
        counts.append(dict(corpus.dropped))
    assert counts[0] == counts[1]
    assert kept + sum(counts[0].values()) == len(list(questions().records()))
    assert "Article 7" in corpus.notes()["rights"]
