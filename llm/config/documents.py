"""The schema of data.layout and data.cleaning: where in a file the records sit, and what is done to them."""

import re
from dataclasses import dataclass
from enum import Enum

from llm.config.fields import setting

CHAT = ("documents", "tokenizer", "shards", "pretrain")  # whose text no conversation is of


class FileFormat(Enum):
    auto = "auto"  # by the suffix
    txt = "txt"
    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    arrow = "arrow"


class Shape(Enum):
    auto = "auto"  # whichever of these a record has the keys of
    messages = "messages"  # a list of turns with roles
    pairs = "pairs"  # question or instruction, perhaps input, and answer
    tagged = "tagged"  # one text whose marks tell the turns apart, such as ### 질문: ... ### 답변: ...


class RepeatedTurns(Enum):
    merge = "merge"  # two turns of one role, one after the other, are one, with a line feed between
    refuse = "refuse"


class CleaningLevel(Enum):
    off = "off"
    light = "light"  # repairs characters and spaces, masks personal data, drops exact duplicates
    strict = "strict"  # light, and what is not running Korean text goes


PATH = re.compile(r"[^.\[\]|]+(\[\])*(\.[^.\[\]|]+(\[\])*)*")


def is_path(path: str) -> bool:
    """Whether this is a path expression."""
    return all(PATH.fullmatch(choice) for choice in path.split("|"))


def no_path(path: str) -> str | None:
    return None if is_path(path) else "is no path. Write keys as a.b, items of a list as a[].b, alternatives as a|b."


def _no_roles(names: dict[str, str]) -> str | None:
    unknown = set(names.values()) - {"system", "user", "assistant"}
    return f"maps to {min(unknown)}, which is no role. Map to system, user or assistant." if unknown else None


def _no_pattern(pattern: str) -> str | None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return f"is no regular expression: {error}."
    return None if groups == 1 else "needs one pair of ( ), around what counts."


def _no_character(text: str) -> str | None:
    return None if len(text) == 1 else "is not one character. Set one such as ';'."


@dataclass(kw_only=True, slots=True)
class LayoutConfig:
    """Where in a file the records sit.

    A path names keys: `a.b`, of each item of a list `a[].b`, or the first of several that is there `a|b`.
    """

    files: list[str] = setting([])  # patterns of file names, such as *_TEXT_*.json; none: every file
    skip: list[str] = setting([])  # patterns of file names that are left out
    format: FileFormat = FileFormat.auto
    records: str | None = setting(None, fault=no_path)  # path in one JSON value; None: a list's items, or the whole
    require: str | None = setting(None, fault=no_path)  # path that a record must have; others are left out with a count
    join: str = "\n"  # between the texts that data.text_field finds in one record
    header: bool = True  # whether the first row of a csv or tsv names the columns; else they are 0, 1, 2...
    delimiter: str | None = setting(None, fault=_no_character)  # of a csv; None: what line 1 has most of , ; | and tab
    group: str | None = setting(None, fault=no_path)  # path whose equal values, one after another, make one document
    # regular expression whose one group is what counts of that value
    group_pattern: str | None = setting(None, fault=_no_pattern, only_with=("group", bool))
    messages: str = setting("messages", fault=no_path)  # path of the list of turns, for kind conversations
    role: str = "role"
    content: str = "content"
    roles: dict[str, str] = setting({}, fault=_no_roles)  # names of roles in the file -> system, user, assistant
    system: str | None = setting(None, fault=no_path)  # path of a system prompt beside the turns
    question: str = setting("question", fault=no_path)  # where there are no turns
    input: str | None = setting(None, fault=no_path)  # path of what goes below the question; "nan" and "" are none
    answer: str = setting("answer", fault=no_path)
    shape: Shape = setting(Shape.auto, not_of=CHAT)
    tags: dict[str, str] = setting({}, not_of=CHAT, fault=_no_roles)  # marks in tagged text -> user, assistant, system
    repeated_turns: RepeatedTurns = setting(RepeatedTurns.merge, not_of=CHAT)


@dataclass(kw_only=True, slots=True)
class CleaningConfig:
    """What is done to documents before they are split; each step can be turned on or off against its level."""

    level: CleaningLevel = CleaningLevel.off
    characters: bool | None = None  # NFC; controls, zero-width and private-use characters out; middle dots as one
    spaces: bool | None = None  # every kind of space as one; at most one blank line in a row
    markup: bool | None = None  # HTML tags and entities, and lines that sites put on every page
    personal_data: bool | None = None  # resident, phone and card numbers and e-mail addresses become [주민등록번호] ...
    hangul: bool | None = None  # drop below min_hangul_share
    length: bool | None = None  # drop below min_characters or above max_characters
    repetition: bool | None = None  # drop above max_repetition
    exact_duplicates: bool | None = None  # keep the first of texts that are the same but for white space
    near_duplicates: bool | None = None  # keep the first of texts whose similarity reaches near_duplicate_similarity
    min_hangul_share: float = setting(0.3, at_least=0, at_most=1)  # of the letters
    min_characters: int = setting(30, at_least=0)
    max_characters: int = setting(1_000_000, at_least=1)
    # share of characters in lines, or in runs of words, that came before in the document
    max_repetition: float = setting(0.3, at_least=0, at_most=1)
    # Jaccard similarity of 5-character shingles, as MinHash estimates it
    near_duplicate_similarity: float = setting(0.8, at_least=0, at_most=1)
