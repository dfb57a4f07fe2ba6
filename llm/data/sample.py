"""A path -> what lies there and a sample of it, and which choices of conf/data read the sample.

Of an archive of any size only the list of its members and a few of them are read.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any

from llm.config.compose import data_presets
from llm.config.data import DataConfig, DataKind
from llm.config.documents import FileFormat, LayoutConfig, Shape
from llm.data.archives import Member, members
from llm.data.decoding import Text, detect
from llm.data.files import Files
from llm.data.layout import in_files, made_of, to_records
from llm.data.parse import Parsed, Raw, format_of, parse
from llm.data.places import File, Place
from llm.data.records import Document, Record, Rejected, RejectedError
from llm.data.suggest import overrides
from llm.data.turns import names_columns, with_usual_names
from llm.data.values import head, values

SAMPLED_MEMBERS = 24
SAMPLED_BYTES = 8 * 2**20  # of each
SAMPLED_IN_ALL = 64 * 2**20  # bytes, which as parsed json take some five times that
SAMPLED_RECORDS = 100  # of each
LISTED_BYTES = 256 * 2**20  # of a stream that cannot be gone back in, such as a tar.gz
JSON = (FileFormat.json, FileFormat.jsonl)
TABLES = (FileFormat.parquet, FileFormat.arrow)


@cache
def presets() -> dict[str, DataConfig]:
    """Every choice of conf/data that reads files, by its name."""
    return data_presets()


@dataclass(slots=True)
class Sample:
    """A member with its first bytes, or of a table its first rows."""

    member: Member
    is_all: bool  # whether it has no more bytes
    rows: list[Parsed] | None = None
    _parsed: dict[Any, list[Parsed]] = field(default_factory=dict)

    def parsed(self, layout: LayoutConfig) -> list[Parsed]:
        """Its first records as they stand in it, by the reader of training."""
        file_format = format_of(self.member.name, layout)
        if self.rows is not None or file_format is None:
            return self.rows or []
        key = (file_format, layout.header, layout.delimiter)
        if key not in self._parsed:
            found = parse(self.member, file_format, layout, [], Counter())
            self._parsed[key] = list(islice(found, SAMPLED_RECORDS))
        return self._parsed[key]

    def raws(self, layout: LayoutConfig) -> Iterator[Parsed]:
        return islice(in_files(self.parsed(layout), layout), SAMPLED_RECORDS)


@dataclass(slots=True)
class Survey:
    """What lies at a path."""

    files: int = 0
    bytes: int = 0
    members: int = 0
    listed_all: bool = True  # whether every member was listed
    formats: Counter[str] = field(default_factory=Counter)  # suffix -> members
    repaired_names: list[str] = field(default_factory=list)
    encodings: Counter[str] = field(default_factory=Counter)
    rejected: list[Rejected] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    is_all: bool = False  # whether the samples are all that can be read, but for records after the first of each

    def held(self) -> tuple[list[Any], list[str]]:
        """(records as they are without any layout, the overrides that read their longest text)."""
        usual = LayoutConfig()
        raws = [raw for sample in self.samples for raw in sample.raws(usual) if isinstance(raw, Raw)]
        found = [raw.value for raw in raws]
        found = found[:: max(1, len(found) // SAMPLED_RECORDS)]
        return found, overrides(found, are_files=all(raw.is_file for raw in raws))

    def fitting(self) -> list[tuple[str, float]]:
        """(preset, share of the sampled records that it makes something of), the best first."""
        scores = {name: _score(self.samples, config) for name, config in presets().items()}
        last = "conversations"  # reads the usual names too, which the others have by their own
        ranked = sorted(scores, key=lambda name: (*scores[name], name == "text", name != last), reverse=True)
        return [(name, scores[name][1]) for name in ranked if scores[name][0] > 0]

    def records(self, config: DataConfig) -> Iterator[Record]:
        """The records of the sample under a config, with what is rejected of them."""
        files = Files(config, [])
        for sample in self.samples:
            if not files.leaves_out(sample.member.name):
                found = to_records(sample.parsed(config.layout), config)
                wanted = (each for each in found if not isinstance(each, Rejected) or each.fix)
                yield from islice(wanted, SAMPLED_RECORDS)


def survey(places: list[Place]) -> Survey:
    """List everything at the places, and read a sample of it, spread evenly."""
    found = Survey(files=len(places), bytes=sum(place.size for place in places if isinstance(place, File)))
    known = [index for index, member in enumerate(_listed(places, found)) if _is_readable(member)]
    wanted = set(known[:: max(1, -(-len(known) // SAMPLED_MEMBERS))])
    read = 0
    for index, member in enumerate(_members(places, found)):
        if index in wanted and isinstance(member, Member):
            try:
                found.samples.append(_sample(member, found.encodings))
                read += found.samples[-1].member.size or 0
            except RejectedError as error:
                found.rejected.append(error.at(member.origin))
        if index == max(wanted, default=-1) or read > SAMPLED_IN_ALL:
            break
    found.is_all = len(found.samples) == len(known) and all(sample.is_all for sample in found.samples)
    return found


def _listed(places: list[Place], found: Survey) -> Iterator[Member | Rejected]:
    for member in _members(places, found):
        if isinstance(member, Member):
            found.members += 1
            known = format_of(member.name, LayoutConfig())
            found.formats[known.name if known else _suffix(member.name)] += 1
            found.repaired_names += [member.origin] * member.repaired
        elif member.fix is None:
            found.formats["hidden"] += 1
        else:
            found.rejected.append(member)
        yield member


def _members(places: list[Place], found: Survey) -> Iterator[Member | Rejected]:
    for place in places:
        passed = 0
        for member in members(place) if isinstance(place, File) else [place]:
            yield member
            if isinstance(member, Member) and not member.seekable:
                passed += member.size or 0
                if passed > LISTED_BYTES:
                    found.listed_all = False
                    break


def _is_readable(member: Member | Rejected) -> bool:
    return isinstance(member, Member) and member.size != 0 and format_of(member.name, LayoutConfig()) is not None


def _sample(member: Member, encodings: Counter[str]) -> Sample:
    file_format = format_of(member.name, LayoutConfig())
    assert file_format is not None  # it was chosen for it
    if file_format in TABLES:
        rows = parse(member, file_format, LayoutConfig(), [], encodings)
        return Sample(replace(member, size=0), True, list(islice(rows, SAMPLED_RECORDS)))
    with member.open() as stream:
        data = stream.read(SAMPLED_BYTES + 1)
    is_all = len(data) <= SAMPLED_BYTES
    if not is_all:
        data = data[: data.rfind(b"\n", 0, SAMPLED_BYTES) + 1] or data[:SAMPLED_BYTES]
    encodings[detect(data, at_end=is_all) or "ascii"] += 1
    sample = Sample(replace(member, open=lambda: io.BytesIO(data), size=len(data)), is_all)
    if not is_all and file_format in JSON and all(isinstance(each, Rejected) for each in sample.parsed(LayoutConfig())):
        closed = _closed(Text(io.BytesIO(data), member.origin).peek(len(data)))
        return Sample(replace(member, open=lambda: io.BytesIO(closed), size=len(data)), is_all)
    return sample


def _closed(data: bytes) -> bytes:
    """The beginning of a JSON text as a value of its own, by whole items of its outermost list if it has any."""
    opened: list[bytes] = []
    ends: dict[bool, tuple[int, bytes]] = {}  # whether an item of it ends there -> (the last such end, what closes it)
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|["\[\]{},]', data):
        sign = token[0]
        if sign == b'"':  # of a string that is cut
            break
        if sign in b"[{":
            opened.append(b"]" if sign == b"[" else b"}")
        elif sign in b"]}":
            del opened[-1:]
        elif sign == b",":
            is_item = opened.count(b"]") == 1 and opened[-1] == b"]"
            ends[is_item] = token.start(), b"".join(reversed(opened))
    end, closing = ends.get(True) or ends.get(False) or (0, b"")
    return data[:end] + closing


def _score(samples: list[Sample], config: DataConfig) -> tuple[int, float, float, int]:
    """(records that fit, their share, how many keys of the preset each has, how much else of it applies)."""
    files, layout = Files(config, []), config.layout
    records = left_out = fitting = keys = 0
    for sample in samples:
        if files.leaves_out(sample.member.name):
            continue
        for raw in sample.raws(layout):
            records += 1
            value = raw.value if isinstance(raw, Raw) else None
            if isinstance(value, dict) and layout.require is not None and not values(value, layout.require):
                left_out += 1
                continue
            found = fits(raw, config)
            fitting += found > 0
            keys += found
    if left_out * 2 > records:
        return 0, 0.0, 0.0, 0
    named = (layout.records is not None) + bool(layout.files) + (layout.require is not None)
    return (fitting, fitting / (records - left_out), keys / fitting, named) if fitting else (0, 0.0, 0.0, 0)


def fits(raw: Parsed, config: DataConfig) -> int:
    """How well a preset fits a record: 0 if not at all, else the number of its own keys that the record has."""
    layout = config.layout
    if isinstance(raw, Rejected):
        return 0
    if isinstance(raw.value, str):
        return int(config.kind is DataKind.text and layout == LayoutConfig())
    try:
        made = made_of(raw, config)
    except RejectedError:
        return 0
    if isinstance(made, Document):
        paths = [config.text_field, layout.group, layout.require]
        if layout.group is not None and not values(raw.value, layout.group):
            return 0
    else:
        if made.shape == Shape.tagged.name:
            return len(made.messages)  # marks that are found are more than a key
        if not names_columns(layout):
            # by usual names it is less than a preset that names the columns, by its own more than one that does not
            return 1 if with_usual_names(raw.value, layout) != layout else 3
        paths = [layout.messages, layout.question, layout.input, layout.answer, layout.require]
    return sum(any(key in raw.value for key in head(path)) for path in paths if path is not None)


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()[:12]}" if dot and stem and "/" not in suffix else "no suffix"
