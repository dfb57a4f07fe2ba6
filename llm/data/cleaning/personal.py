"""Personal data in Korean text -> the names of what it was: [주민등록번호], [전화번호], [이메일], [카드번호]."""

import re

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
