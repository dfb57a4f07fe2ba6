"""The data config -> documents or conversations, with what was dropped counted and nothing skipped in silence."""

from collections import Counter
from collections.abc import Iterator

from llm.config import BadRecords, DataConfig, DataSource
from llm.data.files import Files
from llm.data.korean_law import Questions, Statutes
from llm.data.records import Conversation, Document, Fault, Source
from llm.data.split import is_held_out
from llm.errors import DataError
from llm.run import log

__all__ = ["Conversation", "Corpus", "Document", "open_corpus"]


class Corpus:
    """The records of one data config; each pass over them reads them anew, in the same order."""

    def __init__(self, config: DataConfig, source: Source) -> None:
        self._config = config
        self._source = source
        self.dropped: Counter[str] = Counter()  # reason -> records, in the last pass that ended

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
        seen: Counter[bool] = Counter()
        for record in self._source.records():
            if isinstance(record, Fault):
                if self._config.bad_records is BadRecords.refuse:
                    raise DataError(f"{record.origin}: {record.reason}. {record.fix}.")
                dropped[record.reason] += 1
                continue
            side = is_held_out(record.text, self._config.held_out_share)
            seen[side] += 1
            yield side, record
        for side in sides:
            if not seen[side]:
                raise DataError(self._explain_none(seen.total(), dropped.total(), held_out=side))
        self.dropped = dropped

    def texts(self, *, held_out: bool) -> Iterator[str]:
        """The texts of one side of the split."""
        return (record.text for record in self.records(held_out=held_out))

    def say_dropped(self) -> dict[str, int]:
        """Log what the last pass dropped, and return it by reason."""
        for reason, times in self.dropped.most_common():
            log.warning("data=%s: dropped %d records: %s", self._config.name, times, reason)
        return dict(self.dropped)

    def _explain_none(self, total: int, dropped: int, *, held_out: bool) -> str:
        where = self._config.path or f"data={self._config.name}"
        if dropped and not total:
            return (
                f"{where}: all {dropped} records are bad. Set data.bad_records=refuse to see what is wrong with them."
            )
        if not total:
            return f"{where}: there is no record in it. Give data.path=<files with text>."
        side = "held out" if held_out else "left to train on"
        return (
            f"{where}: of {total} records none is {side} at data.held_out_share={self._config.held_out_share}. "
            "Change the share, or split the text into more documents (a blank line parts them in a txt file)."
        )


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus of a data config; nothing is read yet.

    Raises:
        ConfigError: the path has no such file, or the package is not installed.
    """
    if config.source is DataSource.korean_law:
        return Corpus(config, Statutes())
    if config.source is DataSource.korean_law_qa:
        return Corpus(config, Questions())
    return Corpus(config, Files(config))
