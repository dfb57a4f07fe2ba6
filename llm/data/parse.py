"""A member -> its records as it has them: paragraphs of a txt, objects of a json or jsonl, rows of a table."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import PurePath
from typing import Any, Literal

from llm.config.data import FileFormat, LayoutConfig
from llm.data.archives import Member, seekable
from llm.data.records import Rejected, unreadable

PIECE = 2**16  # bytes that are read at once, by which the encoding is detected
MAX_LINE = 32 * 2**20  # characters; what is longer is no record of anybody's, or a list that is read in pieces
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

# The 2,350 Hangul syllables of KS X 1001, which nearly all Korean text is in, have lead bytes B0 to C8 in cp949; other
# encodings taken for cp949 give hanja (CA to FD) and syllables of its extension instead.
_PAIRS = re.compile(rb"[\x81-\xfe][\x41-\xfe]")
_HANGUL = re.compile(rb"[\xb0-\xc8][\xa1-\xfe]")


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


def parse(member: Member, layout: LayoutConfig, columns: list[str], encodings: Counter[str]) -> Iterator[Parsed]:
    """Every record of a member, in which encoding it is being counted; `columns`: of a table, those that are needed.

    Of what is damaged or cut, what comes before is given, and then why there is no more.
    """
    file_format = format_of(member.name, layout)
    try:
        if file_format in (FileFormat.parquet, FileFormat.arrow):
            yield from _arrow_rows(member, file_format, columns)
            return
        with member.open() as stream:
            pieces = decoded(stream, encodings)
            if file_format is FileFormat.txt:
                yield from _paragraphs(_lines(pieces, member.origin), member.origin)
            elif file_format in (FileFormat.csv, FileFormat.tsv):
                yield from _csv_rows(_lines(pieces, member.origin), member.origin, file_format, layout)
            else:
                yield from _json(pieces, member.origin, layout.records)
    except Exception as error:  # each library and protocol has its own kinds
        yield unreadable(member.origin, error)


# Text


def decoded(stream: Any, encodings: Counter[str]) -> Iterator[str]:
    """Its text in pieces, with LF at the ends of lines; bytes that are wrong in its encoding as lone surrogates."""
    read = getattr(stream, "read1", stream.read)  # of a stream that is cut, all that comes before the cut
    ends, decoder, encoding = io.IncrementalNewlineDecoder(None, translate=True), None, "ascii"
    try:
        while data := read(PIECE):
            if decoder is None and not data.isascii():
                encoding = detect(data)
                decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
            yield ends.decode(decoder.decode(data) if decoder else data.decode("ascii"))
        yield ends.decode(decoder.decode(b"", final=True) if decoder else "", final=True)
    finally:
        encodings[encoding] += 1


def detect(data: bytes) -> str:
    """The encoding of a text by its first bytes that are not all ASCII."""
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return encoding
    if not (wrong := _wrong_bytes(data, "utf-8")):
        return "utf-8"
    pairs = _PAIRS.findall(data)
    is_hangul = 2 * sum(1 for pair in pairs if _HANGUL.match(pair)) > len(pairs)
    return "cp949" if is_hangul and _wrong_bytes(data, "cp949") < wrong else "utf-8"


def _wrong_bytes(data: bytes, encoding: str) -> int:
    text = codecs.getincrementaldecoder(encoding)("surrogateescape").decode(data)
    return len(re.findall("[\udc80-\udcff]", text))


def _lines(pieces: Iterator[str], origin: str) -> Iterator[str]:
    """Lines without their ends.

    Raises:
        Rejected: one is too long, which ends the file.
    """
    number, rest, size = 1, [""], 0
    for piece in pieces:
        *lines, last = piece.split("\n")
        if lines:
            lines[0] = "".join(rest) + lines[0]
            yield from lines
            number, rest, size = number + len(lines), [], 0
        rest.append(last)
        size += len(last)
        if size > MAX_LINE:
            raise _too_long(f"{origin}:{number}")
    if size:
        yield "".join(rest)


def _too_long(origin: str, fix: str = "Part it into documents, by blank lines in a txt") -> Rejected:
    return Rejected(origin, f"longer than {MAX_LINE >> 20} MiB", fix)


def _paragraphs(lines: Iterator[str], origin: str) -> Iterator[Raw]:
    """Documents of a text file: what stands between blank lines."""
    kept: list[str] = []
    size = 0
    for number, line in enumerate(chain(lines, [""]), 1):
        if line and not line.isspace():
            kept.append(line)
            size += len(line)
            if size > MAX_LINE:
                raise _too_long(f"{origin}:{number - len(kept) + 1}")
        elif kept:
            yield Raw("\n".join(kept), f"{origin}:{number - len(kept)}")
            kept, size = [], 0


# JSON


def _json(pieces: Iterator[str], origin: str, records: str | None) -> Iterator[Parsed]:
    """The values on the lines of a file if its first line is one and others follow; else its one value.

    A first line that is broken is one of many if those after it are objects.
    """
    head, newlines = "", 0
    while newlines < 3 and len(head) <= MAX_LINE and (piece := next(pieces, "")):
        newlines += (piece if head else piece.lstrip()).count("\n")
        head += piece
    first, *others = [line for line in head.split("\n") if line and not line.isspace()][:3] or [""]
    value = _loaded(first, origin, ONE_VALUE)
    if others and (not isinstance(value, Rejected) or all(isinstance(_loaded(o, origin, ""), dict) for o in others)):
        yield from _json_lines(_lines(chain([head], pieces), origin), origin)
        return
    while len(head) <= MAX_LINE and (piece := next(pieces, "")):
        head += piece
    if len(head) > MAX_LINE:
        yield from _large_json(chain([head], pieces), origin, records)
    elif whole := head.strip():
        value = value if whole == first else _loaded(head, origin, ONE_VALUE)
        yield value if isinstance(value, Rejected) else Raw(value, origin, is_file=True)


def _json_lines(lines: Iterator[str], origin: str) -> Iterator[Parsed]:
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            value = _loaded(line, origin, "Each line must be one JSON object", line=number)
            yield value if isinstance(value, Rejected) else Raw(value, f"{origin}:{number}")


def _loaded(text: str, origin: str, needed: str, *, line: int = 1) -> Any:
    """The JSON value that begins on this line, or why there is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a value may be nested too deeply, a number too long
        line += getattr(error, "lineno", 1) - 1
        return Rejected(f"{origin}:{line}", "not JSON", f"{needed} ({getattr(error, 'msg', error)})")


