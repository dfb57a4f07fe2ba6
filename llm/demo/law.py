"""The package card-legal-data -> JSON lines of Korean statutes, and of questions about them with answers.

python -m llm.demo.law writes both; data=korean_law and data=korean_law_qa do it where their file is not there.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm.errors import ConfigError
from llm.run.console import log
from llm.run.files import write_text

PACKAGE = "card_legal_data"
VERSION = "2026.10.22.105248"

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_SECTION = re.compile(r"^(?=#{1,3} )", re.MULTILINE)
_ARTICLE = re.compile(r"^(?=제\d+(?:-\d+)?조(?:의\d+)? ?\(|제\d+[편장절관] )", re.MULTILINE)
_SUPPLEMENT = re.compile(r"^(?=부칙 ?[(<〈])", re.MULTILINE)  # its short articles repeat from act to act: kept together
_HEADING = re.compile(r"# .*|제\d+[편장절관] .*|### 부칙")  # of what follows it
_DATE = r"\d{4}\.\s*\d{1,2}\.\s*\d{1,2}"
_NOTES = [  # of amendments, in the order in which they must go, for one can stand inside another
    re.compile(rf"[<\[][^<>\[\]\n]*{_DATE}[^<>\[\]\n]*[>\]]"),  # <개정 2014. 7. 23.> [본조신설 2013. 1. 1.]
    re.compile(rf"[〈＜]{_DATE}\.?[〉＞]"),
    re.compile(
        r"[<〈＜][^<>〈〉＜＞]{0,9}(?:개정|신설|삭제)[^<>〈〉＜＞]{0,200}\d\.?\s*[>〉＞]"
    ),  # a date cut or misspelt
    re.compile(rf"\((?:개정|신설|삭제|단서|폐지)[^()\n]*{_DATE}[^()\n]*\)"),  # (개정 2016. 7. 29.)
    re.compile(r"\[[^\[\]\n]*(?:이동|신설|개정)\s*\]"),  # [제5조에서 이동 <2013. 1. 1.>] without its date
    re.compile(r"(?<=삭제) ?\([\d. ]{6,14}\)"),
]
_TAG = re.compile(r"</?[a-zA-Z][^>\n]*>|!\[[^\]\n]*\]\([^)\n]*\)|\*\*")
_REPEALED = re.compile(r"[^\n]*\n삭 ?제|[^\n]*\(삭제\)(?:\n[^\n]{,20})?|제[\d-]+조(?:의\d+)? 삭 ?제")
_TABLE = re.compile(r"\||[\u2500-\u257f]")  # a row in Markdown, or in box-drawing characters

_LAWS_MEANT = "해석대상 법령 조문 및 관련법령:"  # a form's field at the end of a question
_FORM = re.compile(
    r"※ 법원은 .*기속되지 않음을 알려 ?드립니다\.?|답변유형 ?:.*|(?:\d\. ?)?귀.{0,6}질의에 대한 (?:회신|답변)입니다\.?"
)
_BULLET = re.compile(r"(?:([□☐⃞○◦◇◆◈◎▪▸▶•‣∎∙★☞△])(?!\1)|ㅇ(?=[ 「｢‘“(가-힣]|$))\s*")
# A word processor's text whose every run of one font stands on lines of its own: a bullet, or a comma, alone.
_CUT_UP = re.compile(r"^[ \xa0]*(?:[.,)」｣’”]|[□☐ㅇ◦]\s*\n)", re.MULTILINE)
_ELSEWHERE = re.compile(r"[^\n]{0,30}(?:이유|내용|첨부|파일)[^\n]{0,16}(?:참조|참고|확인|같음)[^\n]{0,14}")


def write_statutes(path: Path) -> None:
    """Write statutes and regulations, one record an article, without amendment notes, markup and tables."""
    files = [(name, file.read_text(encoding="utf-8")) for name, file in _package_files("law_api/**/*.md")]
    _write(path, [record for name, markdown in files for record in statute_articles(markdown, name)])


def write_questions(path: Path) -> None:
    """Write questions to the Financial Services Commission with its answers, each pair once."""
    found = _package_files("fsc/law_interpretations/*.json", "fsc/opinions/*.json")
    left_out: Counter[str] = Counter()
    files = ((name, json.loads(file.read_text(encoding="utf-8"))) for name, file in found)
    pairs = list(question_pairs(files, left_out))
    for reason, times in left_out.most_common():
        log.info("%s: %d pairs left out: %s", path, times, reason)
    _write(path, pairs)


def _write(path: Path, records: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    log.info("%s: %d records made of the package card-legal-data", path, len(records))


def _package_files(*patterns: str) -> list[tuple[str, Path]]:
    """(name in the package, file), sorted."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"data=korean_law and data=korean_law_qa are made of a package that is not installed. Run pip install "
            f"card-legal-data=={VERSION}, or bring your own: data=text data.path=<files>."
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(path for pattern in patterns for path in root.glob(pattern))
    return [(str(path.relative_to(root)), path) for path in found]


