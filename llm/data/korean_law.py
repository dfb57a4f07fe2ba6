"""The package card-legal-data, read where it is installed: Korean statutes, and questions about them with answers."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from llm.data.files import conversation
from llm.data.records import Conversation, Document, Fault
from llm.errors import ConfigError
from llm.run import digest_of, sha256_of

PACKAGE = "card_legal_data"
VERSION = "2026.10.22.105248"
RIGHTS = (
    "Korean statutes, regulations and rulings are not protected works (Copyright Act of Korea, Article 7); the package "
    "card-legal-data calls its compilation proprietary. It is read in place and not redistributed; check its terms "
    "before you publish what was trained on it."
)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_AMENDMENT = re.compile(r"[<\[][^<>\[\]\n]*\d{4}\.\s*\d{1,2}\.\s*\d{1,2}[^<>\[\]\n]*[>\]]")  # <개정 2014. 7. 23.>
_TAG = re.compile(r"</?[a-zA-Z][^>\n]*>")
_ARTICLE = re.compile(r"^### ", re.MULTILINE)


class Statutes:
    """Statutes and regulations, one document an article, without amendment notes, markup and tables."""

    rights: str | None = RIGHTS

    def __init__(self) -> None:
        self._root = _package_root()

    @cached_property
    def _paths(self) -> list[Path]:
        return sorted((self._root / "law_api").rglob("*.md"))

    def digest(self) -> str:
        """SHA-256 over all files."""
        return digest_of([sha256_of(path) for path in self._paths])

    def records(self) -> Iterator[Document | Conversation | Fault]:
        for path in self._paths:
            markdown = path.read_text(encoding="utf-8")
            yield from statute_articles(markdown, str(path.relative_to(self._root)))


class Questions:
    """Questions to the Financial Services Commission and its answers."""

    rights: str | None = RIGHTS

    def __init__(self) -> None:
        self._root = _package_root()

    @cached_property
    def _paths(self) -> list[Path]:
        folders = (self._root / "fsc" / name for name in ("law_interpretations", "opinions"))
        return sorted(path for folder in folders for path in folder.glob("*.json"))

    def digest(self) -> str:
        """SHA-256 over all files."""
        return digest_of([sha256_of(path) for path in self._paths])

    def records(self) -> Iterator[Document | Conversation | Fault]:
        for path in self._paths:
            record = json.loads(path.read_text(encoding="utf-8"))
            pair = {key: _plain(str(record.get(key) or "")) for key in ("question", "answer")}
            yield conversation(pair, f"{path.relative_to(self._root)}:1")


def statute_articles(markdown: str, name: str) -> Iterator[Document]:
    """The articles of a statute in the package's Markdown; `name` is its file, for the documents' origin."""
    start = 1
    for part in _ARTICLE.split(markdown):
        text = statute_text(part)
        if text:
            yield Document(text, f"{name}:{start}")
        start += part.count("\n")


def statute_text(markdown: str) -> str:
    """Readable text of a piece of a statute: no front matter, amendment notes, tags, table rows, or indentation."""
    text = _FRONT_MATTER.sub("", markdown)
    text = _TAG.sub(" ", _AMENDMENT.sub("", text))
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return "\n".join(line.lstrip("# ") for line in lines if line and not line.startswith("|"))


def _plain(text: str) -> str:
    """White space as single spaces and line feeds, and no private-use characters (numbered boxes of a word processor)."""
    text = re.sub("[\ue000-\uf8ff\U000f0000-\U0010fffd]", "", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _package_root() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"data=korean_law and data=korean_law_qa read a package that is not installed. Run pip install "
            f"card-legal-data=={VERSION}, or bring your own: data=text data.path=<files>."
        )
    return Path(next(iter(spec.submodule_search_locations)))
