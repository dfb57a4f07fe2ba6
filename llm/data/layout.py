"""A record as its file has it, and where its text sits -> a document or a conversation, or what is wrong with it."""

import re
from collections.abc import Iterable, Iterator

from llm.config.data import DataConfig, DataKind, LayoutConfig
from llm.data.parse import Parsed, Raw
from llm.data.records import DROP, Conversation, Document, Record, Rejected, check_text, first, head, values
from llm.data.suggest import to_set
from llm.data.turns import conversation, usual_columns


def columns(config: DataConfig) -> list[str]:
    """The top-level keys that a config looks at."""
    layout = config.layout
    paths = [config.text_field, layout.group, layout.require]
    if config.kind is DataKind.conversations:
        paths += [layout.messages, layout.system, layout.question, layout.input, layout.answer, *usual_columns()]
    return [key for path in paths if path is not None for key in head(path)]


def to_records(parsed: Iterable[Parsed], config: DataConfig) -> Iterator[Record]:
    """Each record as a document or a conversation; where a layout groups, one document for each group."""
    found = in_files(parsed, config.layout)
    if config.layout.group is not None and config.kind is DataKind.text:
        yield from _grouped(found, config, config.layout.group)
        return
    for raw in found:
        try:
            yield _made_of(raw, config) if isinstance(raw, Raw) else raw
        except Rejected as rejected:
            yield rejected


def in_files(parsed: Iterable[Parsed], layout: LayoutConfig) -> Iterator[Parsed]:
    """The records; those of a file of one JSON value are where layout.records says, or a list's items, or the whole."""
    for raw in parsed:
        if isinstance(raw, Rejected):
            yield raw
        elif not raw.is_file:
            yield _checked(raw, layout)
        elif not layout.records and not isinstance(raw.value, list):
            yield _checked(Raw(raw.value, f"{raw.origin}:1", is_file=True), layout)
        elif found := values(raw.value, layout.records) if layout.records else raw.value:
            for index, record in enumerate(found):
                yield _checked(Raw(record, f"{raw.origin}[{index}]"), layout)
        else:
            what = f"{layout.records} finds no record" if layout.records else "the list is empty"
            way_out = to_set(raw.value, is_file=True) or "Set data.layout.records"
            yield Rejected(raw.origin, what, f"{_has(raw)}. {way_out}, or leave it out with data.layout.skip")


def _checked(raw: Raw, layout: LayoutConfig) -> Parsed:
    if not isinstance(raw.value, dict | str):
        return Rejected(raw.origin, "not a JSON object", f"A record must be an object, not {str(raw.value)[:20]}")
    if layout.require is not None and isinstance(raw.value, dict) and not values(raw.value, layout.require):
        return Rejected(raw.origin, f"records without {layout.require} (data.layout.require)")
    return raw


def _made_of(raw: Raw, config: DataConfig) -> Document | Conversation:
    if config.kind is DataKind.text:
        return _document(raw, config)
    record = {config.text_field: raw.value} if isinstance(raw.value, str) else raw.value
    return conversation(record, raw.origin, config.layout, text_field=config.text_field)


def _document(raw: Raw, config: DataConfig) -> Document:
    """The texts that data.text_field finds in a record, as one document."""
    field = config.text_field
    found = [raw.value] if isinstance(raw.value, str) else values(raw.value, field)
    if not found:
        way_out = to_set(raw.value, is_file=raw.is_file) or f"Remove the record, {DROP}"
        raise Rejected(raw.origin, f'field "{field}" is missing', f"{_has(raw)}. {way_out}")
    if found[0] is not None and not isinstance(found[0], str):  # another field may be meant
        way_out = to_set(raw.value, is_file=raw.is_file) or "python -m llm.inspect <path> shows other fields"
        raise Rejected(raw.origin, f"{field} is {type(found[0]).__name__}, not text", way_out)
    if len(found) > 1 and all(isinstance(text, str) for text in found):
        found = [text for text in found if text.strip()] or found[:1]
    for text in found:
        check_text(text, field, raw.origin)
    return Document(config.layout.join.join(found), raw.origin)


def _has(raw: Raw) -> str:
    return f"It has: {', '.join(map(str, raw.value))[:200] or 'nothing'}"


def _grouped(found: Iterator[Parsed], config: DataConfig, group: str) -> Iterator[Record]:
    """One document of the rows after one another whose group is equal."""
    kept: list[Document] = []
    current: str | None = None
    for raw in found:
        try:
            if isinstance(raw, Rejected):
                raise raw
            key, one = _group_of(raw, group, config.layout.group_pattern), _document(raw, config)
        except Rejected as rejected:
            yield rejected
            continue
        if kept and key != current:
            yield _merged(kept, config.layout.join)
            kept = []
        current = key
        kept.append(one)
    if kept:
        yield _merged(kept, config.layout.join)


def _group_of(raw: Raw, group: str, pattern: str | None) -> str:
    if isinstance(raw.value, str):  # it is a document by itself
        return raw.origin
    found = first(raw.value, group)
    if found is None:
        raise Rejected(raw.origin, f'field "{group}" is missing', f"{_has(raw)}. Set data.layout.group")
    match = re.search(pattern or "(.*)", str(found), 0 if pattern else re.DOTALL)
    if match is None:
        fix = f"It is {str(found)[:40]!r}. Correct data.layout.group_pattern={pattern}"
        raise Rejected(raw.origin, f'field "{group}" does not match the group pattern', fix)
    return match[1]


def _merged(documents: list[Document], join: str) -> Document:
    return Document(join.join(document.text for document in documents), documents[0].origin)
