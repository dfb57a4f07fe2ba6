"""A raw record and where its text sits -> a document or a conversation, or what is wrong with it."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from llm.config import DataConfig, DataKind, LayoutConfig
from llm.data.records import Conversation, Document, Fault, Record
from llm.data.sources.fields import first, head, values
from llm.data.sources.formats import Raw, Reading, text_fault

ROLES = ("system", "user", "assistant")


def columns(config: DataConfig) -> list[str]:
    """The top-level keys that a config looks at."""
    layout = config.layout
    paths = [config.text_field, layout.group, layout.require]
    if config.kind is DataKind.conversations:
        paths = [layout.messages, layout.system, layout.question, layout.input, layout.answer, layout.require]
    return [key for path in paths if path is not None for key in head(path)]


def to_records(raws: Iterable[Raw | Document | Fault], config: DataConfig, reading: Reading) -> Iterator[Record]:
    """Each raw record as a document or a conversation; where a layout groups, one document for each group."""
    if config.layout.require is not None:
        raws = _required(raws, config.layout.require, reading)
    if config.layout.group is not None and config.kind is DataKind.text:
        yield from _grouped(raws, config, config.layout.group)
        return
    for raw in raws:
        if not isinstance(raw, Raw):
            yield raw
        elif config.kind is DataKind.text:
            yield document(raw, config.text_field, config.layout)
        else:
            yield conversation(raw.value, raw.origin, config.layout, size=raw.size)


def _required(raws: Iterable[Raw | Document | Fault], path: str, reading: Reading) -> Iterator[Raw | Document | Fault]:
    for raw in raws:
        if isinstance(raw, Raw) and not values(raw.value, path):
            reading.skipped[f"records without {path} (data.layout.require)"] += 1
            reading.blank_bytes += raw.size
        else:
            yield raw


def _grouped(raws: Iterable[Raw | Document | Fault], config: DataConfig, group: str) -> Iterator[Record]:
    kept: list[Document] = []
    current: str | None = None
    for raw in raws:
        if not isinstance(raw, Raw):
            yield raw
            continue
        one = document(raw, config.text_field, config.layout)
        key = _group_of(raw, group, config.layout.group_pattern)
        if isinstance(key, Fault) or isinstance(one, Fault):
            yield key if isinstance(key, Fault) else one
            continue
        if kept and key != current:
            yield _merged(kept, config.layout.join)
            kept = []
        current = key
        kept.append(one)
    if kept:
        yield _merged(kept, config.layout.join)


def _group_of(raw: Raw, group: str, pattern: str | None) -> str | Fault:
    found = first(raw.value, group)
    if found is None:
        return Fault(raw.origin, f'field "{group}" is missing', f"{_has(raw.value)}. Set data.layout.group", raw.size)
    if pattern is None:
        return str(found)
    if match := re.search(pattern, str(found)):
        return str(match[1])
    fix = f"It is {str(found)[:40]!r}. Correct data.layout.group_pattern={pattern}"
    return Fault(raw.origin, f'field "{group}" does not match the group pattern', fix, raw.size)


def _merged(documents: list[Document], join: str) -> Document:
    text = join.join(document.text for document in documents)
    return Document(text, documents[0].origin, sum(document.size for document in documents))


def document(raw: Raw, text_field: str, layout: LayoutConfig) -> Document | Fault:
    """The texts that a path finds in a record, as one document."""
    found = values(raw.value, text_field)
    if not found:
        fix = f"{_has(raw.value)}. Set data.text_field={next(iter(raw.value), '<its key>')}"
        return Fault(raw.origin, f'field "{text_field}" is missing', fix, raw.size)
    if len(found) > 1 and all(isinstance(text, str) for text in found):
        found = [text for text in found if text.strip()] or found[:1]
    for text in found:
        if fault := text_fault(text, text_field):
            return Fault(raw.origin, *fault, raw.size)
    return Document(layout.join.join(found), raw.origin, raw.size)


def conversation(record: dict[str, Any], origin: str, layout: LayoutConfig, *, size: int = 0) -> Conversation | Fault:
    """A record with messages, or with question and answer, as a conversation; else what is wrong with it."""
    turns = _turns(record, layout)
    if turns is None:
        needs = f"{layout.messages}, or {layout.question} and {layout.answer}"
        fix = f"A record needs {needs}; this one has: {', '.join(record) or 'nothing'}"
        return Fault(origin, "fields are missing", fix, size)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and layout.role in turn for turn in turns):
        example = f'{{"{layout.role}": "user", "{layout.content}": "..."}}'
        fix = f"Write {layout.messages} as [{example}, {example.replace('user', 'assistant')}]"
        return Fault(origin, "messages are not a list of role and content", fix, size)
    messages = []
    for turn in turns:
        role = layout.roles.get(str(turn[layout.role]), turn[layout.role])
        content = first(turn, layout.content)
        if role not in ROLES:
            known = ", ".join([*layout.roles, *ROLES])
            fix = f"Use {known}, or add it to data.layout.roles"
            return Fault(origin, f"role {role!r} is unknown"[:80], fix, size)
        if fault := text_fault(content, {"user": "question", "assistant": "answer"}.get(role, role)):
            return Fault(origin, *fault, size)
        messages.append({"role": role, "content": content.strip()})
    return _in_turns(messages, origin, size)


def _turns(record: dict[str, Any], layout: LayoutConfig) -> Any:
    """The turns of a record, those of question, input and answer made; None where it has neither."""
    if found := values(record, layout.messages):
        turns = found[0] if len(found) == 1 else found
    else:
        question, answer = values(record, layout.question), values(record, layout.answer)
        if not question or not answer:
            return None
        asked = question[0]
        more = first(record, layout.input) if layout.input else None
        if isinstance(asked, str) and isinstance(more, str) and more.strip().lower() not in ("", "nan"):
            asked = f"{asked.strip()}\n\n{more.strip()}"
        turns = [{layout.role: "user", layout.content: asked}, {layout.role: "assistant", layout.content: answer[0]}]
        turns = [turn | {layout.role: _own_name(turn[layout.role], layout)} for turn in turns]
    system = first(record, layout.system) if layout.system else None
    if isinstance(system, str) and system.strip() and isinstance(turns, list):
        return [{layout.role: "system", layout.content: system}, *turns]
    return turns


def _own_name(role: str, layout: LayoutConfig) -> str:
    return next((name for name, known in layout.roles.items() if known == role), role)


def _in_turns(messages: list[dict[str, str]], origin: str, size: int) -> Conversation | Fault:
    turns = [message["role"] for message in messages]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        fix = "After an optional system turn, user and assistant must take turns, and the last must be the assistant's"
        return Fault(origin, f"turns are {', '.join(turns) or 'none'}"[:80], fix, size)
    return Conversation(messages, origin, size)


def _has(record: dict[str, Any]) -> str:
    return f"It has: {', '.join(record)[:200] or 'nothing'}"
