"""The schema of conf/data: where records sit in a file, what is done to them, how they are split, and a step's rows."""

import re
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import PurePath
from typing import Any

from omegaconf import MISSING

from llm.config.fields import HOW, check_settings, setting
from llm.errors import ConfigError, nearest

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


class DataKind(Enum):
    text = "text"
    conversations = "conversations"


class DataSource(Enum):
    files = "files"
    mixture = "mixture"  # data.parts


class BadRecords(Enum):
    refuse = "refuse"
    drop = "drop"


class Packing(Enum):
    concatenate = "concatenate"  # documents end to end, cut where a row is full
    best_fit = "best_fit"  # only documents longer than a row are cut; the rest go where they fit best
    padded = "padded"  # one document a row
    auto = "auto"  # concatenate; of conversations padded


class Overlong(Enum):
    drop = "drop"
    cut = "cut"  # the oldest questions and answers go until the rest fits; the system prompt stays


# Stages whose result a setting does not change, by what it is about; CHAT is another.
TEXT = ("tokenizer", "shards", "pretrain")  # which are made from documents, whose digest says which text
SHARES = ("finetune", "evaluate")  # how much of each text is learned from
ROWS = ("documents", "tokenizer", "shards", "evaluate")  # how documents become training rows
OF_FILES = ("source", (DataSource.files,))
OF_TEXT, OF_CHATS = ("kind", (DataKind.text,)), ("kind", (DataKind.conversations,))


def _no_maker(name: str) -> str | None:
    return None if re.fullmatch(r"llm\.demo\.\w+:\w+", name) else "makes no data. Leave it out."


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """Which files are read, how, and what is done to what they hold."""

    kind: DataKind = setting(MISSING, not_of=TEXT)
    source: DataSource = setting(DataSource.files, not_of=TEXT)
    path: str | None = setting(None, HOW, is_file=True)  # file, folder, glob or URL; its content is in the identity
    made_by: str | None = setting(None, HOW, fault=_no_maker)  # module:function of llm.demo that makes the file
    rights: str | None = setting(None, HOW)  # what to know before publishing what was trained on it
    text_field: str = setting("text", not_of=TEXT, fault=no_path, only_with=OF_FILES)  # path of a text, for kind text
    layout: LayoutConfig = setting(LayoutConfig(), not_of=TEXT, only_with=OF_FILES)
    cleaning: CleaningConfig = setting(CleaningConfig(), not_of=TEXT)
    bad_records: BadRecords = setting(BadRecords.refuse, not_of=TEXT)


@dataclass(kw_only=True, slots=True)
class PartConfig(SourceConfig):
    """A part of a mixture: a choice of conf/data, what differs from it, and how much of it is trained on.

    What neither says is as in the mixture's own data.cleaning and data.bad_records.
    """

    use: str = setting(MISSING, HOW)  # a choice of conf/data
    weight: float | None = setting(None, not_of=SHARES, above=0)  # of the bytes trained on; None, of all: by size
    max_bytes: int | None = setting(None, not_of=SHARES, at_least=1)  # of its training text, no more is trained on
    max_tokens: int | None = setting(None, not_of=("tokenizer", *SHARES), at_least=1)  # the same in tokens