def _large_json(pieces: Iterator[str], origin: str, records: str | None) -> Iterator[Parsed]:
    """The items of a list that `records` leads to, or that the file is, one at a time."""
    import ijson

    found, index, error = ijson.sendable_list(), 0, None
    parser = ijson.items_coro(found, records.replace("[]", ".item") if records else "item")
    for piece in chain(filter(None, pieces), [None]):
        try:
            parser.send(piece.encode("utf-8", "surrogatepass")) if piece else parser.close()
        except ijson.JSONError as raised:
            error = str(raised).splitlines()[0]
        for value in found:
            yield Raw(value, f"{origin}[{index}]")
            index += 1
        found.clear()
        if error:
            yield Rejected(f"{origin}[{index}]", "not JSON", f"The records before it are read; repair it ({error})")
            return
    if not index:
        yield _too_long(origin, "Say where its records are: data.layout.records, such as data[]")


# Tables


def _csv_rows(
    lines: Iterator[str], origin: str, file_format: FileFormat, layout: LayoutConfig
) -> Iterator[Raw | Rejected]:
    """The rows of a csv or tsv as objects: keyed by the header's names, or by 0, 1, 2 where there is none."""
    first = next(lines, "")
    delimiter = "\t" if file_format is FileFormat.tsv else layout.delimiter or _commonest_delimiter(first)
    no_quotes = file_format is FileFormat.tsv and not layout.header
    quoting: Literal[0, 3] = csv.QUOTE_NONE if no_quotes else csv.QUOTE_MINIMAL
    csv.field_size_limit(MAX_LINE)
    fed = (line + "\n" for line in chain([first], lines))
    reader = csv.reader(fed, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{origin}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield Rejected(place, "not a csv row", f"Close the quotes, or set data.layout.format=txt ({error})")
            continue
        if row is None:
            return
        if header is None and layout.header and row:
            header = _distinct([cell.strip() for cell in row])
        elif header is not None and row and len(row) != len(header):
            fix = "Quote what holds the delimiter, or set data.layout.header=false or data.layout.delimiter"
            yield Rejected(place, f"has {len(row)} columns where the header has {len(header)}"[:80], fix)
        elif row:
            yield Raw(dict(zip(header or map(str, range(len(row))), row, strict=True)), place)


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


def _arrow_rows(member: Member, file_format: FileFormat, columns: list[str]) -> Iterator[Raw]:
    """The rows of a parquet or arrow file; of its columns those that are asked for, if it has any of them."""
    index = 0
    with seekable(member) as stream:
        for batch in _batches(stream, file_format, columns):
            batch.validate(full=True)  # looking at an offset that leads out of its buffer would end the process
            for row in batch.rename_columns(_distinct(batch.schema.names)).to_pylist():
                yield Raw(row, f"{member.origin}[{index}]")
                index += 1


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
