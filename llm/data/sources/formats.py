"""A member -> raw records: the paragraphs of a txt, the objects of a json or jsonl, the rows of a table; or faults."""

import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath
from typing import Any

from llm.config import FileFormat, LayoutConfig
from llm.data.records import Document, Fault
from llm.data.sources.archives import Member
from llm.data.sources.fields import values
from llm.data.sources.large_json import large_json, prefix
from llm.data.sources.lines import BAD_BYTE, MAX_LINE, Line, Lines, bad_byte, encodes
from llm.data.sources.texts import to_set

WHOLE_JSON = MAX_LINE  # bytes of a JSON value that is read whole, at about five times its size in memory
MAX_JSON = 128 * 2**20  # where it is not known how to read it in pieces

FORMATS = {
    ".txt": FileFormat.txt,
    ".jsonl": FileFormat.jsonl,
    ".ndjson": FileFormat.jsonl,
    ".json": FileFormat.json,
    ".csv": FileFormat.csv,
    ".tsv": FileFormat.tsv,
    ".parquet": FileFormat.parquet,
    ".arrow": FileFormat.arrow,
}
JSON = (FileFormat.json, FileFormat.jsonl)  # which of the two a file is, its first value and what follows it say
ENCODING_NAMES = {"cp949": "CP949", "utf-8": "UTF-8", "utf-8-sig": "UTF-8"}


@dataclass(slots=True)
class Raw:
    """A record as its file has it."""

    value: Any
    origin: str
    size: int = 0
    is_file: bool = False  # the one JSON value of a file, whose records may be in a list inside


@dataclass(slots=True)
class Reading:
    """What one pass over a source read and left out: the bytes of every line are some record's, or blank."""

    members: int = 0
    bytes_read: int = 0  # of files with lines
    blank_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # why -> files, or records that the layout leaves out
    encodings: Counter[str] = field(default_factory=Counter)  # -> files
    repaired_names: int = 0


def format_of(name: str, layout: LayoutConfig) -> FileFormat | None:
    """The format of a file of this name; None for what is not read."""
    if layout.format is not FileFormat.auto:
        return layout.format
    suffix = PurePath(name).suffix.lower()
    if not suffix and PurePath(name).name.startswith("wiki_"):
        return FileFormat.jsonl  # WikiExtractor --json writes wiki_00, wiki_01
    return FORMATS.get(suffix)


def suffixes(formats: set[FileFormat]) -> list[str]:
    """The suffixes of these formats."""
    return [suffix for suffix, file_format in FORMATS.items() if file_format in formats]


def raw_records(
    member: Member, file_format: FileFormat, layout: LayoutConfig, columns: list[str], reading: Reading
) -> Iterator[Raw | Document | Fault]:
    """Every record of a member; `columns`: the keys that are looked at, so that others need not be read."""
    if file_format in (FileFormat.parquet, FileFormat.arrow):
        from llm.data.sources.tables import arrow_rows

        yield from arrow_rows(member, file_format, columns)
        return
    with member.open() as stream:
        lines = Lines(stream)
        try:
            yield from _lined(lines, member.origin, file_format, layout, reading)
        finally:  # of a stream that is damaged, what was read before
            reading.bytes_read += lines.bytes_read
            reading.encodings[lines.encoding or "ascii"] += 1


def _lined(
    lines: Lines, origin: str, file_format: FileFormat, layout: LayoutConfig, reading: Reading
) -> Iterator[Raw | Document | Fault]:
    if file_format is FileFormat.txt:
        yield from _paragraphs(lines, origin, reading)
    elif file_format in (FileFormat.csv, FileFormat.tsv):
        from llm.data.sources.tables import rows

        yield from rows(lines, origin, file_format, layout, reading)
    else:
        yield from _json(lines, origin, layout, reading)


def _paragraphs(lines: Lines, origin: str, reading: Reading) -> Iterator[Document | Fault]:
    """Documents of a text file: what stands between blank lines; one with a bad line is one fault."""
    kept: list[Line] = []
    size = 0  # of what is kept, or was before it grew too long
    for line in lines:
        if line.too_long or line.text.strip():
            size += line.size
            if size <= MAX_LINE or not kept:
                kept.append(line)
        else:
            reading.blank_bytes += line.size
            if kept:
                yield _paragraph(kept, size, origin, lines)
                kept, size = [], 0
    if kept:
        yield _paragraph(kept, size, origin, lines)


