"""Characters and spaces as Korean text should have them.

Each function looks once for what it repairs, and returns the text itself where there is nothing: most text is clean.
"""

import re
import unicodedata

_MIDDLE_DOTS = "\u318d\uff65\u30fb\u2027\u2219\u22c5"  # ㆍ ･ ・ ‧ ∙ ⋅, all typed for ·
_LINE_ENDS = "\x0b\x0c\x85\u2028\u2029"
_SPACES = "\t\u00a0\u1680\u202f\u205f\u3000\u3164\uffa0" + "".join(map(chr, range(0x2000, 0x200B)))
# Zero-width joiner and non-joiner (200C, 200D) stay: emoji and other scripts are written with them.
_DELETED = [
    *(code for code in range(0x20) if chr(code) not in "\t\n\r\x0b\x0c"),
    *range(0x7F, 0x85),
    *range(0x86, 0xA0),
    0xAD,  # soft hyphen
    0x200B,
    *range(0x200E, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
]
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U0010fffd"

_TABLE = (
    dict.fromkeys(map(ord, _MIDDLE_DOTS), "·") | dict.fromkeys(map(ord, _LINE_ENDS), "\n") | dict.fromkeys(_DELETED, "")
)
_ODD = re.compile(f"[{''.join(map(chr, _TABLE))}{_PRIVATE}]")
_PRIVATE_USE = re.compile(f"[{_PRIVATE}]+")
_OLD_HANGUL = re.compile("[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")
_ODD_SPACE = re.compile(f"[{_SPACES}]")
_SPACE_TABLE = dict.fromkeys(map(ord, _SPACES), " ")


def repair_characters(text: str) -> str:
    """The text in NFC with one line end, one middle dot, and no control, zero-width or private-use character.

    Of text in old Hangul the ㆍ (araea) stays: there it is a letter.
    """
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not _ODD.search(text):
        return text
    table = _TABLE if not _OLD_HANGUL.search(text) else {**_TABLE, 0x318D: "\u318d"}
    return _PRIVATE_USE.sub("", text.translate(table))


def repair_spaces(text: str) -> str:
    """The text with plain spaces, one at a time, none at a line's end, and at most one blank line in a row."""
    if _ODD_SPACE.search(text):
        text = text.translate(_SPACE_TABLE)
    if "  " in text:
        text = re.sub("  +", " ", text)
    if " \n" in text:
        text = text.replace(" \n", "\n")
    if "\n\n\n" in text:
        text = re.sub("\n\n\n+", "\n\n", text)
    return text.strip(" \n") if text[:1] in " \n" or text[-1:] in " \n" else text
