"""The schema of conf/data: which text or conversations, how they are split, and the rows that a step takes."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from typing import Any

from omegaconf import MISSING

from llm.config.documents import CleaningConfig, LayoutConfig, no_path
from llm.config.fields import (
    CHAT,
    HOW,
    LENGTH,
    ROWS,
    SHARES,
    SHARES_OF_TOKENS,
    TEXT,
    check_settings,
    refuse_below,
    refuse_unused,
    setting,
)
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

    use: str = setting(MISSING, HOW)  # a choice of conf/data
    weight: float | None = setting(None, SHARES, above=0)  # of the bytes trained on; None, of all: by size
    max_bytes: int | None = setting(None, SHARES, at_least=1)  # of its training text, no more is trained on
    max_tokens: int | None = setting(None, SHARES_OF_TOKENS, at_least=1)  # the same in tokens
    kind: DataKind = setting(MISSING, TEXT)  # from here on as in DataConfig
    source: DataSource = setting(DataSource.files, TEXT)
    path: str | None = setting(None, HOW, is_file=True)
    text_field: str = setting("text", TEXT, fault=no_path)
    layout: LayoutConfig = setting(LayoutConfig(), TEXT)
    cleaning: CleaningConfig = setting(CleaningConfig(), TEXT)
    bad_records: BadRecords = setting(BadRecords.refuse, TEXT)

    def __post_init__(self) -> None:
        check_settings(self, "data")
        if self.kind is not DataKind.text or self.source is DataSource.mixture:
            what = "a mixture itself" if self.source is DataSource.mixture else f"{self.kind.value}, not text"
            raise ConfigError(f"data.use={self.use} is {what}. Use a choice of text such as korean_law.")
        _check_source(self.source, self.path, self.use, self.kind)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Documents or conversations, how they are split, and the rows that a step takes."""

    name: str = setting(MISSING, HOW, is_public=True)
    kind: DataKind = setting(MISSING, TEXT)
    source: DataSource = setting(DataSource.files, TEXT)
    path: str | None = setting(None, HOW, is_file=True)  # file, folder, glob or URL; its content is in the identity
    text_field: str = setting("text", TEXT, fault=no_path)  # path of a record's text, for kind text
    layout: LayoutConfig = setting(LayoutConfig(), TEXT)
    cleaning: CleaningConfig = setting(CleaningConfig(), TEXT)
    held_out_share: float = setting(0.01, TEXT, above=0, below=1)  # of the documents, by hash of their text
    bad_records: BadRecords = setting(BadRecords.refuse, TEXT)
    num_workers: int | None = setting(None, HOW, at_least=1)  # processes that encode text; None: one for each core
    sequence_length: int = setting(256, LENGTH, at_least=2)  # tokens per row
    # rows per optimizer step, over all devices
    batch_size: int = setting(32, ROWS, at_least=1, computed_from=("batch_tokens",))
    batch_tokens: int | None = setting(None, HOW)  # in place of batch_size, which is computed from it
    packing: Packing = setting(Packing.auto, ROWS)
    map: dict[str, str] = setting({}, HOW)  # your columns: {question: 질의, answer: 응답}
    system_prompt: str | None = setting(None, CHAT)  # of conversations that have none
    overlong: Overlong = setting(Overlong.drop, CHAT)  # conversations longer than sequence_length
    parts: Any = None  # of a mixture: name -> PartConfig, of which a user writes what is needed
    tokenizer_part: str | None = setting(None, HOW)  # that its tokenizer learns from; None: all of them

    def __post_init__(self) -> None:
        self._map_columns()
        check_settings(self, "data")
        _check_source(self.source, self.path, self.name, self.kind)
        self._check_parts()
        if self.batch_tokens is not None:
            self.batch_size = _rows_of(self.batch_tokens, self.sequence_length)
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
            why = f"is for data=mixture, not for {self.name}. Leave it out."
            return refuse_unused(self, "data", ("parts", "tokenizer_part"), why)
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
        why = f"is for conversations, and data={self.name} is text. Leave it out."
        refuse_unused(self, "data", ("system_prompt", "overlong"), why)

    def _refuse_what_is_for_text(self) -> None:
        self.packing = Packing.padded if self.packing is Packing.auto else self.packing
        if self.packing is Packing.concatenate:
            raise ConfigError(
                "data.packing=concatenate is for text: it would cut conversations anywhere. Choose "
                "data.packing=best_fit, or padded."
            )
        if self.system_prompt is not None and not self.system_prompt.strip():
            raise ConfigError("data.system_prompt is empty. Write one, or leave it out.")
        why = "is for text: conversations are rows of unequal length. Set data.batch_size in its place."
        refuse_unused(self, "data", ["batch_tokens"], why)
        why = f"is for text, which becomes shards; data={self.name} does not. Leave it out."
        refuse_unused(self, "data", ["num_workers"], why)


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
    refuse_below("data.batch_tokens", batch_tokens, sequence_length)
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