def _paragraph(kept: list[Line], size: int, origin: str, lines: Lines) -> Document | Fault:
    if size > MAX_LINE:
        return too_long(f"{origin}:{kept[0].number}", size)
    for line in kept:
        if fault := line_fault(line, origin, lines.encoding, size=size):
            return fault
    text, place = re.sub("\r+", "\n", "\n".join(line.text for line in kept)), f"{origin}:{kept[0].number}"
    if wrong := text_fault(text, "text"):
        return Fault(place, *wrong, size)
    return Document(text, place, size)


@dataclass(frozen=True, slots=True)
class OneValue:
    """A file that is one JSON value."""

    value: Any
    size: int


@dataclass(frozen=True, slots=True)
class LargeValue:
    """How a JSON value begins that is too large to be read whole."""

    head: bytes


@dataclass(frozen=True, slots=True)
class EachLine:
    """A file with more after its first JSON value: one on each line."""

    first: Any = None  # the value of the first line, if it was read


def json_value(lines: Lines, origin: str) -> OneValue | LargeValue | EachLine | Fault:
    """What a file is, by what is parsed: one JSON value with nothing after it, or more than one.

    A first value that is broken is a bad line of many where the lines after it are objects, and else a bad file.
    """
    first, *others = lines.look() or [b""]
    if not first:
        return EachLine()
    if len(first) <= WHOLE_JSON and isinstance(value := _parsed(first, lines, origin), OneValue):
        return EachLine(value.value) if others else value
    data = lines.read(WHOLE_JSON + 1)
    found = LargeValue(data) if len(data) > WHOLE_JSON else _parsed(data, lines, origin)
    if (
        not isinstance(found, OneValue)
        and others
        and all(isinstance(_parse(lines.decode(line)[0]), dict) for line in others)
    ):
        lines.put_back(data)
        return EachLine()
    return found


def _parsed(data: bytes, lines: Lines, origin: str) -> OneValue | Fault:
    text, is_whole = lines.decode(data)
    if not is_whole and (bad := BAD_BYTE.search(text)):
        line = text.count("\n", 0, bad.start()) + 1
        return not_in(lines.encoding or "utf-8", f"{origin}:{line}", str(bad_byte(text)), size=len(data))
    value = _parse(text)
    if isinstance(value, _Wrong):
        fix = f"The file must be one JSON value, or have one on each line{value.how}"
        return Fault(f"{origin}:{value.line}", "not JSON", fix, len(data))
    return OneValue(value, len(data))


def _json(lines: Lines, origin: str, layout: LayoutConfig, reading: Reading) -> Iterator[Raw | Fault]:
    """The records of a file in JSON: of one value as json_records has them, else one a line."""
    found = json_value(lines, origin)
    if isinstance(found, EachLine):
        yield from json_lines(lines, origin, reading, found.first)
    elif isinstance(found, LargeValue):
        yield from _large_value(found.head, lines, origin, layout, reading)
    else:
        yield from [found] if isinstance(found, Fault) else json_records(found, origin, layout)
        deque(lines, maxlen=0)  # up to the end, where a checksum may be wrong


def _large_value(
    head: bytes, lines: Lines, origin: str, layout: LayoutConfig, reading: Reading
) -> Iterator[Raw | Fault]:
    place = prefix(layout.records, head) if lines.encoding != "cp949" else None
    if place is not None:
        for found in large_json(head, lines, place, origin):
            yield found if isinstance(found, Fault) else _as_raw(found[1], f"{origin}[{found[0]}]")
        return
    data = head + lines.read(MAX_JSON + 1 - len(head))
    fix = "Say where its records are: data.layout.records, such as data[]; it must be no CP949"
    too_large = Fault(origin, f"longer than {MAX_JSON >> 20} MiB", fix, len(data))
    value = _parsed(data, lines, origin) if len(data) <= MAX_JSON else too_large
    if isinstance(value, OneValue):
        yield from json_records(value, origin, layout)
    elif b"\n" in head:
        yield value
    else:  # a line that is too long, alone or with others after it
        lines.put_back(data)
        of_line, *second = islice(found_lines := json_lines(lines, origin, reading), 2)
        yield from [of_line, *second] if second else [value]
        yield from found_lines


