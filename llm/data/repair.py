"""A text -> the same with its characters, spaces and markup repaired and personal data masked.

Each function looks once for what it repairs, and returns the text itself where there is nothing: most text is clean.
"""

import re
import unicodedata
from html import unescape

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


_BLOCK = re.compile(r"<(script|style)\b[^>]{0,500}>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_BREAK = re.compile(r"<(?:br|/p|/div|/li|/tr|/h[1-6])\b[^<>]{0,100}>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,15}(?:\s[^<>]{0,500})?/?>|<!--.{0,2000}?-->", re.DOTALL)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]{2,10});")
_BOILERPLATE = re.compile(
    r"""
    .{0,60}(?:무단\s?(?:전재|복제|배포)|재배포\s?(?:금지|를\s?금|시)|All\s?rights\s?reserved).{0,60}
    | \W{0,3}(?:ⓒ|©|copyright|저작권자).{0,80}
    | \W{0,3}(?:로그인|회원가입|공유하기|목록(?:으로)?|맨\s?위로|top|인쇄(?:하기)?|스크랩
        |댓글(?:\s?\d+개?)?|좋아요(?:\s?\d+)?
        |이전\s?글|다음\s?글|관련\s?기사|기사\s?제보|구독(?:하기)?|더\s?보기|닫기|메뉴|검색|홈|본문\s?바로\s?가기|글자\s?크기.{0,20}
        |페이스북|트위터|카카오(?:톡|스토리)|네이버\s?(?:블로그|밴드)|url\s?복사)
      (?:[\s|/>·,]+(?:로그인|회원가입|공유하기|목록|인쇄|스크랩|댓글|좋아요|페이스북|트위터|카카오(?:톡|스토리)|메뉴|검색|홈))*\W{0,3}
    | (?:https?://|www\.)\S+
    | .{0,30}(?:javascript|자바스크립트|쿠키|cookie).{0,20}(?:활성화|사용할\s?수\s?없|enable|동의).{0,40}
    """,
    re.VERBOSE | re.IGNORECASE,
)
BOILERPLATE_CHARACTERS = 160  # characters of a line that can be boilerplate


def remove_markup(text: str) -> str:
    """The text without tags, with entities as their characters, and without boilerplate lines."""
    if "<" in text:
        text = _TAG.sub("", _BREAK.sub("\n", _BLOCK.sub("", text)))
    if "&" in text and _ENTITY.search(text):
        text = unescape(text)
    lines = text.split("\n")
    kept = [line for line in lines if len(line) > BOILERPLATE_CHARACTERS or not _BOILERPLATE.fullmatch(line.strip())]
    return text if len(kept) == len(lines) else "\n".join(kept)


# Whether there is anything to look at closely: the patterns below are slow to find nothing, for they look behind first.
_CANDIDATE = re.compile(r"[0-9+][0-9() .-]{7,22}[0-9]")
_NUMBER = re.compile(
    r"""
    (?<![\d-])(?:
      (?P<resident> \d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]) [ ]?-?[ ]? [1-8]\d{6} )
    | (?P<card> \d{4}(?P<part>[- ]?)\d{4}(?P=part)\d{4}(?P=part)\d{4} )
    | (?P<mobile> 01[016789](?P<dash>[-. ]?)\d{3,4}(?P=dash)\d{4} )
    | (?P<phone> (?:02|0[3-6][1-5]|070|050\d|080)(?:[-.]|\)[ ]?)\d{3,4}[-.]\d{4} | 1[568]\d{2}-\d{4} )
    | (?P<abroad> \+82[ -]?(?:\(0\))?(?:10|2|[3-6][1-5]|70)[ -]?\d{3,4}[ -]?\d{4} )
    )(?![\d-]|\.\d)
    """,
    re.VERBOSE | re.ASCII,
)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,4}[a-z]{2,10}(?![\w-])", re.ASCII | re.IGNORECASE)
_NAMES = {"resident": "[주민등록번호]", "card": "[카드번호]", "mobile": "[전화번호]", "phone": "[전화번호]"}


def mask_personal_data(text: str) -> str:
    """The text with each number or address in its place named, none left.

    A card number is one whose last digit checks (Luhn); a resident number, one that begins with a date. Service numbers
    such as 1588-1234 are phones too.
    """
    if "@" in text:
        text = _EMAIL.sub("[이메일]", text)
    return _NUMBER.sub(_name, text) if _CANDIDATE.search(text) else text


def _name(match: re.Match[str]) -> str:
    kind = next(name for name in ("resident", "card", "mobile", "phone", "abroad") if match[name] is not None)
    if kind == "card" and not _is_card(re.sub(r"\D", "", match[0])):
        return match[0]
    return _NAMES.get(kind, "[전화번호]")


def _is_card(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return digits[0] in "3456789" and (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0
