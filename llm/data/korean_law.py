"""The package card-legal-data, read where it is installed: Korean statutes, and questions about them with answers."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from html import unescape
from importlib.util import find_spec
from pathlib import Path

from llm.config.documents import LayoutConfig
from llm.data.records import Document, Record, Rejected, RejectedError
from llm.data.turns import conversation
from llm.errors import ConfigError
from llm.run.files import digest_of, sha256_of

PACKAGE = "card_legal_data"
VERSION = "2026.10.22.105248"
RIGHTS = (
    "Korean statutes, regulations and rulings are not protected works (Copyright Act of Korea, Article 7); the package "
    "card-legal-data calls its compilation proprietary. It is read in place and not redistributed; check its terms "
    "before you publish what was trained on it."
)

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


class LawPackage:
    """Files of the package that match these patterns, and the records of each."""

    rights: str | None = RIGHTS

    def __init__(self, patterns: Sequence[str], read: Callable[[Iterator[tuple[str, str]]], Iterator[Record]]) -> None:
        self._root = _package_root()
        self._patterns, self._read = patterns, read

    @cached_property
    def _paths(self) -> list[Path]:
        return sorted(path for pattern in self._patterns for path in self._root.glob(pattern))

    def digest(self) -> str:
        """SHA-256 over all files."""
        return digest_of([sha256_of(path) for path in self._paths])

    def state(self) -> str:
        """SHA-256 over the files' paths, sizes and times of change."""
        return digest_of([[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in self._paths])

    def records(self) -> Iterator[Record]:
        return self._read((str(path.relative_to(self._root)), path.read_text(encoding="utf-8")) for path in self._paths)


def statutes() -> LawPackage:
    """Statutes and regulations, one document an article, without amendment notes, markup and tables."""
    return LawPackage(["law_api/**/*.md"], _articles)


def questions() -> LawPackage:
    """Questions to the Financial Services Commission and its answers, each pair once."""
    return LawPackage(["fsc/law_interpretations/*.json", "fsc/opinions/*.json"], _pairs)


def _articles(files: Iterator[tuple[str, str]]) -> Iterator[Record]:
    for name, markdown in files:
        yield from statute_articles(markdown, name)


def _pairs(files: Iterator[tuple[str, str]]) -> Iterator[Record]:
    seen: set[tuple[str, str]] = set()
    for name, content in files:
        record = json.loads(content)
        question = question_text(str(record.get("question") or ""))
        answer = answer_text(str(record.get("answer") or ""))
        origin = f"{name}:1"
        if _ELSEWHERE.fullmatch(answer):
            yield Rejected(origin, "the answer is somewhere else", "Set data.bad_records=drop")
        elif (question, answer) in seen and question and answer:
            yield Rejected(origin, "the same pair came before", "Set data.bad_records=drop")
        else:
            seen.add((question, answer))
            try:
                yield conversation({"question": question, "answer": answer}, origin, LayoutConfig())
            except RejectedError as error:
                yield error.at(origin)


def statute_articles(markdown: str, name: str) -> Iterator[Document]:
    """The articles of a statute in the package's Markdown; `name` is its file, for the documents' origin.

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
                yield Document(heading + text, f"{name}:{line}")
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


def question_text(text: str) -> str:
    """A question as a person would ask it: without the form's fields, bullets, and the word processor's symbols."""
    return _plain(text.partition(_LAWS_MEANT)[0])


def answer_text(text: str) -> str:
    """An answer as prose: without the form's fields, bullets, and the word processor's symbols."""
    return _plain(text)


def _plain(text: str) -> str:
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


def _package_root() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"data=korean_law and data=korean_law_qa read a package that is not installed. Run pip install "
            f"card-legal-data=={VERSION}, or bring your own: data=text data.path=<files>."
        )
    return Path(next(iter(spec.submodule_search_locations)))