def question_pairs(files: Iterator[tuple[str, dict[str, Any]]], left_out: Counter[str]) -> Iterator[dict[str, str]]:
    """Pairs that can be learnt from, each once; why the others cannot is counted in `left_out`."""
    seen: set[tuple[str, str]] = set()
    for name, record in files:
        question = plain_text(str(record.get("question") or "").partition(_LAWS_MEANT)[0])
        answer = plain_text(str(record.get("answer") or ""))
        if not question or not answer:
            left_out["question or answer is empty"] += 1
        elif _ELSEWHERE.fullmatch(answer):
            left_out["the answer is somewhere else"] += 1
        elif (question, answer) in seen:
            left_out["the same pair came before"] += 1
        else:
            seen.add((question, answer))
            yield {"question": question, "answer": answer, "from": name}


def statute_articles(markdown: str, name: str) -> Iterator[dict[str, str]]:
    """The articles of a statute in the package's Markdown, each from its line of the file `name`.

    A title or a chapter's heading stands at the head of the article that follows it. Repealed articles are left out.
    """
    heading, line = "", 1
    for section in _SECTION.split(markdown):
        parts = _SUPPLEMENT if section.startswith("### 부칙") else _ARTICLE
        for part in parts.split(section):
            text = statute_text(part)
            if text and _HEADING.fullmatch(part.strip()):
                heading += text + "\n"
            elif text and not _REPEALED.fullmatch(text):
                yield {"text": heading + text, "from": f"{name}:{line}"}
                heading = ""
            line += part.count("\n")


def statute_text(markdown: str) -> str:
    """Readable text of a piece of a statute: no front matter, amendment notes, tags, table rows, or indentation."""
    text = re.sub(r"<삭 ?제>", "삭제", unescape(_FRONT_MATTER.sub("", markdown)))
    for note in _NOTES:
        text = note.sub("", text)
    text = _TAG.sub(" ", text)
    text = re.sub(r"^(### .*)\(\)", r"\1", text, flags=re.MULTILINE)  # an article without a title
    lines = (" ".join(line.split()).lstrip("# ") for line in text.splitlines() if not _TABLE.search(line))
    return "\n".join(line for line in lines if line)


def plain_text(text: str) -> str:
    """Text as a person would write it: without the form's fields, bullets, and the word processor's symbols."""
    if _CUT_UP.search(text):
        text = _joined(text)
    text = re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\ue000-\uf8ff\U000f0000-\U0010fffd]", "", text
    )  # numbered boxes and the like
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in map(_without_bullet, lines) if line and not _FORM.fullmatch(line))


def _joined(text: str) -> str:
    """Paragraphs of a text that is cut up: a CR LF was a space, a line of nothing but a no-break space ended one."""
    text = re.sub(r"\n+(?=[ \xa0]*[.,])", "", text.replace("\r\n", " "))
    text = re.sub(r"\n *\xa0[ \xa0]*(?=\n)", "\0", text)
    text = re.sub(r"(?<=[가-힣)][.?])\s*\n", "\0", text)  # a sentence ended, too
    text = re.sub(r"\n+(?=\s*(?:[□☐◦ㅇ※]|[*-][ \xa0]))", "\0", text)  # a bullet begins one
    return re.sub(r" +([.,])", r"\1", text.replace("\n", "").replace("\0", "\n"))


def _without_bullet(line: str) -> str:
    match = _BULLET.match(line)
    return line[match.end() :] if match else line


if __name__ == "__main__":
    write_statutes(Path("data/korean_law.jsonl"))
    write_questions(Path("data/korean_law_qa.jsonl"))
