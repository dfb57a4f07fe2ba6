"""The schema of data.layout and data.cleaning: where in a file the records sit, and what is done to them."""

import re
from dataclasses import dataclass, field
from enum import Enum

from llm.config.fields import CHAT, at_least
from llm.errors import ConfigError


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


@dataclass(kw_only=True, slots=True)
class LayoutConfig:
    """Where in a file the records sit.

    A path names keys: `a.b`, of each item of a list `a[].b`, or the first of several that is there `a|b`.
    """

    files: list[str] = field(default_factory=list)  # patterns of file names, such as *_TEXT_*.json; none: every file
    skip: list[str] = field(default_factory=list)  # patterns of file names that are left out
    format: FileFormat = FileFormat.auto
    records: str | None = None  # path of the records in one JSON value; None: the items of its list, or the whole
    require: str | None = None  # path of what a record must have; others are left out with a count
    join: str = "\n"  # between the texts that data.text_field finds in one record
    header: bool = True  # whether the first row of a csv or tsv names the columns; else they are 0, 1, 2...
    delimiter: str | None = None  # of a csv; None: the commonest of , ; | and tab in its first line
    group: str | None = None  # column or path whose equal values, one after another, make one document
    group_pattern: str | None = None  # regular expression whose first group is what counts of that value
    messages: str = "messages"  # path of the list of turns, for kind conversations
    role: str = "role"
    content: str = "content"
    roles: dict[str, str] = field(default_factory=dict)  # names of roles in the file -> system, user, assistant
    system: str | None = None  # path of a system prompt beside the turns
    question: str = "question"  # where there are no turns
    input: str | None = None  # path of what goes with the question, below it; "nan" and "" are none
    answer: str = "answer"
    shape: Shape = field(default=Shape.auto, metadata=CHAT)
    tags: dict[str, str] = field(default_factory=dict, metadata=CHAT)  # marks in tagged text -> user, assistant, system
    repeated_turns: RepeatedTurns = field(default=RepeatedTurns.merge, metadata=CHAT)

    def __post_init__(self) -> None:
        if self.group_pattern is not None:
            try:
                groups = re.compile(self.group_pattern).groups
            except re.error as error:
                raise ConfigError(f"data.layout.group_pattern={self.group_pattern}: {error}. Correct it.") from None
            if self.group is None or groups != 1:
                raise ConfigError(
                    f"data.layout.group_pattern={self.group_pattern} needs data.layout.group and one pair of ( )."
                )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"data.layout.delimiter={self.delimiter!r} is not one character. Set one such as ';'.")
        for key in ("roles", "tags"):
            if unknown := set(getattr(self, key).values()) - {"system", "user", "assistant"}:
                raise ConfigError(f"data.layout.{key}: {min(unknown)} is no role. Map to system, user or assistant.")
        for key in ("records", "require", "group", "messages", "system", "question", "input", "answer"):
            check_path(f"data.layout.{key}", getattr(self, key))


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
    exact_duplicates: bool | None = None  # keep the first of texts with the same letters and digits
    near_duplicates: bool | None = None  # keep the first of texts whose similarity reaches near_duplicate_similarity
    min_hangul_share: float = 0.3  # of the letters
    min_characters: int = 30
    max_characters: int = 1_000_000
    max_repetition: float = 0.3  # share of characters in lines, or in runs of words, that came before in the document
    near_duplicate_similarity: float = 0.8  # Jaccard similarity of 5-character shingles, as MinHash estimates it

    def __post_init__(self) -> None:
        for key in ("min_hangul_share", "max_repetition", "near_duplicate_similarity"):
            if not 0 <= (value := getattr(self, key)) <= 1:
                raise ConfigError(f"data.cleaning.{key}={value} is out of range. Set a share from 0 to 1.")
        for key, least in (("min_characters", 0), ("max_characters", self.min_characters)):
            at_least(f"data.cleaning.{key}", getattr(self, key), least)


PATH = re.compile(r"[^.\[\]|]+(\[\])*(\.[^.\[\]|]+(\[\])*)*")


def is_path(path: str) -> bool:
    """Whether this is a path expression."""
    return all(PATH.fullmatch(choice) for choice in path.split("|"))


def check_path(key: str, path: str | None) -> None:
    """Refuse what is no path expression."""
    if path is not None and not is_path(path):
        raise ConfigError(f"{key}={path} is no path. Write keys as a.b, items of a list as a[].b, alternatives as a|b.")
