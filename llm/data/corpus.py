"""The data config -> documents or conversations, cleaned and split, with what was left out counted and kept."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llm.config.data import BadRecords, DataConfig
from llm.data.clean import Cleaner, key
from llm.data.files import Places, digest_of_files, find_files, read_files, state_of_files
from llm.data.records import Conversation, Document, Rejected
from llm.errors import DataError
from llm.run.console import log
from llm.run.files import whole_files, write_json

QUARANTINED_CHARACTERS = 2000  # of a text that is left out: enough to judge, not a second corpus

Kept = Document | Conversation


class Corpus:
    """The records of one data config; each pass over them reads them anew, in the same order.

    What it counts is of the last pass, and while that goes on, of what has come so far.
    """

    def __init__(self, config: DataConfig, places: Places) -> None:
        self._config, self._places = config, places
        self._folder: Path | None = None
        self._begin()

    def _begin(self) -> None:
        self.dropped: Counter[str] = Counter()  # reason -> records
        self.passed_over: Counter[str] = Counter()  # reason -> what the config leaves out
        self.encodings: Counter[str] = Counter()  # -> files
        self.shapes: Counter[str] = Counter()  # -> conversations
        self.repairs: Counter[str] = Counter()  # what was put right -> conversations
        self._sides: Counter[bool] = Counter()  # whether it is held out -> records
        self._lowest, self._highest = 2**64, 0  # of the places in the split
        self._cleaner = Cleaner(self._config.cleaning)

    def digest(self) -> str:
        """SHA-256 over all that is read."""
        return digest_of_files(self._places, self._config)

    def state(self) -> str:
        """What is another one where what is read may be another; no file is opened."""
        return state_of_files(self._places, self._config)

    def cleaning(self) -> dict[str, Any]:
        """What each cleaning step did."""
        return self._cleaner.report()

    def keep_left_out(self, folder: Path) -> None:
        """Have the passes that follow leave what they left out in `folder`: quarantine.jsonl and cleaning.json."""
        self._folder = folder

    def records(self, *, held_out: bool) -> Iterator[Kept]:
        """The records of one side of the split.

        Raises:
            DataError: a record cannot be used and data.bad_records=refuse, or this side has no record.
        """
        return (record for side, record in self.split_records(sides=(held_out,)) if side is held_out)

    def split_records(self, *, sides: tuple[bool, ...] = (False, True)) -> Iterator[tuple[bool, Kept]]:
        """Every record once, with whether it is held out.

        Raises:
            DataError: as `records`, for each of `sides`.
        """
        self._begin()
        with _quarantine(self._folder) as leave_out:
            for record in read_files(self._places, self._config, self.encodings):
                cleaned = record if isinstance(record, Rejected) else self._cleaner.clean(record)
                if isinstance(cleaned, Rejected):
                    self._leave_out(cleaned, leave_out)
                else:
                    yield self._side_of(cleaned), self._with_system_prompt(cleaned)
            self._check(sides)
        if self._folder and (report := self.cleaning()):
            write_json(self._folder / "cleaning.json", report)

    def _leave_out(self, record: Rejected, leave_out: Callable[[Any], object]) -> None:
        if record.fix is None and record.step is None:
            self.passed_over[record.reason] += 1
            return
        if record.fix and self._config.bad_records is BadRecords.refuse:
            raise DataError(str(record))
        self.dropped[f"cleaning, {record.step}: {record.reason}" if record.step else record.reason] += 1
        line = asdict(replace(record, text=(record.text or "")[:QUARANTINED_CHARACTERS]))
        leave_out({key: value for key, value in line.items() if value})

    def _side_of(self, record: Kept) -> bool:
        """Whether a record is held out."""
        if isinstance(record, Conversation):
            self.shapes[record.shape] += 1
            self.repairs.update(record.repairs)
        place = place_of(record.text)
        self._lowest, self._highest = min(self._lowest, place), max(self._highest, place)
        side = is_below(place, self._config.held_out_share)
        self._sides[side] += 1
        return side

    def _with_system_prompt(self, record: Kept) -> Kept:
        prompt = self._config.system_prompt
        if prompt is None or isinstance(record, Document) or record.messages[0]["role"] == "system":
            return record
        return replace(record, messages=[{"role": "system", "content": prompt.strip()}, *record.messages])

    def notes(self) -> dict[str, Any]:
        """What a run keeps of the last pass, and a log line for each thing that was left out or put right.

        `rights`: what to know before publishing what was trained on it; `dropped_records`: reason -> records.
        """
        name, rights = self._config.name, self._config.rights
        if unusual := {other: times for other, times in self.encodings.items() if other not in ("utf-8", "ascii")}:
            log.info("data=%s: files in other encodings than utf-8: %s", name, unusual)
        if shapes := {shape: times for shape, times in self.shapes.most_common() if shape}:
            log.info("data=%s: conversations by the shape of their records: %s", name, shapes)
        for what, times in self.repairs.most_common():
            log.info("data=%s: %d conversations: %s", name, times, what)
        for reason, times in self.passed_over.most_common():
            log.warning("data=%s: left out %d %s", name, times, reason)
        for reason, times in self.dropped.most_common():
            log.warning("data=%s: dropped %d records: %s", name, times, reason)
        if rights:
            log.info("rights: %s", rights)
        return {"rights": rights, "dropped_records": dict(self.passed_over + self.dropped)}

    def _check(self, sides: tuple[bool, ...]) -> None:
        """Refuse a side without a record."""
        where = self._config.path or f"data={self._config.name}"
        if not self._sides and self.dropped:
            raise DataError(
                f"{where}: all {self.dropped.total()} records are bad. Set data.bad_records=refuse to see what is "
                "wrong with them."
            )
        if not self._sides:
            raise DataError(f"{where}: there is no record in it. Give data.path=<files with text>.")
        for side in sides:
            if not self._sides[side]:
                share = share_that_parts(self._lowest, self._highest)
                raise DataError(
                    f"{where}: of {self._sides.total()} records none is {'held out' if side else 'left to train on'} "
                    f"at data.held_out_share={self._config.held_out_share}. "
                    + (f"Set data.held_out_share={share}, or split" if share else "Split")
                    + " the text into more documents: a blank line parts them in a txt file, data.layout.records in "
                    "json."
                )


@contextmanager
def _quarantine(folder: Path | None) -> Iterator[Callable[[Any], object]]:
    """What takes a line for each record that a pass leaves out: of quarantine.jsonl, once the pass has ended."""
    if folder is None:
        yield lambda line: None
        return
    with whole_files(folder) as temporary:
        path = temporary / "quarantine.jsonl"
        with path.open("w", encoding="utf-8") as file:
            yield lambda line: file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not path.stat().st_size:
            path.unlink()


def open_corpus(config: DataConfig) -> Corpus:
    """The corpus of a data config; nothing is read yet.

    Raises:
        ConfigError: the path has no such file, or the package is not installed.
    """
    return Corpus(config, find_files(config))


# The split


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out `share` (0 to 1); texts that differ in white space fall on one side."""
    return is_below(place_of(text), share)


def place_of(text: str) -> int:
    """Where a text lies in the split: 64 bits that look random."""
    return int.from_bytes(hashlib.sha256(key(text).encode()).digest()[:8], "big")


def is_below(place: int, share: float) -> bool:
    """Whether a place lies in the held-out share."""
    return place < share * 2**64


def share_that_parts(lowest: int, highest: int) -> float | None:
    """The least share in hundredths that parts texts of these places; None where there is none."""
    shares = (hundredths / 100 for hundredths in range(1, 100))
    return next((share for share in shares if is_below(lowest, share) and not is_below(highest, share)), None)
