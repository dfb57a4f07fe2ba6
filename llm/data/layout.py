"""A record as its file has it, and where its text sits -> a document or a conversation, or what is wrong with it."""

import re
from collections.abc import Iterable, Iterator

from llm.config.data import DataConfig, DataKind
from llm.config.documents import LayoutConfig
from llm.data.parse import Parsed, Raw
from llm.data.records import Conversation, Document, Record, Rejected, RejectedError, check_text
from llm.data.suggest import to_set
from llm.data.turns import conversation, usual_columns
from llm.data.values import first, head, values


def columns(config: DataConfig) -> list[str]:
    """The top-level keys that a config looks at."""
    layout = config.layout
    paths = [config.text_field, layout.group, layout.require]
    if config.kind is DataKind.conversations:
        paths = [layout.messages, layout.system, layout.question, layout.input, layout.answer, layout.require]
        paths += [config.text_field, *usual_columns()]
    return [key for path in paths if path is not None for key in head(path)]


def to_records(parsed: Iterable[Parsed], config: DataConfig) -> Iterator[Record]:
    """Each record as a document or a conversation; where a layout groups, one document for each group."""
    layout = config.layout
    found = in_files(parsed, layout)
    if layout.require is not None:
        found = _required(found, layout.require)
    if layout.group is not None and config.kind is DataKind.text:
        yield from _grouped(found, config, layout.group)
        return
    for raw in found:
        if isinstance(raw, Rejected):
            yield raw
            continue
        try:
            yield made_of(raw, config)
        except RejectedError as error:
            yield error.at(raw.origin)


def made_of(raw: Raw, config: DataConfig) -> Document | Conversation:
    """A record as the config takes it.

    Raises:
        RejectedError: it cannot be that.
    """
    if config.kind is DataKind.text:
        return _document(raw, config)
    record = {config.text_field: raw.value} if isinstance(raw.value, str) else raw.value
    return conversation(record, raw.origin, config.layout, text_field=config.text_field)


def in_files(parsed: Iterable[Parsed], layout: LayoutConfig) -> Iterator[Parsed]:
    """The records; those of a file of one JSON value are where layout.records says, or a list's items, or the whole."""
    for raw in parsed:
        if isinstance(raw, Rejected):
            yield raw
        elif not raw.is_file:
            yield _checked(raw)
        elif not layout.records and not isinstance(raw.value, list):
            yield _checked(Raw(raw.value, f"{raw.origin}:1", is_file=True))
        elif found := values(raw.value, layout.records) if layout.records else raw.value:
            for index, record in enumerate(found):
                yield _checked(Raw(record, f"{raw.origin}[{index}]"))
        else:
            yield _without_records(raw, layout.records)


def _without_records(file: Raw, records: str | None) -> Rejected:
    has, way_out = type(file.value).__name__, None
    if isinstance(file.value, dict):
        has, way_out = ", ".join(file.value), to_set(file.value, is_file=True)
    what = f"{records} finds no record" if records else "the list is empty"
    fix = f"It has: {has[:200]}. {way_out or 'Set data.layout.records'}, or leave it out with data.layout.skip"
    return Rejected(file.origin, what, fix)


def _checked(raw: Raw) -> Parsed:
    if isinstance(raw.value, dict | str):
        return raw
    return Rejected(raw.origin, "not a JSON object", f"A record must be an object, not {str(raw.value)[:20]}")


def _required(found: Iterator[Parsed], path: str) -> Iterator[Parsed]:
    for raw in found:
        if isinstance(raw, Raw) and isinstance(raw.value, dict) and not values(raw.value, path):
            yield Rejected(raw.origin, f"records without {path} (data.layout.require)")
        else:
            yield raw


def _grouped(found: Iterator[Parsed], config: DataConfig, group: str) -> Iterator[Document | Rejected]:
    kept: list[Document] = []
    current: str | None = None
    for raw in found:
        if isinstance(raw, Rejected):
            yield raw
            continue
        try:
            key, one = _group_of(raw, group, config.layout.group_pattern), _document(raw, config)
        except RejectedError as error:
            yield error.at(raw.origin)
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
        raise RejectedError(f'field "{group}" is missing', f"{_has(raw)}. Set data.layout.group")
    if pattern is None:
        return str(found)
    if match := re.search(pattern, str(found)):
        return str(match[1])
    fix = f"It is {str(found)[:40]!r}. Correct data.layout.group_pattern={pattern}"
    raise RejectedError(f'field "{group}" does not match the group pattern', fix)


def _merged(documents: list[Document], join: str) -> Document:
    return Document(join.join(document.text for document in documents), documents[0].origin)


def _document(raw: Raw, config: DataConfig) -> Document:
    """The texts that data.text_field finds in a record, as one document."""
    if isinstance(raw.value, str):
        check_text(raw.value, "text")
        return Document(raw.value, raw.origin)
    found = values(raw.value, config.text_field)
    if not found:
        way_out = to_set(raw.value, is_file=raw.is_file) or "Remove the record, or set data.bad_records=drop"
        raise RejectedError(f'field "{config.text_field}" is missing', f"{_has(raw)}. {way_out}")
    if len(found) > 1 and all(isinstance(text, str) for text in found):
        found = [text for text in found if text.strip()] or found[:1]
    for text in found:
        try:
            check_text(text, config.text_field)
        except RejectedError as error:
            raise RejectedError(error.reason, _other_field(raw, config.text_field, error.fix)) from None
    return Document(config.layout.join.join(found), raw.origin)


def _other_field(raw: Raw, text_field: str, fix: str) -> str:
    """What to do; where numbers or objects stand in place of texts, another field may be meant."""
    if any(text is None or isinstance(text, str) for text in values(raw.value, text_field)):
        return fix
    return to_set(raw.value, is_file=raw.is_file) or f"{fix}; python -m llm.inspect <path> shows other fields"


def _has(raw: Raw) -> str:
    return f"It has: {', '.join(raw.value)[:200] or 'nothing'}"
