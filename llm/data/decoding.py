"""A stream of bytes -> text in the encoding that they are found to be in, by lines of bounded length or in pieces."""

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

from llm.data.records import Rejected, RejectedError

MAX_LINE = 32 * 2**20  # bytes; a longer line is no record of anybody's, and must not fill the memory
HEAD = 2**18  # bytes that the encoding is detected by, and that are read at once
NAMES = {"cp949": "CP949", "utf-8": "UTF-8", "utf-8-sig": "UTF-8"}  # of encodings; else UTF-16

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The 2,350 Hangul syllables of KS X 1001, which nearly all Korean text is in, have lead bytes B0 to C8 in cp949; UTF-8
# taken for cp949 gives hanja (CA to FD) and syllables of the extension instead.
_PAIRS = re.compile(rb"[\x81-\xfe][\x41-\xfe]")
_HANGUL = re.compile(rb"[\xb0-\xc8][\xa1-\xfe]")
HANGUL_SHARE = 0.5

Line = tuple[int, str, Rejected | None]  # its number from 1, its text without its end, what is wrong with its bytes


class Text:
    """What a stream holds, and what was looked at but not read; UTF-16 becomes UTF-8, a mark of byte order goes.

    A stream that cannot be read to its end gives all that comes before, and then raises RejectedError.
    """

    def __init__(self, stream: BinaryIO, origin: str) -> None:
        self._stream, self._origin = stream, origin
        self.encoding: str | None = None  # None: plain ASCII so far
        self._data, self._at = b"", 0  # what was read from the stream, and where in it what comes next begins
        self._utf16: codecs.IncrementalDecoder | None = None
        self._ended = False
        self._error: RejectedError | None = None
        self._fill(HEAD)
        self.encoding = detect(self._data, at_end=len(self._data) < HEAD)
        if self.encoding is not None and self.encoding.startswith("utf-16"):
            self._utf16 = codecs.getincrementaldecoder(self.encoding)("surrogatepass")
            self._data = self._as_utf8(self._data)
        self._data = self._data.removeprefix(codecs.BOM_UTF8)

    def peek(self, size: int) -> bytes:
        """The next bytes, fewer only where the text ends or cannot be read on; they stay to be read."""
        while len(self._data) - self._at < size and self._fill(size - len(self._data) + self._at):
            pass
        return self._data[self._at : self._at + size]

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only where the text ends."""
        data = self.peek(size)
        if len(data) < size and self._error is not None:
            raise self._error
        self._at += len(data)
        return data

    def read_on(self) -> None:
        """Read to the end, where a checksum may be wrong."""
        while self.read(HEAD):
            pass

    def lines(self) -> Iterator[Line]:
        number = 0
        while some := self._next_lines():
            for raw in some:
                number += 1
                yield number, *self._line(raw, number)

    def decode(self, data: bytes) -> str:
        """Whole lines of it, or all.

        Raises:
            UnicodeDecodeError: a byte is not in the encoding.
        """
        return data.decode(self.codec_of(data))

    def codec_of(self, data: bytes) -> str:
        """What its bytes are decoded with, `data` being those that come next."""
        if self.encoding is None and not data.isascii():
            self.encoding = detect(data, at_end=True) or "utf-8"
        return "cp949" if self.encoding == "cp949" else "utf-8"

    def wrong_byte(self, error: UnicodeDecodeError, line: int | None = None) -> Rejected:
        """`line`: that the bytes are, if they are no more; else it is counted in them."""
        if line is None:
            line = error.object.count(b"\n", 0, error.start) + 1
        name = NAMES.get(self.encoding or "utf-8", "UTF-16")
        fix = f"The file is taken for {name}: repair it, or set data.bad_records=drop"
        return Rejected(f"{self._origin}:{line}", f"not {name} (byte 0x{error.object[error.start]:02x})", fix)

    def _line(self, raw: bytes | None, number: int) -> tuple[str, Rejected | None]:
        if raw is None or len(raw) > MAX_LINE:
            return "", too_long(f"{self._origin}:{number}")
        try:
            return self.decode(raw).rstrip("\r"), None
        except UnicodeDecodeError as error:
            return raw.decode(self.codec_of(raw), "replace").rstrip("\r"), self.wrong_byte(error, number)

    def _next_lines(self) -> list[bytes | None]:
        """Some lines without their ends, or one; None for one that is too long to be kept."""
        while not (end := self._end_of_lines()):
            if len(self._data) - self._at > MAX_LINE:
                self._skip_line()
                return [None]
            if not self._fill(max(HEAD, len(self._data) - self._at)):
                if self._error is not None:
                    raise self._error
                end = len(self._data)
                break
        start, self._at = self._at, end
        return list(self._data[start:end].removesuffix(b"\n").split(b"\n")) if start < end else []

    def _end_of_lines(self) -> int:
        """Where a line ends, the last within HEAD or the first beyond; 0 where none does."""
        beyond = self._at + HEAD
        return self._data.rfind(b"\n", self._at, beyond) + 1 or self._data.find(b"\n", beyond) + 1

    def _skip_line(self) -> None:
        while not (end := self._data.find(b"\n", self._at) + 1):
            self._at = len(self._data)
            if not self._fill(HEAD):
                return
        self._at = end

    def _fill(self, size: int) -> bool:
        """Read so many bytes more, fewer at the end; False where there are none."""
        if self._ended or self._error is not None:
            return False
        parts = []
        try:
            while size > 0 and not self._ended:
                parts.append(self._stream.read1(HEAD))  # type: ignore[attr-defined]  # all of ours are buffered
                size -= len(parts[-1])
                self._ended = not parts[-1]
        except RejectedError as error:
            self._error = error
        data = b"".join(parts)
        self._data = self._data[self._at :] + (self._as_utf8(data) if self._utf16 else data)
        self._at = 0
        return True

    def _as_utf8(self, data: bytes) -> bytes:
        """Half a character becomes bytes that UTF-8 does not have."""
        assert self._utf16 is not None
        text = self._utf16.decode(data)
        if self._ended:
            try:
                text += self._utf16.decode(b"", final=True)
            except UnicodeDecodeError:  # an odd last byte
                text += "\udcff"
        return text.encode("utf-8", "surrogatepass")


def too_long(origin: str) -> Rejected:
    fix = "Part it into documents, or set data.bad_records=drop"
    return Rejected(origin, f"longer than {MAX_LINE >> 20} MiB", fix)


def detect(head: bytes, *, at_end: bool) -> str | None:
    """The encoding of a text by its first bytes; None where they are plain ASCII. `at_end`: there is no more of it.

    UTF-8 unless its lines are wrong in it and more of them are right in cp949.
    """
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if head.isascii():
        return _utf16_without_mark(head)
    if not at_end:
        head = head[: head.rfind(b"\n") + 1] or head[: -(len(head) % 2) or None]
    lines = [line for line in head.split(b"\n") if not line.isascii()]
    wrong_utf8 = [line for line in lines if not _decodes(line, "utf-8")]
    if not at_end and len(lines) == 1 and wrong_utf8 and _decodes(lines[0][:-3], "utf-8"):
        return "utf-8"  # one long line, cut within a character
    if not wrong_utf8:
        return "utf-8"
    if without_mark := _utf16_without_mark(head):
        return without_mark
    return "cp949" if len(wrong_utf8) * 2 > len(lines) and _is_cp949(wrong_utf8) else "utf-8"


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _is_cp949(lines: list[bytes]) -> bool:
    pairs = [pair for line in lines for pair in _PAIRS.findall(line)]
    hangul = sum(1 for pair in pairs if _HANGUL.match(pair))
    right = sum(_decodes(line, "cp949") or _decodes(line[:-1], "cp949") for line in lines)  # it may be cut in a pair
    return hangul > 0 and hangul >= HANGUL_SHARE * len(pairs) and right * 2 > len(lines)


def _utf16_without_mark(head: bytes) -> str | None:
    """Korean text in UTF-16 has its spaces and line feeds as 20 00 and 0A 00: NULs in every second place only."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if len(head) >= 16 and max(even, odd) * 20 > len(head) and min(even, odd) * 2 < max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None
