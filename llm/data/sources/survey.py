"""A path -> what lies there, found by reading a sample: formats, encodings, which preset fits, what is wrong.

Of an archive of any size only the list of its members and a few of them are read.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from llm.config import DataConfig, FileFormat, LayoutConfig
from llm.data.files import Files
from llm.data.records import Conversation, Document, Fault
from llm.data.sources.archives import Member, damage, damages, members
from llm.data.sources.encodings import detect
from llm.data.sources.fields import values
from llm.data.sources.formats import (
    JSON,
    EachLine,
    OneValue,
    Raw,
    Reading,
    format_of,
    json_lines,
    json_records,
    json_value,
    raw_records,
)
from llm.data.sources.large_json import large_json, prefix
from llm.data.sources.layouts import to_records
from llm.data.sources.lines import Lines
from llm.data.sources.places import File, Hidden, Place, is_hidden
from llm.data.sources.presets import fits, presets
from llm.data.sources.texts import overrides

SAMPLED_MEMBERS = 24
SAMPLED_BYTES = 4 * 2**20  # of each; a json file is read whole, up to
SAMPLED_JSON = 8 * 2**20
SAMPLED_IN_ALL = 64 * 2**20  # bytes, which as parsed json take some five times that
SAMPLED_RECORDS = 100  # of each
LISTED_BYTES = 256 * 2**20  # of a stream that cannot be gone back in, such as a tar.gz


@dataclass(slots=True)
class Sample:
    """A member with its first bytes, or its first rows."""

    member: Member
    format: FileFormat
    data: bytes
    whole: bool
    json: OneValue | None = None  # that it is, if it was read whole
    rows: list[Raw | Document | Fault] | None = None  # of formats whose records are the same under any layout


@dataclass(slots=True)
class Survey:
    """What lies at a path."""

    files: int = 0
    bytes: int = 0
    members: int = 0
    listed_all: bool = True  # whether every member was listed
    formats: Counter[str] = field(default_factory=Counter)  # suffix -> members
    readable_bytes: int = 0  # of members whose format is known, as far as sizes are
    repaired_names: list[str] = field(default_factory=list)
    encodings: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    is_all: bool = False  # whether the samples are all that can be read, but for records after the first of each

    def held(self) -> tuple[list[Any], list[str]]:
        """(records as they are without any layout, the overrides that read their longest text)."""
        text = presets()["text"]
        raws = [raw for sample in self.samples for raw in islice(_raws(sample, text), SAMPLED_RECORDS)]
        found = [raw.value for raw in raws if isinstance(raw, Raw)]
        if found:
            found = found[:: max(1, len(found) // SAMPLED_RECORDS)]
            return found, overrides(found, are_files=all(raw.is_file for raw in raws if isinstance(raw, Raw)))
        for sample in self.samples:
            if place := _place_inside(sample):
                config = replace(text, layout=LayoutConfig(records=place))
                found = [raw.value for raw in islice(_raws(sample, config), SAMPLED_RECORDS) if isinstance(raw, Raw)]
                return found, overrides(found, are_files=False, place=place)
        return [], []

    def fitting(self) -> list[tuple[str, float]]:
        """(preset, share of the sampled records that it makes something of), the best first."""
        scores = {name: _score(self.samples, config) for name, config in presets().items()}
        last = "conversations"  # reads the usual names too, which the others have by their own
        ranked = sorted(scores, key=lambda name: (*scores[name], name == "text", name != last), reverse=True)
        return [(name, scores[name][1]) for name in ranked if scores[name][0] > 0]

    def records(self, config: DataConfig) -> Iterator[Document | Conversation | Fault]:
        """The records of the sample under a config, with their faults."""
        reader = Files(config, [])
        for sample in self.samples:
            if not reader.leaves_out(sample.member.name):
                yield from islice(to_records(_raws(sample, config), config, Reading()), SAMPLED_RECORDS)


def survey(places: list[Place]) -> Survey:
    """List everything at the places, and read a sample of it, spread evenly."""
    found = Survey()
    known = [index for index, member in enumerate(_listed(places, found)) if _is_readable(member)]
    wanted = set(known[:: max(1, -(-len(known) // SAMPLED_MEMBERS))])
    for index, member in enumerate(_members(places, Survey())):
        if index in wanted and isinstance(member, Member):
            try:
                if sample := _sample(member, found):
                    found.samples.append(sample)
            except damages() as error:
                found.faults.append(damage(error, member.origin))
        read = sum(len(sample.data) for sample in found.samples)
        if index == max(wanted, default=-1) or read > SAMPLED_IN_ALL:
            break
    found.is_all = len(found.samples) == len(known) and all(sample.whole for sample in found.samples)
    return found


def _listed(places: list[Place], found: Survey) -> Iterator[Member | Fault]:
    for place in places:
        found.files += 1
        found.bytes += place.size if isinstance(place, File) else 0
    for member in _members(places, found):
        if isinstance(member, Fault):
            found.faults.append(member)
        else:
            found.members += 1
            known = None if _is_hidden(member) else format_of(member.name, LayoutConfig())
            found.formats["hidden" if _is_hidden(member) else known.name if known else _suffix(member.name)] += 1
            found.readable_bytes += (member.size or 0) if known else 0
            if member.repaired:
                found.repaired_names.append(member.origin)
        yield member


def _members(places: list[Place], found: Survey) -> Iterator[Member | Fault]:
    for place in places:
        if isinstance(place, Hidden):
            found.formats["hidden"] += 1
            continue
        if not isinstance(place, File):
            yield Fault(place.name, place.reason, place.fix)
            continue
        passed = 0
        for member in members(place):
            yield member
            if isinstance(member, Member) and not member.seekable:
                passed += member.size or 0
                if passed > LISTED_BYTES:
                    found.listed_all = False
                    break


def _is_readable(member: Member | Fault) -> bool:
    if not isinstance(member, Member) or member.size == 0 or _is_hidden(member):
        return False
    return format_of(member.name, LayoutConfig()) is not None


def _is_hidden(member: Member) -> bool:
    return member.is_packed and is_hidden(member.name)


def _sample(member: Member, found: Survey) -> Sample | None:
    file_format = format_of(member.name, LayoutConfig())
    assert file_format is not None  # it was chosen for it
    if file_format in (FileFormat.parquet, FileFormat.arrow):
        raws = raw_records(member, file_format, LayoutConfig(), [], Reading())
        return Sample(member, file_format, b"", True, rows=list(islice(raws, SAMPLED_RECORDS)))
    limit = SAMPLED_JSON if file_format in JSON else SAMPLED_BYTES
    with member.open() as stream:
        data = stream.read(limit + 1)
    whole = len(data) <= limit
    if not whole:
        data = data[: data.rfind(b"\n", 0, limit) + 1] or data[:limit]
    found.encodings[detect(data, at_end=whole) or "ascii"] += 1
    sample = Sample(member, file_format, data, whole)
    if file_format in JSON:
        lines = Lines(_buffered(data))
        value = json_value(lines, member.origin)
        if isinstance(value, OneValue):
            sample.json = value
        elif isinstance(value, EachLine):
            raws = json_lines(lines, member.origin, Reading(), value.first)
            sample.rows = list(islice(raws, SAMPLED_RECORDS))
    return sample


def _buffered(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))


def _score(samples: list[Sample], config: DataConfig) -> tuple[int, float, float, int]:
    """(records that fit, their share, how many keys of the preset each has, how much else of it applies)."""
    reader, layout = Files(config, []), config.layout
    records = left_out = fitting = keys = 0
    for sample in samples:
        if reader.leaves_out(sample.member.name):
            continue
        for raw in islice(_raws(sample, config), SAMPLED_RECORDS):
            records += 1
            if isinstance(raw, Raw) and layout.require is not None and not values(raw.value, layout.require):
                left_out += 1
                continue
            plain = isinstance(raw, Document) and layout == LayoutConfig()
            found = fits(raw, config) if isinstance(raw, Raw) else int(plain)
            fitting += found > 0
            keys += found
    if left_out * 2 > records:
        return 0, 0.0, 0.0, 0
    named = (layout.records is not None) + bool(layout.files) + (layout.require is not None)
    return (fitting, fitting / (records - left_out), keys / fitting, named) if fitting else (0, 0.0, 0.0, 0)


def _raws(sample: Sample, config: DataConfig) -> Iterator[Raw | Document | Fault]:
    """The raw records of a sample, from what was read of it: its member may be closed by now."""
    file_format = format_of(sample.member.name, config.layout)
    if sample.rows is not None:
        yield from sample.rows
    elif sample.json is not None:
        yield from json_records(sample.json, sample.member.origin, config.layout)
    elif sample.format in JSON and not sample.whole:
        yield from _first_records(sample, config.layout)
    elif file_format is not None:
        member = replace(sample.member, open=lambda: _buffered(sample.data), size=len(sample.data))
        yield from raw_records(member, file_format, config.layout, [], Reading())


def _first_records(sample: Sample, layout: LayoutConfig) -> Iterator[Raw | Fault]:
    """The records that the beginning of a large json file holds whole."""
    place = prefix(layout.records, sample.data)
    for found in large_json(sample.data, io.BytesIO(), place, sample.member.origin) if place else ():
        if isinstance(found, Fault):
            return  # where the sample was cut
        if isinstance(found[1], dict):
            yield Raw(found[1], f"{sample.member.origin}[{found[0]}]")


def _place_inside(sample: Sample) -> str | None:
    """Where the first object of a list is, in a json file of which the beginning was read."""
    import ijson

    if sample.format not in JSON or sample.whole:
        return None
    try:
        for place, event, _ in ijson.parse(sample.data):
            if event == "start_map" and place.endswith("item"):
                return str(place).replace(".item", "[]")
    except ijson.JSONError:
        pass
    return None


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()[:12]}" if dot and stem and "/" not in suffix else "no suffix"
