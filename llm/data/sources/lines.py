"""A stream of bytes -> its lines as text, each of bounded length, in the encoding that the bytes are found to be in."""

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from llm.data.sources.archives import damages
from llm.data.sources.encodings import detect

MAX_LINE = 32 * 2**20  # bytes; a longer line is no record of anybody's, and must not fill the memory
HEAD = 2**18  # bytes that the encoding is detected by


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end; bytes that are not in the file's encoding are lone surrogates (surrogateescape)."""

    number: int  # from 1
    text: str
    size: int  # bytes, its end included
    too_long: bool = False  # longer than MAX_LINE: its text is not kept
    is_whole: bool = False  # every byte is in the file's encoding: known without another look at the text


class Lines:
    """The lines of a stream; `encoding` says what they are in once one has been read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: Any = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, HEAD)
        self.encoding: str | None = None  # None: plain ASCII so far
        self.bytes_read = 0

    def __iter__(self) -> Iterator[Line]:
        head, error = _read_head(self._stream)
        self.encoding = detect(head, at_end=len(head) < HEAD)
        stream: Any = _Headed(head, self._stream, error)
        if self.encoding is not None and self.encoding.startswith("utf-16"):
            stream = io.BufferedReader(_Utf8(stream, self.encoding), HEAD)
        codec = "cp949" if self.encoding == "cp949" else "utf-8"
        for number, (raw, size) in enumerate(_bounded(stream), 1):
            self.bytes_read += size
            if self.encoding is None and raw is not None and not raw.isascii():
                self.encoding = codec = detect(raw, at_end=False) or "utf-8"
            if raw is None:
                yield Line(number, "", size, too_long=True)
                continue
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                raw = raw[3:]
            try:
                text, is_whole = raw.decode(codec), True
            except UnicodeDecodeError:
                text, is_whole = raw.decode(codec, "surrogateescape"), False
            yield Line(number, text.rstrip("\r\n"), size, is_whole=is_whole)


def bad_byte(text: str) -> str | None:
    """The first byte of a line that is not in its encoding, as 0xbe; None where there is none."""
    if text.isascii() or encodes(text):
        return None
    place = next((ord(letter) for letter in text if "\udc80" <= letter <= "\udcff"), None)
    return None if place is None else f"0x{place - 0xDC00:02x}"


def encodes(text: str) -> bool:
    """Whether a text is all of whole characters: no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bounded(stream: Any) -> Iterator[tuple[bytes | None, int]]:
    """(the line with its end, or None if it is too long; its bytes)."""
    while raw := stream.readline(MAX_LINE + 1):
        if len(raw) <= MAX_LINE or raw.endswith(b"\n"):
            yield raw, len(raw)
            continue
        size = len(raw)
        while raw and not raw.endswith(b"\n"):
            raw = stream.readline(2**20)
            size += len(raw)
        yield None, size


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


class _Headed:
    """A stream whose first bytes were read before; what was wrong with it is raised when they are used up."""

    def __init__(self, head: bytes, stream: Any, error: BaseException | None) -> None:
        self._head, self._stream, self._error = io.BytesIO(head), stream, error

    def readline(self, limit: int) -> bytes:
        line = self._head.readline(limit)
        if len(line) == limit or line.endswith(b"\n"):
            return line
        if self._error is not None:
            raise self._error
        return line + bytes(self._stream.readline(limit - len(line)))

    def read(self, size: int) -> bytes:
        if data := self._head.read(size):
            return data
        if self._error is not None:
            raise self._error
        return bytes(self._stream.read(size))


class _Utf8(io.RawIOBase):
    """A UTF-16 stream as UTF-8; a code unit that is half a character becomes bytes that UTF-8 does not have."""

    def __init__(self, stream: _Headed, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            data = self._stream.read(2**16)
            self._ended = not data
            try:
                text = self._decoder.decode(data, final=self._ended)
            except UnicodeDecodeError:  # an odd last byte
                text = "\udcff"
            self._ready = text.encode("utf-8", "surrogatepass")
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
