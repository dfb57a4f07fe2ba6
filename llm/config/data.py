"""The schema of conf/data: which text or conversations, how they are split, and the rows that a step takes."""

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import Enum
from typing import Any

from omegaconf import MISSING

from llm.config.documents import CleaningConfig, LayoutConfig, check_path
from llm.config.fields import CHAT, HOW, LENGTH, ROWS, SHARES, SHARES_OF_TOKENS, TEXT, at_least, expand_home
from llm.errors import ConfigError


class DataKind(Enum):
    text = "text"
    conversations = "conversations"


class DataSource(Enum):
    files = "files"
    korean_law = "korean_law"
    korean_law_qa = "korean_law_qa"
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


@dataclass(kw_only=True, slots=True)
class PartConfig:
    """A part of a mixture: a choice of conf/data, what differs from it, and how much of it is trained on.

    What neither says is as in the mixture's own data.cleaning and data.bad_records.
    """

    use: str = field(default=MISSING, metadata=HOW)  # a choice of conf/data
    weight: float | None = field(default=None, metadata=SHARES)  # of the bytes trained on; None, of all: by size
    max_bytes: int | None = field(default=None, metadata=SHARES)  # of its training text, no more is trained on
    max_tokens: int | None = field(default=None, metadata=SHARES_OF_TOKENS)  # the same in tokens
    kind: DataKind = field(default=MISSING, metadata=TEXT)  # from here on as in DataConfig
    source: DataSource = field(default=DataSource.files, metadata=TEXT)
    path: str | None = field(default=None, metadata=HOW)
    text_field: str = field(default="text", metadata=TEXT)
    layout: LayoutConfig = field(default_factory=LayoutConfig, metadata=TEXT)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig, metadata=TEXT)
    bad_records: BadRecords = field(default=BadRecords.refuse, metadata=TEXT)

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.kind is not DataKind.text or self.source is DataSource.mixture:
            what = "a mixture itself" if self.source is DataSource.mixture else f"{self.kind.value}, not text"
            raise ConfigError(f"data.use={self.use} is {what}. Use a choice of text such as korean_law.")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ConfigError(f"data.weight={self.weight} is out of range. Set a number above 0.")
        for key in ("max_bytes", "max_tokens"):
            if (value := getattr(self, key)) is not None:
                at_least(f"data.{key}", value, 1)
        _check_source(self.source, self.path, self.use, self.kind)
        check_path("data.text_field", self.text_field)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Documents or conversations, how they are split, and the rows that a step takes."""

    name: str = field(default=MISSING, metadata=HOW)
    kind: DataKind = field(default=MISSING, metadata=TEXT)
    source: DataSource = field(default=DataSource.files, metadata=TEXT)
    path: str | None = field(default=None, metadata=HOW)  # file, folder, glob or URL; its content is in the identity
    text_field: str = field(default="text", metadata=TEXT)  # path of a record's text, for kind text
    layout: LayoutConfig = field(default_factory=LayoutConfig, metadata=TEXT)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig, metadata=TEXT)
    held_out_share: float = field(default=0.01, metadata=TEXT)  # of the documents, by hash of their text
    bad_records: BadRecords = field(default=BadRecords.refuse, metadata=TEXT)
    num_workers: int | None = field(default=None, metadata=HOW)  # processes that encode text; None: one for each core
    sequence_length: int = field(default=256, metadata=LENGTH)  # tokens per row
    batch_size: int = field(default=32, metadata=ROWS)  # rows per optimizer step, over all devices
    batch_tokens: int | None = field(default=None, metadata=HOW)  # in place of batch_size, which is computed from it
    packing: Packing = field(default=Packing.auto, metadata=ROWS)
    map: dict[str, str] = field(default_factory=dict, metadata=HOW)  # your columns: {question: 질의, answer: 응답}
    system_prompt: str | None = field(default=None, metadata=CHAT)  # of conversations that have none
    overlong: Overlong = field(default=Overlong.drop, metadata=CHAT)  # conversations longer than sequence_length
    parts: Any = None  # of a mixture: name -> PartConfig, of which a user writes what is needed
    tokenizer_part: str | None = field(default=None, metadata=HOW)  # that its tokenizer learns from; None: all of them

    def __post_init__(self) -> None:
        expand_home(self, "path")
        _check_source(self.source, self.path, self.name, self.kind)
        self._map_columns()
        self._check_parts()
        if not 0 < self.held_out_share < 1:
            raise ConfigError(
                f"data.held_out_share={self.held_out_share} is out of range. Set a share between 0 and 1, such as 0.01."
            )
        check_path("data.text_field", self.text_field)
        at_least("data.sequence_length", self.sequence_length, 2)
        at_least("data.batch_size", self.batch_size, 1)
        if self.batch_tokens is not None:
            self.batch_size = _rows_of(self.batch_tokens, self.sequence_length)
        if self.num_workers is not None:
            at_least("data.num_workers", self.num_workers, 1)
        if self.kind is DataKind.conversations:
            self._refuse_what_is_for_text()
        else:
            self._refuse_what_is_for_conversations()

    @property
    def is_mixture(self) -> bool:
        return self.source is DataSource.mixture

    def part(self, name: str) -> "DataConfig":
        """The data config of one part by itself, split and laid out in rows as the mixture is."""
        part: PartConfig = self.parts[name]
        own = {key: getattr(part, key) for key in ("kind", "source", "path", "text_field", "layout", "cleaning")}
        return replace(self, name=part.use, **own, bad_records=part.bad_records, parts=None, tokenizer_part=None)

    def _check_parts(self) -> None:
        if not self.is_mixture:
            for key in ("parts", "tokenizer_part"):
                if value := getattr(self, key):
                    raise ConfigError(f"data.{key}={value} is for data=mixture, not for {self.name}. Leave it out.")
            return
        if not self.parts:
            raise ConfigError(
                "data.parts is empty. Set data.parts={law: {use: korean_law, weight: 3}, books: {use: text, path: "
                "data/books, weight: 7}}: a name, a choice of conf/data and a weight for each part."
            )
        if self.text_field != "text" or self.layout != LayoutConfig():
            key = "layout" if self.text_field == "text" else "text_field"
            raise ConfigError(f"data.{key} is not used by data=mixture. Set it in a part: data.parts.<part>.{key}.")
        without = [name for name, part in self.parts.items() if part.weight is None]
        if 0 < len(without) < len(self.parts):
            other = next(name for name in self.parts if name not in without)
            raise ConfigError(
                f"data.parts.{without[0]}.weight is missing, but {other} has one. Give every part a weight, or none: "
                "then each counts by its size."
            )
        if self.tokenizer_part is not None and self.tokenizer_part not in self.parts:
            close = get_close_matches(self.tokenizer_part, self.parts, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"They are {', '.join(self.parts)}."
            raise ConfigError(f"data.tokenizer_part={self.tokenizer_part} is none of data.parts. {hint}")

    def _map_columns(self) -> None:
        """Put what data.map says where data.text_field and data.layout have it."""
        known = COLUMNS[self.kind]
        for key in self.map:
            if key not in known:
                close = get_close_matches(key, known, n=1)
                hint = f"Did you mean {close[0]}?" if close else f"Map {', '.join(known)}, each to a column of yours."
                raise ConfigError(f"data.map: {key} is nothing that data={self.name} reads. {hint}")
        if self.map and self.source is not DataSource.files:
            raise ConfigError(f"data.map is for files of yours, not for data={self.name}. Leave it out.")
        paths: dict[str, Any] = dict(self.map)
        self.text_field = paths.pop("text", self.text_field)
        self.layout = replace(self.layout, **paths)

    def _refuse_what_is_for_conversations(self) -> None:
        self.packing = Packing.concatenate if self.packing is Packing.auto else self.packing
        for key, default in (("system_prompt", None), ("overlong", Overlong.drop)):
            if (value := getattr(self, key)) is not default:
                shown = value.name if isinstance(value, Enum) else value
                raise ConfigError(
                    f"data.{key}={shown} is for conversations, and data={self.name} is text. Leave it out."
                )

    def _refuse_what_is_for_text(self) -> None:
        self.packing = Packing.padded if self.packing is Packing.auto else self.packing
        if self.packing is Packing.concatenate:
            raise ConfigError(
                "data.packing=concatenate is for text: it would cut conversations anywhere. Choose "
                "data.packing=best_fit, or padded."
            )
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ConfigError("data.system_prompt is empty. Write one, or leave it out.")
        if self.batch_tokens is not None:
            raise ConfigError(
                f"data.batch_tokens={self.batch_tokens} is for text: conversations are rows of unequal length. "
                "Set data.batch_size in its place."
            )
        if self.num_workers is not None:
            raise ConfigError(
                f"data.num_workers={self.num_workers} is for text, which becomes shards; data={self.name} does not. "
                "Leave it out."
            )


COLUMNS = {
    DataKind.text: ("text",),
    DataKind.conversations: ("question", "input", "answer", "system", "messages", "role", "content", "text"),
}


def _check_source(source: DataSource, path: str | None, name: str, kind: DataKind) -> None:
    """Refuse files without a path, and a path without files."""
    if source is DataSource.files and path is None:
        raise ConfigError(f"data.path is missing. Set data.path=<file, folder or glob of {_FILES_OF[kind]}>.")
    if source is DataSource.mixture and path is not None:
        raise ConfigError(f"data.path={path} is not used by data={name}. Set data.parts.<part>.path.")
    if source is not DataSource.files and path is not None:
        raise ConfigError(f"data.path={path} is not used by data={name}. Choose data={kind.value}.")


def _rows_of(batch_tokens: int, sequence_length: int) -> int:
    """The rows that have so many tokens."""
    at_least("data.batch_tokens", batch_tokens, sequence_length)
    if batch_tokens % sequence_length:
        below = batch_tokens // sequence_length * sequence_length
        raise ConfigError(
            f"data.batch_tokens={batch_tokens} is no multiple of data.sequence_length={sequence_length}. Set it to "
            f"{below} or {below + sequence_length}."
        )
    return batch_tokens // sequence_length


_FILES_OF = {
    DataKind.text: "txt, jsonl, json, csv, tsv or parquet",
    DataKind.conversations: "jsonl, json, csv or parquet with messages, or question and answer",
}