@dataclass(kw_only=True, slots=True)
class DataConfig(SourceConfig):
    """Documents or conversations, how they are split, and the rows that a step takes."""

    name: str = setting(MISSING, HOW)
    held_out_share: float = setting(0.01, not_of=TEXT, above=0, below=1)  # of the documents, by hash of their text
    # processes that encode text; None: one for each core
    num_workers: int | None = setting(None, HOW, at_least=1, only_with=OF_TEXT)
    # tokens per row
    sequence_length: int = setting(
        256, not_of=("documents", "tokenizer", "shards"), at_least=2, computed_from=("sequence_bytes",)
    )
    # raw bytes per row on average, of which sequence_length is computed by the tokenizer's bytes per token
    sequence_bytes: int | None = setting(
        None, not_of=(*ROWS[:3], "pretrain"), at_least=8, only_with=OF_TEXT, only_where_set=True
    )
    # rows per optimizer step, over all devices
    batch_size: int = setting(32, not_of=ROWS, at_least=1, computed_from=("batch_tokens",))
    batch_tokens: int | None = setting(None, HOW, at_least=1, only_with=OF_TEXT)  # of which batch_size is computed
    packing: Packing = setting(Packing.auto, not_of=ROWS)
    map: dict[str, str] = setting({}, HOW)  # your columns: {question: 질의, answer: 응답}
    system_prompt: str | None = setting(None, not_of=CHAT, only_with=OF_CHATS)  # of conversations that have none
    overlong: Overlong = setting(Overlong.drop, not_of=CHAT, only_with=OF_CHATS)  # longer than sequence_length
    parts: Any = setting(
        None, only_where_set=True
    )  # of a mixture: name -> PartConfig, of which what is needed is typed
    # that its tokenizer learns from; None: all of them
    tokenizer_part: str | None = setting(None, HOW, only_with=("parts", bool))

    def __post_init__(self) -> None:
        self._map_columns()
        check_settings(self, "data")
        _check_source("data", self)
        if self.is_mixture:
            self._check_parts()
        if self.batch_tokens is not None and self.sequence_bytes is not None:
            raise ConfigError(
                f"data.batch_tokens={self.batch_tokens} is not known in rows before data.sequence_bytes="
                f"{self.sequence_bytes} is in tokens. Set data.batch_size in place of data.batch_tokens."
            )
        if self.batch_tokens is not None:
            self.batch_size, rest = divmod(self.batch_tokens, self.sequence_length)
            if rest or not self.batch_size:
                raise ConfigError(
                    f"data.batch_tokens={self.batch_tokens} is no multiple of data.sequence_length="
                    f"{self.sequence_length}. Set it to {max(1, self.batch_size) * self.sequence_length}."
                )
        if self.kind is DataKind.conversations and self.packing is Packing.concatenate:
            raise ConfigError(
                "data.packing=concatenate would cut conversations anywhere. Set data.packing=best_fit, or padded."
            )
        if self.packing is Packing.auto:
            self.packing = Packing.padded if self.kind is DataKind.conversations else Packing.concatenate

    @property
    def is_mixture(self) -> bool:
        return self.source is DataSource.mixture

    def part(self, name: str) -> "DataConfig":
        """The data config of one part by itself, split and laid out in rows as the mixture is."""
        part: PartConfig = self.parts[name]
        own = {f.name: getattr(part, f.name) for f in fields(SourceConfig)}
        return replace(self, name=part.use, **own, parts=None, tokenizer_part=None)

    def _map_columns(self) -> None:
        """Put what data.map says where data.text_field and data.layout have it."""
        paths: dict[str, Any] = dict(self.map)
        for key in paths:
            if key not in COLUMNS[self.kind]:
                hint = nearest(key, COLUMNS[self.kind], otherwise="Choose one of")
                raise ConfigError(f"data.map: {key} is nothing that data={self.name} reads. {hint}")
        self.text_field = paths.pop("text", self.text_field)
        self.layout = replace(self.layout, **paths)

    def _check_parts(self) -> None:
        if not self.parts:
            raise ConfigError(
                "data.parts is empty. Set data.parts={law: {use: korean_law, weight: 3}, books: {use: text, path: "
                "data/books, weight: 7}}: a name, a choice of conf/data and a weight for each part."
            )
        for name, part in self.parts.items():
            key = f"data.parts.{name}"
            check_settings(part, key)
            if part.kind is not DataKind.text or part.source is DataSource.mixture:
                raise ConfigError(f"{key}.use={part.use} is no text. Use a choice of text such as korean_law.")
            _check_source(key, part)
            if (part.weight is None) != (next(iter(self.parts.values())).weight is None):
                raise ConfigError(f"{key}.weight: give every part a weight, or none: then each counts by its size.")
        if self.tokenizer_part is not None and self.tokenizer_part not in self.parts:
            hint = nearest(self.tokenizer_part, self.parts, otherwise="Choose one of")
            raise ConfigError(f"data.tokenizer_part={self.tokenizer_part} is none of data.parts. {hint}")


COLUMNS = {
    DataKind.text: ("text",),
    DataKind.conversations: ("question", "input", "answer", "system", "messages", "role", "content", "text"),
}


def _check_source(key: str, data: DataConfig | PartConfig) -> None:
    """Refuse files without a path, and a path that is not read."""
    if data.source is DataSource.files and data.path is None:
        raise ConfigError(f"{key}.path is missing. Set {key}.path=<file, folder or glob of {_FILES_OF[data.kind]}>.")
    name, choose = (data.use, ".use") if isinstance(data, PartConfig) else (data.name, "")
    is_made = data.made_by and PurePath(str(data.path)).stem == name
    if data.path is not None and (data.source is not DataSource.files or (data.made_by and not is_made)):
        raise ConfigError(f"{key}.path={data.path} is not what {name} reads. Choose {key}{choose}={data.kind.value}.")


_FILES_OF = {
    DataKind.text: "txt, jsonl, json, csv, tsv or parquet",
    DataKind.conversations: "jsonl, json, csv or parquet with messages, or question and answer",
}
