"""A member -> its records as it has them: paragraphs of a txt, objects of a json or jsonl, rows of a table."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import PurePath
from typing import Any, Literal

from llm.config.documents import FileFormat, LayoutConfig
from llm.data.archives import Member, seekable
from llm.data.decoding import HEAD, MAX_LINE, Line, Text, too_long
from llm.data.large_json import is_split, items
from llm.data.records import Rejected, RejectedError
from llm.data.streams import unreadable

WHOLE_JSON = 32 * 2**20  # bytes of a JSON value that is read whole, at about five times its size in memory
MAX_JSON = 128 * 2**20  # where it is not known how to read it in pieces
BATCH = 256  # rows of a table that are held at once

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
ONE_VALUE = "The file must be one JSON value, or have one on each line"


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as its file has it."""

    value: Any  # an object; a text, which is a paragraph of a txt file or a string in a list of JSON
    origin: str
    is_file: bool = False  # the one JSON value of a file: what in it is a record, the layout says


Parsed = Raw | Rejected


def format_of(name: str, layout: LayoutConfig) -> FileFormat | None:
    """The format of a file of this name; None for what is not read."""
    if layout.format is not FileFormat.auto:
        return layout.format
    suffix = PurePath(name).suffix.lower()
    if not suffix and PurePath(name).name.startswith("wiki_"):
        return FileFormat.jsonl  # WikiExtractor --json writes wiki_00, wiki_01
    return FORMATS.get(suffix)


def parse(
    member: Member, file_format: FileFormat, layout: LayoutConfig, columns: list[str], encodings: Counter[str]
) -> Iterator[Parsed]:
    """Every record of a member, in which encoding it is being counted; `columns`: of a table, those that are needed."""
    try:
        if file_format in (FileFormat.parquet, FileFormat.arrow):
            yield from _arrow_rows(member, file_format, columns)
            return
        with member.open() as stream:
            text = Text(stream, member.origin)
            try:
                yield from _of_text(text, member.origin, file_format, layout)
            finally:
                encodings[text.encoding or "ascii"] += 1
    except RejectedError as error:
        yield error.at(member.origin)


def _of_text(text: Text, origin: str, file_format: FileFormat, layout: LayoutConfig) -> Iterator[Parsed]:
    if file_format is FileFormat.txt:
        return _paragraphs(text, origin)
    if file_format in (FileFormat.csv, FileFormat.tsv):
        return _csv_rows(text, origin, file_format, layout)
    return _json(text, origin, layout)


def _paragraphs(text: Text, origin: str) -> Iterator[Raw | Rejected]:
    """Documents of a text file: what stands between blank lines; one with a wrong line is rejected whole."""
    kept: list[Line] = []
    size = 0  # of what is kept, or was before it grew too long
    for line in text.lines():
        if line[1].strip() or line[2]:
            size += len(line[1])
            if size <= MAX_LINE or not kept:
                kept.append(line)
        elif kept:
            yield _paragraph(kept, size, origin)
            kept, size = [], 0
    if kept:
        yield _paragraph(kept, size, origin)


def _paragraph(lines: list[Line], size: int, origin: str) -> Raw | Rejected:
    place = f"{origin}:{lines[0][0]}"
    if size > MAX_LINE:
        return too_long(place)
    wrong = next((wrong for _, _, wrong in lines if wrong), None)
    return wrong or Raw(re.sub("\r+", "\n", "\n".join(text for _, text, _ in lines)), place)


# JSON


def _json(text: Text, origin: str, layout: LayoutConfig) -> Iterator[Raw | Rejected]:
    """The one value of a file; or the values on its lines, if the first line has one and others follow it.

    A first value that is broken is a bad line of many where the lines after it are objects, and else a bad file.
    """
    first, *others = [_value(text, line, origin) for line in _first_lines(text)] or [Rejected(origin, "too long")]
    is_value = not isinstance(first, Rejected)
    if others and (is_value or all(isinstance(other, dict) for other in others)):
        yield from _json_lines(text, origin)
        return
    head = text.peek(WHOLE_JSON + 1)
    if len(head) <= WHOLE_JSON:
        if head.strip():
            yield _file(first if is_value else _value(text, text.read(len(head) + 1), origin), origin)
        text.read_on()
    elif is_split(layout.records, head):
        for found in items(text, layout.records, origin):
            yield found if isinstance(found, Rejected) else Raw(*found)
    else:
        yield from _large_value(text, origin, is_one_line=b"\n" not in head)


