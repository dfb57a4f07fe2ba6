"""A raw record and where its text sits -> a document or a conversation, or what is wrong with it."""

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from llm.config import DataConfig, DataKind, LayoutConfig, RepeatedTurns, Shape
from llm.data.records import Conversation, Document, Fault, Record
from llm.data.sources.fields import first, head, values
from llm.data.sources.formats import Raw, Reading, text_fault
from llm.data.sources.shapes import ROLES, role_of, turns_of, usual_columns
from llm.data.sources.texts import question_and_answer, to_set


def columns(config: DataConfig) -> list[str]:
    """The top-level keys that a config looks at."""
    layout = config.layout
    paths = [config.text_field, layout.group, layout.require]
    if config.kind is DataKind.conversations:
        paths = [layout.messages, layout.system, layout.question, layout.input, layout.answer, layout.require]
        paths += [config.text_field, *usual_columns()]
    return [key for path in paths if path is not None for key in head(path)]


def to_records(raws: Iterable[Raw | Document | Fault], config: DataConfig, reading: Reading) -> Iterator[Record]:
    """Each raw record as a document or a conversation; where a layout groups, one document for each group."""
    if config.layout.require is not None:
        raws = _required(raws, config.layout.require, reading)
    if config.layout.group is not None and config.kind is DataKind.text:
        yield from _grouped(raws, config, config.layout.group)
        return
    for raw in raws:
        if isinstance(raw, Document) and config.kind is DataKind.conversations:  # of a txt file
            raw = Raw({config.text_field: raw.text}, raw.origin, raw.size)
        if not isinstance(raw, Raw):
            yield raw
        elif config.kind is DataKind.text:
            yield document(raw, config.text_field, config.layout)
        else:
            yield conversation(raw.value, raw.origin, config.layout, text_field=config.text_field, size=raw.size)


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
        way_out = to_set(raw.value, is_file=raw.is_file) or "Remove the record, or set data.bad_records=drop"
        fix = f"{_has(raw.value)}. {way_out}"
        return Fault(raw.origin, f'field "{text_field}" is missing', fix, raw.size)
    if len(found) > 1 and all(isinstance(text, str) for text in found):
        found = [text for text in found if text.strip()] or found[:1]
    for text in found:
        if fault := text_fault(text, text_field):
            return Fault(raw.origin, *(_of_other_kind(raw, text_field, *fault) or fault), raw.size)
    return Document(layout.join.join(found), raw.origin, raw.size)


def _of_other_kind(raw: Raw, text_field: str, reason: str, fix: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) where numbers or objects stand in place of texts: another field may be meant."""
    if any(text is None or isinstance(text, str) for text in values(raw.value, text_field)):
        return None
    return reason, to_set(raw.value, is_file=raw.is_file) or f"{fix}; python -m llm.inspect <path> shows other fields"


def conversation(
    record: dict[str, Any], origin: str, layout: LayoutConfig, *, text_field: str = "text", size: int = 0
) -> Conversation | Fault:
    """A record of any shape that the layout allows as a conversation; else what is wrong with it.

    The rules: a role's name is one of the known (`shapes.NAMES`, `layout.roles`), else the record is refused; of two
    turns of one role in a row one is made; the system comes first, then user and assistant take turns, and the last
    turn is the assistant's; no turn is empty.
    """
    found = turns_of(record, layout, text_field)
    if found is None:
        return Fault(origin, "fields are missing", _needs(record, layout, text_field), size)
    if found.turns is None:
        example = f'{{"{layout.role}": "user", "{layout.content}": "..."}}'
        fix = f"Write {layout.messages} as [{example}, {example.replace('user', 'assistant')}]"
        return Fault(origin, "messages are not a list of role and content", fix, size)
    messages: list[dict[str, str]] = []
    repairs: dict[str, None] = {}  # each once, in order
    for turn in found.turns:
        role = role_of(turn.role, layout)
        if role is None:
            known = ", ".join([*layout.roles, *ROLES])
            own = "'+data.layout.roles={<name>: user}' (a name in Hangul in a YAML file of conf/data)"
            fix = f"Use {known} or another usual name, or add it: {own}"
            return Fault(origin, f"role {turn.role!r} is unknown"[:80], fix, size)
        if fault := text_fault(turn.text, {"user": "question", "assistant": "answer"}.get(role, role)):
            return Fault(origin, *fault, size)
        if turn.role not in ROLES and turn.role not in layout.roles:
            repairs[f"role {turn.role} read as {role}"[:80]] = None
        if messages and messages[-1]["role"] == role and layout.repeated_turns is RepeatedTurns.merge:
            repairs[f"turns of {role} one after the other made one"] = None
            messages[-1]["content"] += "\n" + turn.text.strip()
        else:
            messages.append({"role": role, "content": turn.text.strip()})
    return _in_turns(messages, origin, size, found.shape, tuple(repairs))


def _needs(record: dict[str, Any], layout: LayoutConfig, text_field: str) -> str:
    """What a record without turns should have."""
    if layout.shape is Shape.tagged:
        has = f"its {text_field} has no such marks" if text_field in record else _has(record).replace("It", "it", 1)
        return f"A record needs text with marks such as ### 질문: ... ### 답변: ... in {text_field}; {has}"
    needs = f"{layout.messages}, or {layout.question} and {layout.answer}"
    if layout.shape is not Shape.auto:
        needs = layout.messages if layout.shape is Shape.messages else f"{layout.question} and {layout.answer}"
    has = ", ".join(map(str, record))[:200] or "nothing"
    own = question_and_answer([record]) or "+data.map={question: <column>, answer: <column>}"
    return f"A record needs {needs}, or your own: {shlex.quote(own)}; this one has: {has}"


def _in_turns(
    messages: list[dict[str, str]], origin: str, size: int, shape: Shape, repairs: tuple[str, ...]
) -> Conversation | Fault:
    turns = [message["role"] for message in messages]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        fix = "After an optional system turn, user and assistant must take turns, and the last must be the assistant's"
        return Fault(origin, f"turns are {', '.join(turns) or 'none'}"[:80], fix, size)
    return Conversation(messages, origin, size, shape.name, repairs)


def _has(record: dict[str, Any]) -> str:
    return f"It has: {', '.join(record)[:200] or 'nothing'}"
