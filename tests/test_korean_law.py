"""The files that are made of the package of Korean statutes and questions, on text made here and on the package."""

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm.config.compose import data_config
from llm.data.corpus import open_corpus
from llm.demo import law
from llm.demo.law import PACKAGE, plain_text, question_pairs, statute_articles, statute_text
from llm.errors import ConfigError

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
    assert [(found["text"], found["from"]) for found in statute_articles(STATUTE, "시험법.md")] == [
        ("시험법\n제1장 총칙\n제1조(목적)\n이 법은 시험을 위한 것이다.", "시험법.md:10"),
        (
            '제2조(정의)\n① "시험"이란 다음 각 호의 것을 말한다.\n1. 쓰기\n2. 삭제\n3. 말하기\n② <표 1>과 같다.',
            "시험법.md:13",
        ),
        ("제2장 보칙\n제1절 특례\n제5조의2\n제1항에 따른다.", "시험법.md:35"),
        (
            "부칙\n부칙 〈제1호,2013.1.1〉\n제1조(시행일) 이 법은 공포한 날부터 시행한다.\n제2조(경과조치) 생략",
            "시험법.md:39",
        ),
        ("부칙(다른 법) 〈제2호,2014.7.23〉\n이 법은 2015년 1월 1일부터 시행한다.", "시험법.md:42"),
    ]


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("가[본조신설 2013. 1. 1.] [제5조에서 이동, 종전 제4조는 제6조로 이동 <2013. 1. 1.>]", "가"),
        ("가<신설 2022.. 12. 23.>\n나 <개정 202\n5. 10. 1.>\n다<개정 2010.12.29＞", "가\n나\n다"),
        ("가 (2013. 1. 1. 이전 취득분)", "가 (2013. 1. 1. 이전 취득분)"),  # a date that is content
        ("<예시> [별표 1] <별지 제2호 서식>", "<예시> [별표 1] <별지 제2호 서식>"),
        ("가<br/>나<sup>2</sup> a &lt; b", "가 나 2 a < b"),
    ],
)
def test_the_text_of_a_piece_of_a_statute(markdown: str, text: str) -> None:
    assert statute_text(markdown) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("ㅇ 하나인지\n ㅇ둘인지\n  - 셋인지", "하나인지\n둘인지\n- 셋인지"),
        ("가능한지\n※ 법원은 아래의 해석에 기속되지 않음을 알려드립니다", "가능한지"),
        ("\U000f02b1 가능한지\x9e 여부\ue000", "가능한지 여부"),
        ("ㅇㅇ은행은", "ㅇㅇ은행은"),  # a name left out, no bullet
        ("답변유형 : 비조치\n동 사안은 효력이 없습니다.", "동 사안은 효력이 없습니다."),
        ("□\n\n가능합니다\n\n.\n\n□\n\n 다만\n\n,\n\n 예외는 있습니다\n\n.", "가능합니다.\n다만, 예외는 있습니다."),
    ],
)
def test_a_question_or_an_answer_is_plain_text(raw: str, text: str) -> None:
    assert plain_text(raw) == text


def test_pairs_that_cannot_be_learnt_from_are_left_out_and_counted() -> None:
    pairs = [
        ("□ 되는지\n해석대상 법령 조문 및 관련법령:\n은행법", "ㅇ 됩니다."),
        ("되는지", "됩니다."),  # the same when it is clean
        ("왜 그런지", "□ 하단의 이유 참조"),
        ("", "그렇습니다."),
        ("무엇인지", None),
    ]
    left_out: Counter[str] = Counter()
    files = ((f"{n}.json", {"question": question, "answer": answer}) for n, (question, answer) in enumerate(pairs))
    assert list(question_pairs(files, left_out)) == [{"question": "되는지", "answer": "됩니다.", "from": "0.json"}]
    assert left_out == {
        "question or answer is empty": 2,
        "the answer is somewhere else": 1,
        "the same pair came before": 1,
    }


def test_without_the_package_the_way_out_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(law, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^data=korean_law .*Run pip install card-legal-data==[\d.]+, or .*data=text"
    ):
        open_corpus(data_config(["data=korean_law"]))


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="card-legal-data is not installed")
def test_the_files_of_the_package_are_made_once_and_are_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = open_corpus(data_config(["data=korean_law"]))
    articles = [record.text for _, record in corpus.split_records()]
    assert 20_000 < len(articles) < 40_000 and 25e6 < sum(len(text.encode()) for text in articles) < 35e6
    dirt = re.compile(r"<개정|<신설|<br|&lt;|&gt;|&amp;|^\s|\s$|  |[│┃┌]|^---|^\|", re.MULTILINE)
    assert not [text for text in articles if dirt.search(text)] and not corpus.dropped
    assert "Article 7" in corpus.notes()["rights"]

    open_corpus(data_config(["stage=finetune", "base=x", "data=korean_law_qa"]))
    made = Path("data/korean_law_qa.jsonl")
    pairs = [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]
    assert len({(pair["question"], pair["answer"]) for pair in pairs}) == len(pairs) > 4000
    changed = made.stat().st_mtime_ns
    open_corpus(data_config(["stage=finetune", "base=x", "data=korean_law_qa"]))
    assert made.stat().st_mtime_ns == changed