def _first_lines(text: Text) -> list[bytes]:
    """The first three that are not blank, fewer where the file ends or one is too long."""
    size = HEAD
    while True:
        head = text.peek(size)
        found = list(islice((line for line in io.BytesIO(head) if line.strip()), 3))
        if len(head) < size:
            return found
        whole = [line for line in found if line.endswith(b"\n")]
        if len(whole) == 3 or size > MAX_LINE:
            return whole
        size = min(8 * size, MAX_LINE + 1)


def _large_value(text: Text, origin: str, *, is_one_line: bool) -> Iterator[Raw | Rejected]:
    """A value that cannot be read in pieces; a line that is too long, alone or with others after it."""
    data = text.peek(MAX_JSON + 1)
    fix = "Say where its records are: data.layout.records, such as data[]"
    too_large = Rejected(origin, f"longer than {MAX_JSON >> 20} MiB", fix)
    value = too_large if len(data) > MAX_JSON else _value(text, data, origin)
    if is_one_line and isinstance(value, Rejected):
        of_line, *second = islice(found := _json_lines(text, origin), 2)
        yield from [of_line, *second] if second else [value]
        yield from found
    else:
        yield _file(value, origin)
        text.read_on()


def _file(value: Any, origin: str) -> Raw | Rejected:
    return value if isinstance(value, Rejected) else Raw(value, origin, is_file=True)


def _json_lines(text: Text, origin: str) -> Iterator[Raw | Rejected]:
    for number, line, wrong in text.lines():
        place = f"{origin}:{number}"
        if wrong:
            yield wrong
        elif line and not line.isspace():
            value = _loads(line, "Each line must be one JSON object", origin, number)
            if isinstance(value, Rejected):
                yield value
            elif isinstance(value, dict):
                yield Raw(value, place)
            else:
                fix = f'Each line must be an object such as {{"text": "..."}}, not {line[:20]}'
                yield Rejected(place, "not a JSON object", fix)


def _value(text: Text, data: bytes, origin: str) -> Any:
    """The JSON value that the bytes are, or why they are none."""
    try:
        return _loads(text.decode(data), ONE_VALUE, origin)
    except UnicodeDecodeError as error:
        return text.wrong_byte(error)


def _loads(text: str, needed: str, origin: str, line: int = 1) -> Any:
    """The JSON value that begins on this line, or why there is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        how, line = f" ({error.msg}: column {error.colno})", line + error.lineno - 1
    except RecursionError:
        how = "; this one is nested too deeply"
    except ValueError as error:  # an int of more digits than Python takes
        how = f" ({error})"
    return Rejected(f"{origin}:{line}", "not JSON", f"{needed}{how}")


# Tables


def _csv_rows(text: Text, origin: str, file_format: FileFormat, layout: LayoutConfig) -> Iterator[Raw | Rejected]:
    """The rows of a csv or tsv as objects: keyed by the header's names, or by 0, 1, 2 where there is none."""
    header: list[str] | None = None
    for line, row, wrong in _rows(text, file_format, layout):
        place = f"{origin}:{line}"
        if wrong:
            yield wrong
        elif isinstance(row, str):
            yield Rejected(place, "not a csv row", f"Close the quotes, or set data.layout.format=txt ({row})")
        elif header is None and layout.header:
            header = _distinct([cell.strip() for cell in row])
        elif header is not None and len(row) != len(header):
            fix = "Quote what holds the delimiter, or set data.layout.header=false or data.layout.delimiter"
            yield Rejected(place, f"has {len(row)} columns where the header has {len(header)}"[:80], fix)
        else:
            yield Raw(dict(zip(header or map(str, range(len(row))), row, strict=True)), place)


