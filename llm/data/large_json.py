"""A JSON text too large to be parsed whole -> the items of the list that a path leads to, one at a time."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from llm.data.decoding import Text
from llm.data.records import Rejected, RejectedError
from llm.data.values import EACH, follow, steps

MAX_RECORD = 128 * 2**20  # characters from the end of one item to the end of the next
BUFFER = 2**20  # bytes read at once
LONGEST_TOKEN = 32  # characters of a name such as -Infinity or of an escape: an error so near the end may be of the cut

_SPACE = re.compile(r"[ \t\n\r]*")
_parse = json.JSONDecoder().raw_decode


def is_split(records: str | None, head: bytes) -> bool:
    """Whether a text that begins so has a list where its records are, which need not be parsed whole."""
    if records is None:
        return head.lstrip()[:1] == b"["
    return "|" not in records and EACH in records


def items(text: Text, records: str | None, origin: str) -> Iterator[tuple[Any, str] | Rejected]:
    """(item, origin[its index]) of each, up to what is wrong."""
    path = [EACH] if records is None else steps(records)
    outer = path.index(EACH)
    index = 0
    try:
        for item in _items(_Scanner(text), path[:outer]):
            for record in follow(item, path[outer + 1 :]):
                yield record, f"{origin}[{index}]"
                index += 1
    except UnicodeDecodeError as error:
        wrong = text.wrong_byte(error)
        yield Rejected(f"{origin}[{index}]", wrong.reason, wrong.fix)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        fix = f"The records before it are read; repair it, or remove the file ({why})"
        yield Rejected(f"{origin}[{index}]", "not JSON", fix)
    except RejectedError as error:
        yield error.at(f"{origin}[{index}]")
    else:
        text.read_on()
        if index == 0:
            fix = "Set data.layout.records, or leave the file out with data.layout.skip"
            yield Rejected(origin, f"{records or 'the list'} finds no record", fix)


def _items(scanner: "_Scanner", keys: list[str]) -> Iterator[Any]:
    """The items of the list at these keys, one within the other; a value that is no list counts as a list of one."""
    for key in keys:
        if not scanner.enter(key):
            return
    if scanner.sign() != "[":
        yield scanner.value()
        return
    scanner.take("[")
    while scanner.sign() != "]":
        yield scanner.value()
        if scanner.sign() != "]":
            scanner.take(",")
    scanner.take("]")


class _Scanner:
    """A text that is read as far as it is parsed."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._codec = ""
        self._ready, self._at = "", 0
        self._ended = False

    def sign(self) -> str:
        """The next character that is no space; none at the end."""
        while True:
            space = _SPACE.match(self._ready, self._at)
            assert space is not None  # it matches nothing, too
            self._at = space.end()
            if self._at < len(self._ready) or not self._more():
                return self._ready[self._at : self._at + 1]

    def take(self, wanted: str) -> None:
        if self.sign() != wanted:
            raise json.JSONDecodeError(f"Expecting {wanted!r} delimiter", self._ready, self._at)
        self._at += 1

    def value(self) -> Any:
        """The next value, of which as much is read as it needs."""
        self.sign()
        while True:
            try:
                value, end = _parse(self._ready, self._at)
                if end < len(self._ready) or not self._more():  # a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._ready) - LONGEST_TOKEN
                if not is_cut or not self._more():
                    raise

    def enter(self, key: str) -> bool:
        """Go to the value of an object's key; False where this is no object, or has no such key."""
        if self.sign() != "{":
            return False
        self.take("{")
        while self.sign() != "}":
            found = self.value()
            self.take(":")
            if found == key:
                return True
            self.value()
            if self.sign() != "}":
                self.take(",")
        return False

    def _more(self) -> bool:
        """Read on, twice as much each time that one value is not whole; False at the end."""
        left = len(self._ready) - self._at
        if left > MAX_RECORD:
            fix = "Say where the records are with data.layout.records"
            raise RejectedError(f"longer than {MAX_RECORD >> 20} MiB", fix)
        if self._ended:
            return False
        data = self._text.read(max(BUFFER, left))
        if (codec := self._text.codec_of(data)) != self._codec:  # all before was ASCII
            self._codec, self._decoder = codec, codecs.getincrementaldecoder(codec)()
        self._ended = not data
        self._ready = self._ready[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0
        return True
