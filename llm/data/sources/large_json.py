"""A json file too large to be read whole -> its records, one at a time, by the path that says where they are."""

import re
from collections.abc import Iterator
from typing import Any

from llm.data.records import Fault

MAX_RECORD = 128 * 2**20  # bytes from the end of one record to the end of the next
BUFFER = 2**20
# The parser writes ? for half a character, and says nothing: it must not get that far.
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|[^u])")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_CUT_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)\Z")


class TooLongError(Exception):
    """No record ended within MAX_RECORD bytes."""


class HalfCharacterError(Exception):
    """The escape of a lone surrogate."""


def prefix(records: str | None, head: bytes) -> str | None:
    """The place of the records in the parser's words (data[].text[] is data.item.text.item); None if it has no word.

    `head`: how the file begins.
    """
    if records is None:
        return "item" if head.lstrip()[:1] == b"[" else None
    if "|" in records or not records.endswith("[]"):
        return None
    return records.replace("[]", ".item")


def large_json(head: bytes, stream: Any, place: str, origin: str) -> Iterator[tuple[int, Any] | Fault]:
    """(index, record) for each, up to what is wrong; `head`: the bytes that were read from the stream before."""
    import ijson

    source = _Source(head, stream)
    index = 0
    try:
        for record in ijson.items(source, place, use_float=True, buf_size=BUFFER):
            source.since_record = 0
            yield index, record
            index += 1
    except ijson.JSONError as error:
        fix = f"The records before it are read; repair it, or remove the file ({_first_line(error)})"
        yield Fault(f"{origin}[{index}]", "not JSON", fix)
    except HalfCharacterError:
        yield Fault(f"{origin}[{index}]", "holds half a character (a lone surrogate)", "Repair it, or remove the file")
    except TooLongError:
        fix = "Say where the records are with data.layout.records"
        yield Fault(f"{origin}[{index}]", f"longer than {MAX_RECORD >> 20} MiB", fix)
    if index == 0:
        fix = "Set data.layout.records, or leave the file out with data.layout.skip"
        yield Fault(origin, f"{place.replace('.item', '[]')} finds no record", fix)


class _Source:
    """What the parser reads from; it counts, and stops before what the parser would change in silence."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self._head, self._stream = head, stream
        self._kept = b""  # the beginning of an escape, which goes on in what comes next
        self._ended = False
        self.since_record = 0

    def read(self, size: int) -> bytes:
        if size == 0:
            return b""
        while not self._ended:
            data, self._head = (self._head[:size], self._head[size:]) if self._head else (self._stream.read(size), b"")
            self._ended = not data
            self.since_record += len(data)
            if self.since_record > MAX_RECORD + BUFFER:
                raise TooLongError
            if given := self._checked(self._kept + data):
                return given
        return b""

    def _checked(self, data: bytes) -> bytes:
        """The data up to the escape of half a character, or to an escape that is not all there yet."""
        end, is_half = _whole_escapes(data, self._ended)
        if is_half and end == 0:
            raise HalfCharacterError
        self._kept = data[end:]
        self._ended &= not is_half  # what is kept is looked at once more
        return data[:end]


def _whole_escapes(data: bytes, ended: bool) -> tuple[int, bool]:
    """(how far the data has whole characters; whether half a character is what follows).

    `ended`: nothing comes after the data, so that an escape cut at its end stays cut.
    """
    last, high = 0, -1  # where the last escape ended; where a high surrogate began that waits for its low one
    if _SURROGATE.search(data):
        for escape in _ESCAPE.finditer(data):
            code = int(escape[1], 16) if escape[1] else 0
            if high >= 0:
                if not (0xDC00 <= code < 0xE000 and escape.start() == last):
                    return high, True
                high = -1
            elif 0xDC00 <= code < 0xE000:
                return escape.start(), True
            elif 0xD800 <= code < 0xDC00:
                high = escape.start()
            last = escape.end()
    if high >= 0:
        may_go_on = not ended and len(data) - last < len(b"\\udc00") and b"\\udc00".startswith(data[last:][:1])
        return high, not may_go_on
    cut = None if ended else _CUT_ESCAPE.search(data, last)
    return (cut.start(1) if cut else len(data)), False


def _first_line(error: Exception) -> str:
    message = error.args[0] if error.args else ""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    return text.strip().partition("\n")[0]
