"""A stream of bytes -> its lines as text, each of bounded length, in the encoding that the bytes are found to be in."""

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from llm.data.sources.archives import damages
from llm.data.sources.encodings import detect

MAX_LINE = 32 * 2**20  # bytes; a longer line is no record of anybody's, and must not fill the memory
HEAD = 2**18  # bytes that the encoding is detected by
BAD_BYTE = re.compile("[\udc80-\udcff]")  # as surrogateescape has it


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end; bytes that are not in the file's encoding are lone surrogates (surrogateescape)."""

    number: int  # from 1
    text: str
    size: int  # bytes, its end included
    too_long: bool = False  # longer than MAX_LINE: its text is not kept
    is_whole: bool = False  # every byte is in the file's encoding: known without another look at the text


class Lines:
    """The lines of a stream; `encoding` says what those that were read are in."""

    def __init__(self, stream: BinaryIO) -> None:
        self._source = _Source(stream)
        self._stream = io.BufferedReader(self._source, HEAD)
        self.encoding: str | None = self._source.encoding  # None: plain ASCII so far
        self.bytes_read = 0

    def __iter__(self) -> Iterator[Line]:
        for number, (raw, size) in enumerate(self._bounded(), 1):
            if number == 1 and self.encoding == "utf-8-sig":
                size += len(codecs.BOM_UTF8)
            self.bytes_read += size
            if raw is None:
                yield Line(number, "", size, too_long=True)
            else:
                text, is_whole = self.decode(raw)
                yield Line(number, text.rstrip("\r\n"), size, is_whole=is_whole)

    def _bounded(self) -> Iterator[tuple[bytes | None, int]]:
        """(the line with its end, or None if it is too long; its bytes)."""
        while raw := self._stream.readline(MAX_LINE + 1):
            if len(raw) <= MAX_LINE or raw.endswith(b"\n"):
                yield raw, len(raw)
                continue
            size = len(raw)
            while raw and not raw.endswith(b"\n"):
                raw = self._stream.readline(2**20)
                size += len(raw)
            yield None, size

    def decode(self, data: bytes) -> tuple[str, bool]:
        """(lines as text, whether every byte of them is in the encoding); a byte that is not is a lone surrogate."""
        if self.encoding is None and not data.isascii():
            self.encoding = detect(data, at_end=True) or "utf-8"
        codec = "cp949" if self.encoding == "cp949" else "utf-8"
        try:
            return data.decode(codec), True
        except UnicodeDecodeError:
            return data.decode(codec, "surrogateescape"), False

    def look(self) -> list[bytes]:
        """The first three lines that are not blank, at most MAX_LINE + 1 bytes of each; they stay to be read."""
        passed: list[bytes] = []
        found: list[bytes] = []
        with suppress(*damages()):  # raised again when the lines are read
            while len(found) < 3 and (not passed or passed[-1].endswith(b"\n")):
                passed.append(self._stream.readline(MAX_LINE + 1))
                found += [passed[-1]] if passed[-1].strip() else []
        self.put_back(b"".join(passed))
        return found

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        return self._stream.read(size)

    def put_back(self, data: bytes) -> None:
        """Have what was read be read again."""
        with suppress(*damages()):
            data += self._stream.peek()
        self._stream.detach()  # else it closes the source when it goes
        self._source.put_back(data)
        self._stream = io.BufferedReader(self._source, HEAD)


def bad_byte(text: str) -> str | None:
    """The first byte of a line that is not in its encoding, as 0xbe; None where there is none."""
    if text.isascii() or encodes(text) or not (bad := BAD_BYTE.search(text)):
        return None
    return f"0x{ord(bad[0]) - 0xDC00:02x}"


def encodes(text: str) -> bool:
    """Whether a text is all of whole characters: no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_head(stream: Any) -> tuple[bytes, BaseException | None]:
    """(HEAD bytes, fewer only at the stream's end; what ended it before, if it is damaged)."""
    parts: list[bytes] = []
    size = HEAD
    try:
        while size and (part := stream.read1(size)):
            parts.append(part)
            size -= len(part)
    except damages() as error:
        return b"".join(parts), error
    return b"".join(parts), None


class _Source(io.RawIOBase):
    """A stream's bytes, in UTF-8 if it is in UTF-16, without the mark of their order.

    Half a character of UTF-16 becomes bytes that UTF-8 does not have. What ends a damaged stream is raised after all
    that comes before it, and again.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        head, self._error = _read_head(stream)
        self.encoding = detect(head, at_end=len(head) < HEAD)
        is_utf16 = self.encoding is not None and self.encoding.startswith("utf-16")
        self._decoder = codecs.getincrementaldecoder(str(self.encoding))("surrogatepass") if is_utf16 else None
        self._ready = io.BytesIO(self._as_utf8(head.removeprefix(codecs.BOM_UTF8)))
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self._ready.readinto(buffer)) and not self._ended:
            self._ready = io.BytesIO(self._as_utf8(self._more()))
        return count

    def put_back(self, data: bytes) -> None:
        self._ready = io.BytesIO(data + self._ready.read())

    def _more(self) -> bytes:
        if self._error is not None:
            raise self._error
        try:
            data: bytes = self._stream.read1(HEAD)
        except damages() as error:
            self._error = error
            raise
        self._ended = not data
        return data

    def _as_utf8(self, data: bytes) -> bytes:
        if self._decoder is None:
            return data
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:  # an odd last byte
            text = "\udcff"
        return text.encode("utf-8", "surrogatepass")
