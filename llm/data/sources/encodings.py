"""The bytes at the start of a file -> the encoding that they are in: utf-8, utf-8-sig, utf-16 or cp949."""

import codecs
import re

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