def _rows(
    text: Text, file_format: FileFormat, layout: LayoutConfig
) -> Iterator[tuple[int, list[str] | str, Rejected | None]]:
    """(first line, the row or what is wrong with its quotes, what is wrong with its bytes), blank lines left out."""
    lines = text.lines()
    delimiter = "\t" if file_format is FileFormat.tsv else layout.delimiter
    for first in lines:
        if named := re.fullmatch("sep=(.)", first[1]):  # which Excel takes for a setting
            delimiter = named[1]
        elif first[1].strip() or first[2]:
            break
    else:
        return
    of_row: list[Line] = []

    def fed() -> Iterator[str]:
        for line in chain([first], lines):
            of_row.append(line)
            yield line[1].replace("\r", "") + "\n"

    no_quotes = file_format is FileFormat.tsv and not layout.header
    quoting: Literal[0, 3] = csv.QUOTE_NONE if no_quotes else csv.QUOTE_MINIMAL
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(fed(), delimiter=delimiter or _commonest_delimiter(first[1]), quoting=quoting, strict=True)
    while True:
        of_row.clear()
        try:
            row: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = str(error)
        wrong = next((wrong for _, _, wrong in of_row if wrong), None)
        if row or wrong:
            yield of_row[0][0], row, wrong


def _commonest_delimiter(line: str) -> str:
    counts = Counter(letter for letter in re.sub('"[^"]*"', "", line) if letter in ",;\t|")
    return max(",\t;|", key=lambda letter: counts[letter])


def _distinct(names: list[str]) -> list[str]:
    """The names of columns; of several of one name the second is <name>.1, as pandas has it."""
    found: dict[str, None] = {}
    for name in names:
        later = (f"{name}.{number}" for number in count(1))
        found[name if name not in found else next(new for new in later if new not in found)] = None
    return list(found)


def _arrow_rows(member: Member, file_format: FileFormat, columns: list[str]) -> Iterator[Raw | Rejected]:
    """The rows of a parquet or arrow file; of its columns those that are asked for, if it has them all."""
    import pyarrow

    index = 0
    try:
        with seekable(member) as stream:
            for batch in _batches(stream, file_format, columns):
                _validate(batch)
                for row in _objects(batch.rename_columns(_distinct(batch.schema.names))):
                    place = f"{member.origin}[{index}]"
                    index += 1
                    yield Rejected(place, *row) if isinstance(row, tuple) else Raw(row, place)
    except (pyarrow.ArrowException, MemoryError, ValueError, OSError, RejectedError) as error:  # each was seen
        yield unreadable(error).at(f"{member.origin}[{index}]" if index else member.origin)


def _batches(stream: Any, file_format: FileFormat, columns: list[str]) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    if file_format is FileFormat.parquet:
        table = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=2**20)
        names = table.schema_arrow.names
        wanted = [name for name, known_as in zip(names, _distinct(names), strict=True) if known_as in columns]
        yield from table.iter_batches(batch_size=BATCH, columns=wanted or None, use_threads=False)
        return
    try:
        yield from pyarrow.ipc.open_stream(stream)  # as `datasets` writes
    except pyarrow.ArrowInvalid:
        stream.seek(0)
        reader = pyarrow.ipc.open_file(stream)
        yield from map(reader.get_batch, range(reader.num_record_batches))


def _validate(batch: Any) -> None:
    """Refuse offsets that lead out of their buffer: looking at such a value ends the process.

    Text that is no UTF-8 passes, for that is found row by row; offsets are checked before text is.
    """
    import pyarrow

    for column in batch.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            if "Invalid UTF8" not in str(error):
                raise


def _objects(batch: Any) -> Iterator[dict[str, Any] | tuple[str, str]]:
    """Each row, or (what is wrong with its text, what to do about it)."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                yield from _objects(batch.slice(row, 1))
        else:
            byte = f"0x{error.object[error.start]:02x}"
            yield f"not UTF-8 (byte {byte})", "The file is taken for UTF-8: repair it, or set data.bad_records=drop"