def json_lines(lines: Lines, origin: str, reading: Reading, first: Any = None) -> Iterator[Raw | Fault]:
    """`first`: the value of the first line that is not blank, if it was parsed before."""
    for line in lines:
        place = f"{origin}:{line.number}"
        if fault := line_fault(line, origin, lines.encoding, size=line.size):
            yield fault
        elif line.text.strip():
            value, first = _parse(line.text) if first is None else first, None
            if isinstance(value, _Wrong):
                yield Fault(place, "not JSON", f"Each line must be one JSON object{value.how}", line.size)
            elif not isinstance(value, dict):
                fix = f'Each line must be an object such as {{"text": "..."}}, not {line.text[:20]}'
                yield Fault(place, "not a JSON object", fix, line.size)
            else:
                yield Raw(value, place, line.size)
        else:
            reading.blank_bytes += line.size


def json_records(file: OneValue, origin: str, layout: LayoutConfig) -> Iterator[Raw | Fault]:
    """The records in the one JSON value of a file: where layout.records says, or the items of a list, or the whole."""
    value = file.value
    if not layout.records and not isinstance(value, list):
        yield _as_raw(value, f"{origin}:1", file.size, is_file=True)
        return
    found = values(value, layout.records) if layout.records else value
    if not found:
        has = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        what = f"{layout.records} finds no record" if layout.records else "the list is empty"
        way_out = to_set(value, is_file=True) if isinstance(value, dict) else None
        fix = f"It has: {has[:200]}. {way_out or 'Set data.layout.records'}, or leave it out with data.layout.skip"
        yield Fault(origin, what, fix, file.size)
    for index, record in enumerate(found):
        yield _as_raw(record, f"{origin}[{index}]")


def _as_raw(record: Any, place: str, size: int = 0, *, is_file: bool = False) -> Raw | Fault:
    if isinstance(record, dict):
        return Raw(record, place, size, is_file)
    if isinstance(record, str):
        return Raw({"text": record}, place, size)
    return Fault(place, "not a JSON object", f"A record must be an object, not {str(record)[:20]}", size)


@dataclass(slots=True)
class _Wrong:
    how: str
    line: int = 1


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return _Wrong(f" ({error.msg}: column {error.colno})", error.lineno)
    except RecursionError:
        return _Wrong("; this one is nested too deeply")
    except ValueError as error:  # an int of more digits than Python takes
        return _Wrong(f" ({error})")


def line_fault(line: Line, origin: str, encoding: str | None, *, size: int) -> Fault | None:
    """What is wrong with a line's bytes."""
    if line.too_long:
        return too_long(f"{origin}:{line.number}", size)
    if not line.is_whole and (byte := bad_byte(line.text)):
        return not_in(encoding or "utf-8", f"{origin}:{line.number}", byte, size=size)
    return None


def too_long(origin: str, size: int) -> Fault:
    """The fault of a record that is none."""
    fix = "Part it into documents, or set data.bad_records=drop"
    return Fault(origin, f"longer than {MAX_LINE >> 20} MiB", fix, size)


def not_in(encoding: str, origin: str, byte: str, *, size: int) -> Fault:
    """The fault of bytes that are not in the encoding of the rest of their file."""
    name = ENCODING_NAMES.get(encoding, "UTF-16")
    fix = f"The file is taken for {name}: repair it, or set data.bad_records=drop"
    return Fault(origin, f"not {name} (byte {byte})", fix, size)


def text_fault(text: Any, what: str) -> tuple[str, str] | None:
    """(what is wrong with a text, what to do about it)."""
    if not isinstance(text, str):
        return f"{what} is {type(text).__name__}, not text", "Make it a string, or remove the record"
    if not text.strip():
        return f"{what} is empty", "Remove the record, or set data.bad_records=drop"
    if len(text) < 8 and text.strip().lower() == "nan":  # what pandas writes for an empty cell
        return f"{what} is nan", "Remove the record, or set data.bad_records=drop"
    if not encodes(text):
        return f"{what} holds half a character (a lone surrogate)", "Repair it, or set data.bad_records=drop"
    if "\0" in text:
        return f"{what} holds a NUL", "Convert it to UTF-8, or set data.bad_records=drop"
    return None
