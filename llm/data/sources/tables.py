"""Tables -> raw records, one a row: csv and tsv as Excel and others write them, parquet, and arrow of `datasets`."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any, Literal

from llm.config import FileFormat, LayoutConfig
from llm.data.records import Fault
from llm.data.sources.archives import Member, damage, damages, seekable
from llm.data.sources.formats import Raw, Reading, not_in, too_long
from llm.data.sources.lines import MAX_LINE, Line, Lines, bad_byte

BATCH = 256  # rows that are held at once


def rows(
    lines: Lines, origin: str, file_format: FileFormat, layout: LayoutConfig, reading: Reading
) -> Iterator[Raw | Fault]:
    """The rows of a csv or tsv as objects: keyed by the header's names, or by 0, 1, 2 where there is none."""
    source = _Rows(lines, file_format, layout, reading)
    header: list[str] | None = None
    for row, line, size in source:
        place = f"{origin}:{line}"
        if isinstance(row, str):
            yield Fault(place, "not a csv row", f"Close the quotes, or set data.layout.format=txt ({row})", size)
        elif any(len(cell) > MAX_LINE for cell in row) or source.has_long_line:
            yield too_long(place, size)
            source.has_long_line = False
        elif byte := next(filter(None, map(bad_byte, row)), None):
            yield not_in(lines.encoding or "utf-8", place, byte, size=size)
        elif header is None and layout.header:
            header = _distinct([cell.strip() for cell in row])
            reading.blank_bytes += size  # names are no record
        elif header is not None and len(row) != len(header):
            fix = "Quote what holds the delimiter, or set data.layout.header=false or data.layout.delimiter"
            yield Fault(place, f"has {len(row)} columns where the header has {len(header)}"[:80], fix, size)
        else:
            yield Raw(dict(zip(header or map(str, range(len(row))), row, strict=True)), place, size)


def _distinct(names: list[str]) -> list[str]:
    """The names of columns; of several of one name the second is <name>.1, as pandas has it."""
    found: dict[str, None] = {}
    for name in names:
        later = (f"{name}.{number}" for number in count(1))
        found[name if name not in found else next(new for new in later if new not in found)] = None
    return list(found)


class _Rows:
    """(the row, or what is wrong with it; its first line; its bytes), blank lines left out."""

    def __init__(self, lines: Lines, file_format: FileFormat, layout: LayoutConfig, reading: Reading) -> None:
        self._lines, self._reading = iter(lines), reading
        self._delimiter = "\t" if file_format is FileFormat.tsv else layout.delimiter
        self._quoting: Literal[0, 3] = (
            csv.QUOTE_NONE if file_format is FileFormat.tsv and not layout.header else csv.QUOTE_MINIMAL
        )
        self._size = self._first = 0
        self.has_long_line = False

    def __iter__(self) -> Iterator[tuple[list[str] | str, int, int]]:
        csv.field_size_limit(MAX_LINE)
        head = self._head()
        if head is None:
            return
        delimiter = self._delimiter or _commonest_delimiter(head.text)
        reader = csv.reader(self._texts(head), delimiter=delimiter, quoting=self._quoting, strict=True)
        while True:
            self._size = self._first = 0
            try:
                row: list[str] | str = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row = str(error)
            if row:
                yield row, self._first, self._size
            else:
                self._reading.blank_bytes += self._size

    def _head(self) -> Line | None:
        """The first line; `sep=;`, which Excel takes for a setting, is none."""
        for line in self._lines:
            if named := re.fullmatch("sep=(.)", line.text):
                self._delimiter = named[1]
            elif line.text.strip():
                return line
            self._reading.blank_bytes += line.size
        return None

    def _texts(self, head: Line) -> Iterator[str]:
        yield self._text(head)
        for line in self._lines:
            yield self._text(line)

    def _text(self, line: Line) -> str:
        self._first = self._first or line.number
        self._size += line.size
        self.has_long_line |= line.too_long
        return line.text.replace("\r", "") + "\n"


def _commonest_delimiter(line: str) -> str:
    counts = Counter(letter for letter in re.sub('"[^"]*"', "", line) if letter in ",;\t|")
    return max(",\t;|", key=lambda letter: counts[letter])


def arrow_rows(member: Member, file_format: FileFormat, columns: list[str]) -> Iterator[Raw | Fault]:
    """The rows of a parquet or arrow file; of its columns those that are asked for, if it has them all."""
    import pyarrow

    index = 0
    try:
        with seekable(member) as stream:
            for batch in _batches(stream, file_format, columns):
                _validate(batch)
                for row in range(batch.num_rows):
                    place = f"{member.origin}[{index}]"
                    index += 1
                    yield _row(batch, row, place)
    except (pyarrow.ArrowException, MemoryError, ValueError, *damages()) as error:  # each of these was seen
        yield damage(error, f"{member.origin}[{index}]" if index else member.origin, size=member.size or 0)


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


def _row(batch: Any, row: int, origin: str) -> Raw | Fault:
    try:
        names = _distinct(batch.schema.names)
        return Raw({name: column[row].as_py() for name, column in zip(names, batch.columns, strict=True)}, origin)
    except UnicodeDecodeError as error:
        return not_in("utf-8", origin, f"0x{error.object[error.start]:02x}", size=0)
