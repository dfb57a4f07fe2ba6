"""Text and jsonl files of the user -> documents or conversations."""

import json
import re
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

from llm.config import DataConfig, DataKind
from llm.data.records import Conversation, Document, Fault
from llm.errors import ConfigError
from llm.run import digest_of, sha256_of

ROLES = ("system", "user", "assistant")


class Files:
    """The txt and jsonl files that a path, a folder or a glob names, in the order of their names."""

    rights: str | None = None

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.paths = _paths(str(config.path), config.kind)

    def digest(self) -> str:
        """SHA-256 over the files' contents, in order; their names do not matter."""
        return digest_of([sha256_of(path) for path in self.paths])

    def records(self) -> Iterator[Document | Conversation | Fault]:
        for path in self.paths:
            if path.stat().st_size == 0:
                yield Fault(f"{path}:1", "the file is empty", "Remove it, or give another data.path")
            elif path.suffix == ".txt":
                yield from _paragraphs(path)
            else:
                yield from _json_lines(path, self._reader())

    def _reader(self) -> Callable[[Any, str], Document | Conversation | Fault]:
        if self._config.kind is DataKind.conversations:
            return conversation
        return lambda record, origin: _document(record, origin, self._config.text_field)


def _paths(path: str, kind: DataKind) -> list[Path]:
    suffixes = (".txt", ".jsonl") if kind is DataKind.text else (".jsonl",)
    if Path(path).is_file():  # before glob: a file's name may hold a bracket
        found = [Path(path)]
    elif Path(path).is_dir():
        found = [p for p in Path(path).rglob("*") if p.suffix in suffixes and p.is_file()]
    else:
        found = [Path(p) for p in glob(path, recursive=True) if Path(p).is_file()]
    wanted = " or ".join(suffixes)
    if not found:
        raise ConfigError(f"data.path={path}: no {wanted} file is there. Give a file, a folder or a quoted glob.")
    if wrong := [p for p in found if p.suffix not in suffixes]:
        raise ConfigError(f"data.path={path}: {wrong[0]} is not {wanted}, which is what data={kind.value} reads.")
    return sorted(found)


def _lines(path: Path) -> Iterator[tuple[int, str | Fault]]:
    """(line number from 1, the line or what is wrong with its bytes)."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                fix = f"Convert the file, from CP949 for instance: iconv -f cp949 -t utf-8 {path}"
                yield number, Fault(f"{path}:{number}", f"not UTF-8 (byte 0x{raw[error.start]:02x})", fix)


def _paragraphs(path: Path) -> Iterator[Document | Fault]:
    """Documents of a text file: what stands between blank lines; one with a bad line is one fault."""
    lines: list[tuple[int, str | Fault]] = []
    for number, line in _lines(path):
        if isinstance(line, Fault) or line.strip():
            lines.append((number, line))
        elif lines:
            yield _paragraph(lines, path)
            lines = []
    if lines:
        yield _paragraph(lines, path)


def _paragraph(lines: list[tuple[int, str | Fault]], path: Path) -> Document | Fault:
    for _, line in lines:
        if isinstance(line, Fault):
            return line
    text, origin = "\n".join(str(line) for _, line in lines), f"{path}:{lines[0][0]}"
    if fault := _text_fault(text, "text"):
        return Fault(origin, *fault)
    return Document(text, origin)


def _json_lines(
    path: Path, read: Callable[[Any, str], Document | Conversation | Fault]
) -> Iterator[Document | Conversation | Fault]:
    for number, line in _lines(path):
        if isinstance(line, Fault):
            yield line
        elif line.strip():
            record = _json_object(line, f"{path}:{number}")
            yield record if isinstance(record, Fault) else read(record, f"{path}:{number}")


def _json_object(line: str, origin: str) -> dict[str, Any] | Fault:
    try:
        record = json.loads(line)
    except ValueError as error:
        return Fault(origin, "not JSON", f"Each line must be one JSON object ({error})")
    except RecursionError:
        return Fault(origin, "not JSON", "Each line must be one JSON object; this one is nested too deeply")
    if not isinstance(record, dict):
        fix = f'Each line must be an object such as {{"text": "..."}}, not {line[:20]}'
        return Fault(origin, "not a JSON object", fix)
    return record


def _document(record: dict[str, Any], origin: str, text_field: str) -> Document | Fault:
    if text_field not in record:
        fix = f"It has: {', '.join(record) or 'nothing'}. Set data.text_field={next(iter(record), '<its key>')}"
        return Fault(origin, f'field "{text_field}" is missing', fix)
    text = record[text_field]
    if fault := _text_fault(text, text_field):
        return Fault(origin, *fault)
    return Document(text, origin)


def conversation(record: dict[str, Any], origin: str) -> Conversation | Fault:
    """A record with messages, or with question and answer, as a conversation; else what is wrong with it."""
    if "messages" in record:
        messages = record["messages"]
    elif "question" in record and "answer" in record:
        messages = [
            {"role": "user", "content": record["question"]},
            {"role": "assistant", "content": record["answer"]},
        ]
    else:
        fix = f"A record needs messages, or question and answer; this one has: {', '.join(record)}"
        return Fault(origin, "fields are missing", fix)
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        fix = 'Write messages as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        return Fault(origin, "messages are not a list of role and content", fix)
    for message in messages:
        what = {"user": "question", "assistant": "answer"}.get(str(message["role"]), str(message["role"]))
        if message["role"] not in ROLES:
            return Fault(origin, f"role {message['role']!r} is unknown", f"Use {', '.join(ROLES)}")
        if fault := _text_fault(message.get("content"), what):
            return Fault(origin, *fault)
    turns = [message["role"] for message in messages]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        fix = "After an optional system turn, user and assistant must take turns, and the last must be the assistant's"
        return Fault(origin, f"turns are {', '.join(turns) or 'none'}"[:80], fix)
    return Conversation([{"role": m["role"], "content": m["content"].strip()} for m in messages], origin)


def _text_fault(text: Any, what: str) -> tuple[str, str] | None:
    if not isinstance(text, str):
        return f"{what} is {type(text).__name__}, not text", "Make it a string, or remove the record"
    if not text.strip():
        return f"{what} is empty", "Remove the record, or set data.bad_records=drop"
    if re.search("[\ud800-\udfff]", text):
        return f"{what} holds half a character (a lone surrogate)", "Repair it, or set data.bad_records=drop"
    if "\0" in text:
        return f"{what} holds a NUL", "Convert it to UTF-8, or set data.bad_records=drop"
    return None
