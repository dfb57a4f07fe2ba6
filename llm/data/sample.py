"""A path -> what lies there and a sample of it, and what each choice of conf/data reads of that.

By the reader of training: a sample is members whose beginnings are in memory.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import PurePath
from typing import Any

from llm.config.compose import data_presets
from llm.config.data import DataConfig, FileFormat, LayoutConfig
from llm.data.archives import Member, members
from llm.data.files import Places, leaves_out, read_files
from llm.data.layout import in_files, to_records
from llm.data.parse import Parsed, Raw, decoded, format_of, parse
from llm.data.records import Record, Rejected, unreadable, values

SAMPLED_MEMBERS = 24
SAMPLED_PIECES = 16  # of 64 KiB, of each
SAMPLED_RECORDS = 100  # of each
LISTED_BYTES = 256 * 2**20  # of a stream that cannot be gone back in, such as a tar.gz
JSON = (FileFormat.json, FileFormat.jsonl)
TABLES = (FileFormat.parquet, FileFormat.arrow)
USUAL = LayoutConfig()


@cache
def presets() -> dict[str, DataConfig]:
    """Every choice of conf/data that reads files, by its name."""
    return data_presets()


@dataclass
class Sample:
    """What lies at a path: counts of all of it, and the beginnings of some members, spread evenly, in memory."""

    files: int
    bytes: int
    formats: Counter[str] = field(default_factory=Counter)  # suffix -> members
    encodings: Counter[str] = field(default_factory=Counter)  # of the sampled members
    rejected: list[Rejected] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    is_all: bool = True  # whether the sample is all that can be read, but for records after the first of each member

    def records(self, config: DataConfig) -> Iterator[Record]:
        """What the config makes of the sample, and what is wrong with the rest."""
        for member in self.members:
            found = read_files([member], config)
            wanted = (each for each in found if not isinstance(each, Rejected) or each.fix)
            yield from islice(wanted, SAMPLED_RECORDS)

    def fitting(self) -> list[tuple[str, float]]:
        """(preset, share of the sampled records that it makes something of), the best first."""
        scores = {name: self._score(config) for name, config in presets().items()}
        ranked = sorted(scores, key=lambda name: (*scores[name], name != "text"), reverse=True)
        return [(name, scores[name][1]) for name in ranked if scores[name][0]]

    def _score(self, config: DataConfig) -> tuple[int, float, int, int]:
        """(records that are read, their share, how many of the preset's own keys they have, and lack below zero)."""
        usable = faults = left_out = has = 0
        own = _own_paths(config)
        for raw, made in self._made(config):
            if isinstance(made, Rejected):
                faults, left_out = faults + bool(made.fix), left_out + (not made.fix)
            elif isinstance(raw.value, str) and own:  # a text without keys
                faults += 1
            else:
                usable += 1
                has += sum(bool(values(raw.value, path)) for path in own)
        if not usable or left_out > usable + faults:
            return 0, 0.0, 0, 0
        return usable, usable / (usable + faults), has, has - usable * len(own)

    def _made(self, config: DataConfig) -> Iterator[tuple[Any, Record]]:
        for member in self.members:
            if not leaves_out(member.name, config):
                parsed = parse(member, config.layout, [], Counter())
                for raw in islice(in_files(parsed, config.layout), 2 * SAMPLED_RECORDS):
                    yield raw, next(to_records([raw], config))

    def held(self) -> list[Raw]:
        """Some of the records as they are without any layout."""
        parsed = (islice(in_files(_parsed(member), USUAL), SAMPLED_RECORDS) for member in self.members)
        raws = [raw for found in parsed for raw in found if isinstance(raw, Raw)]
        return raws[:: max(1, len(raws) // SAMPLED_RECORDS)]


def _own_paths(config: DataConfig) -> list[str]:
    """The paths that a preset names."""
    keys = ("group", "require", "messages", "question", "input", "answer")
    named = [getattr(config.layout, key) for key in keys if getattr(config.layout, key) != getattr(USUAL, key)]
    return [*named, *([config.text_field] if config.text_field != "text" else [])]


def sample(places: Places) -> Sample:
    """List everything at the places, and read a sample of it."""
    found = Sample(len(places), sum(place.size or 0 for place in places if isinstance(place, Member)))
    step, number = 1, 0
    for number, member in enumerate(_listed(places, found), 1):
        if (number - 1) % step:
            continue
        try:
            found.members.append(_beginning(member, found))
        except Exception as error:  # each library and protocol has its own kinds
            found.rejected.append(unreadable(member.origin, error))
        if len(found.members) > SAMPLED_MEMBERS:
            found.members, step = found.members[::2], 2 * step
    found.is_all = found.is_all and number == len(found.members)
    return found


def _listed(places: Places, found: Sample) -> Iterator[Member]:
    """The members in a format that is read, all others being counted."""
    for place in places:
        streamed = 0
        for member in members(place) if isinstance(place, Member) else [place]:
            if isinstance(member, Rejected):
                found.formats.update([] if member.fix else ["hidden"])
                found.rejected += [member] if member.fix else []
                continue
            file_format = format_of(member.name, USUAL)
            found.formats[file_format.name if file_format else PurePath(member.name).suffix.lower() or "no suffix"] += 1
            if file_format and member.size != 0:
                yield member
            streamed += 0 if member.is_seekable else member.size or 0
            if streamed > LISTED_BYTES:
                break


def _beginning(member: Member, found: Sample) -> Member:
    """A member of its first bytes, or of a table its first rows, so that it can be read any number of times."""
    file_format = format_of(member.name, USUAL)
    if file_format in TABLES:
        data, is_whole = _first_rows(member), True
    else:
        with member.open() as stream:
            pieces = decoded(stream, found.encodings)
            text = "".join(islice(pieces, SAMPLED_PIECES))
            is_whole = not any(pieces)
        text = text if is_whole else text[: text.rfind("\n") + 1] or text
        data = text.encode("utf-8", "surrogatepass")
    begun = replace(member, open=lambda: io.BytesIO(data), size=len(data), is_seekable=True)
    if not is_whole and file_format in JSON and all(isinstance(each, Rejected) for each in _parsed(begun)):
        closed = _closed(text).encode("utf-8", "surrogatepass")
        begun = replace(begun, open=lambda: io.BytesIO(closed), size=len(closed))
    found.is_all = found.is_all and is_whole
    return begun


def _parsed(member: Member) -> Iterator[Parsed]:
    return parse(member, USUAL, [], Counter())


def _first_rows(member: Member) -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = [raw.value for raw in islice(_parsed(member), SAMPLED_RECORDS) if isinstance(raw, Raw)]
    target, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    if format_of(member.name, USUAL) is FileFormat.parquet:
        parquet.write_table(table, target)
    else:
        with pyarrow.ipc.new_stream(target, table.schema) as writer:
            writer.write_table(table)
    return target.getvalue()


def _closed(text: str) -> str:
    """The beginning of a JSON text as a value of its own, by whole items of its outermost list if it has any."""
    opened: list[str] = []
    ends: dict[bool, tuple[int, str]] = {}  # whether an item of it ends there -> (the last such end, what closes it)
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|["\[\]{},]', text):
        sign = token[0]
        if sign == '"':  # of a string that is cut
            break
        if sign in "[{":
            opened.append("]" if sign == "[" else "}")
        elif sign in "]}":
            del opened[-1:]
        elif sign == ",":
            is_item = opened.count("]") == 1 and opened[-1] == "]"
            ends[is_item] = token.start(), "".join(reversed(opened))
    end, closing = ends.get(True) or ends.get(False) or (0, "")
    return text[:end] + closing
