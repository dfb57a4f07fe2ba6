"""The data config -> documents or conversations, with what was dropped counted and nothing skipped in silence."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.config.data import BadRecords, DataConfig, DataSource
from llm.data.cleaning import Cleaner, Dropped, as_json
from llm.data.files import Files, open_files
from llm.data.korean_law import questions, statutes
from llm.data.quarantine import quarantine
from llm.data.records import Conversation, Document, Rejected, Source
from llm.data.split import is_held_out, share_that_parts
from llm.errors import DataError
from llm.run.console import log
from llm.run.files import write_json

__all__ = ["Conversation", "Corpus", "Document", "open_corpus"]


class Corpus:
    """The records of one data config; each pass over them reads them anew, in the same order."""

    def __init__(self, config: DataConfig, source: Source) -> None:
        self._config = config
        self._source = source
        self.dropped: Counter[str] = Counter()  # reason -> records, in the last pass that ended
        self.passed_over: Counter[str] = Counter()  # reason -> what the config leaves out, in that pass
        self.cleaning: dict[str, Any] = {}  # what each cleaning step did, in that pass
        self.shapes: Counter[str] = Counter()  # shape -> conversations, in that pass
        self.repairs: Counter[str] = Counter()  # what was put right -> conversations
        self._left_out: Path | None = None

    @property
    def rights(self) -> str | None:
        """What to know before publishing what was trained on it."""
        return self._source.rights

    def digest(self) -> str:
        """SHA-256 over all that is read."""
        return self._source.digest()

    def records(self, *, held_out: bool) -> Iterator[Document | Conversation]:
        """The records of one side of the split.

        Raises:
            DataError: a record cannot be used and data.bad_records=refuse, or this side has no record.
        """
        return (record for is_held_out, record in self._read(sides=(held_out,)) if is_held_out is held_out)

    def split_records(self) -> Iterator[tuple[bool, Document | Conversation]]:
        """Every record once, with whether it is held out: both sides in one pass.

        Raises:
            DataError: as `records`, for either side.
        """
        return self._read(sides=(False, True))

    def _read(self, *, sides: tuple[bool, ...]) -> Iterator[tuple[bool, Document | Conversation]]:
        dropped: Counter[str] = Counter()
        passed_over: Counter[str] = Counter()
        seen: Counter[bool] = Counter()
        shapes: Counter[str] = Counter()
        repairs: Counter[str] = Counter()
        cleaner = Cleaner(self._config.cleaning)
        with quarantine(self._left_out) as leave_out:
            for record in self._cleaned(cleaner):
                if isinstance(record, Rejected) and record.fix is None:
                    passed_over[record.reason] += 1
                    continue
                if isinstance(record, Rejected | Dropped):
                    dropped[_named(record)] += 1
                    leave_out(record)
                    continue
                side = is_held_out(record.text, self._config.held_out_share)
                seen[side] += 1
                if isinstance(record, Conversation):
                    shapes[record.shape] += 1
                    repairs.update(record.repairs)
                    record = self._with_system_prompt(record)
                yield side, record
            for side in sides:
                if not seen[side]:
                    raise DataError(self._explain_none(seen.total(), dropped.total(), held_out=side))
            cleaner.check()
        self.dropped, self.passed_over, self.cleaning = dropped, passed_over, as_json(cleaner)
        self.shapes, self.repairs = shapes, repairs
        if self._left_out is not None and self.cleaning:
            write_json(self._left_out / "cleaning.json", self.cleaning)

    def _cleaned(self, cleaner: Cleaner) -> Iterator[Document | Conversation | Dropped | Rejected]:
        for record in self._source.records():
            if not isinstance(record, Rejected):
                yield cleaner.clean(record)
            elif record.fix is not None and self._config.bad_records is BadRecords.refuse:
                raise DataError(str(record))
            else:
                yield record

    def _with_system_prompt(self, conversation: Conversation) -> Conversation:
        prompt = self._config.system_prompt
        if prompt is None or conversation.messages[0]["role"] == "system":
            return conversation
        messages = [{"role": "system", "content": prompt.strip()}, *conversation.messages]
        return replace(conversation, messages=messages)

    def keep_left_out(self, folder: Path) -> None:
        """Have the passes that follow leave what they left out in `folder`: quarantine.jsonl and cleaning.json."""
        self._left_out = folder

    def texts(self, *, held_out: bool) -> Iterator[str]:
        """The texts of one side of the split."""
        return (record.text for record in self.records(held_out=held_out))

    def say_dropped(self) -> dict[str, int]:
        """Log what the last pass dropped and what it did not read, and return the number of records by reason."""
        for reason, times in self.passed_over.most_common():
            log.warning("data=%s: left out %d %s", self._config.name, times, reason)
        encodings = self._source.encodings if isinstance(self._source, Files) else {}
        if unusual := {name: times for name, times in encodings.items() if name not in ("utf-8", "ascii")}:
            log.info("data=%s: files in other encodings than utf-8: %s", self._config.name, unusual)
        if shapes := {shape: times for shape, times in self.shapes.most_common() if shape}:
            log.info("data=%s: conversations by the shape of their records: %s", self._config.name, shapes)
        for what, times in self.repairs.most_common():
            log.info("data=%s: %d conversations: %s", self._config.name, times, what)
        for reason, times in self.dropped.most_common():
            log.warning("data=%s: dropped %d records: %s", self._config.name, times, reason)
        return dict(self.dropped) | dict(self.passed_over)

    def _explain_none(self, total: int, dropped: int, *, held_out: bool) -> str:
        where = self._config.path or f"data={self._config.name}"
        if dropped and not total:
            return (
                f"{where}: all {dropped} records are bad. Set data.bad_records=refuse to see what is wrong with them."
            )
        if not total:
            return f"{where}: there is no record in it. Give data.path=<files with text>."
        side = "held out" if held_out else "left to train on"
        cleaned = self._cleaned(Cleaner(self._config.cleaning))
        share = share_that_parts(record.text for record in cleaned if isinstance(record, Document | Conversation))
        return (
            f"{where}: of {total} records none is {side} at data.held_out_share={self._config.held_out_share}. "
            + (f"Set data.held_out_share={share}, or split" if share else "Split")
            + " the text into more documents: a blank line parts them in a txt file, data.layout.records in json."
        )


def _named(left_out: Rejected | Dropped) -> str:
    if isinstance(left_out, Rejected):
        return left_out.reason
    return f"cleaning, {left_out.step}: {left_out.reason}"


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus of a data config; nothing is read yet.

    Raises:
        ConfigError: the path has no such file, or the package is not installed.
    """
    if config.source is DataSource.korean_law:
        return Corpus(config, statutes())
    if config.source is DataSource.korean_law_qa:
        return Corpus(config, questions())
    return Corpus(config, open_files(config))
