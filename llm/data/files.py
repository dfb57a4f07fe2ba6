"""The user's files of any format, plain or in archives -> documents or conversations, and what is left out.

places.py     a path, folder, glob or URL -> files
archives.py   a file -> its members
parse.py      a member -> records as it has them (decoding.py: bytes -> text; large_json.py: a JSON value by its items)
layout.py     such a record -> a document, or by turns.py a conversation
"""

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from hashlib import file_digest
from pathlib import PurePosixPath

from llm.config.data import DataConfig, DataKind
from llm.config.documents import FileFormat, Shape
from llm.data.archives import Member, is_archive, members
from llm.data.layout import columns, to_records
from llm.data.parse import FORMATS, Parsed, format_of, parse
from llm.data.places import OF_SYSTEM, File, Place, explain_absent, find, left_by_system, name_of
from llm.data.records import Record, Rejected, RejectedError
from llm.errors import ConfigError, DataError
from llm.run.files import composed, digest_of


class Files:
    """The files that a path, a folder, a glob or a URL names, in the order of their names."""

    rights: str | None = None

    def __init__(self, config: DataConfig, places: list[Place]) -> None:
        self._config = config
        self.places = places
        self.encodings: Counter[str] = Counter()  # -> files, of the last pass, and while it goes on

    def digest(self) -> str:
        """SHA-256 over the files' contents and formats, in order; the rest of their names does not matter."""
        return digest_of([_digest(place) if isinstance(place, File) else [place.reason, ""] for place in self._read()])

    def state(self) -> str:
        """SHA-256 over where the files lie, their sizes and times of change: nothing is opened."""
        return digest_of([place.state if isinstance(place, File) else str(place) for place in self._read()])

    def _read(self) -> Iterator[Place]:
        wanted = (place for place in self.places if isinstance(place, File) or place.fix)
        return (place for place in wanted if not self.leaves_out(name_of(place)))

    def records(self) -> Iterator[Record]:
        self.encodings.clear()
        for place in self.places:
            for member in members(place) if isinstance(place, File) else [place]:
                yield from [member] if isinstance(member, Rejected) else to_records(self.parse(member), self._config)

    def parse(self, member: Member) -> Iterator[Parsed]:
        """The records of a member as it has them; none, if it is not what the config asks for."""
        file_format = format_of(member.name, self._config.layout)
        if reason := self.leaves_out(member.name):
            yield Rejected(member.origin, reason)
        elif member.size == 0:
            yield Rejected(f"{member.origin}:1", "the file is empty", "Remove it, or give another data.path")
        elif file_format is not None:
            yield from parse(member, file_format, self._config.layout, columns(self._config), self.encodings)

    def leaves_out(self, name: str) -> str | None:
        """Why a file or member is not read; None if it is."""
        layout, file = self._config.layout, PurePosixPath(composed(name.replace("\\", "/")))
        if left_by_system(name):
            return OF_SYSTEM
        if is_archive(file.name):
            return None
        if layout.files and not any(_matches(file, pattern) for pattern in layout.files):
            return "files that data.layout.files does not name"
        if any(_matches(file, pattern) for pattern in layout.skip):
            return "files that data.layout.skip names"
        if format_of(file.name, layout) not in _formats(self._config):
            return f"files of another suffix ({file.suffix.lower() or 'none'})"
        return None


def open_files(config: DataConfig) -> Files:
    """The files that data.path names; nothing is read yet.

    Raises:
        ConfigError: there is none that can be read.
    """
    places = find(str(config.path))
    _check(places, config)
    return Files(config, places)


def _formats(config: DataConfig) -> set[FileFormat]:
    """What is read: of conversations text files only where turns are known to be told apart by marks."""
    if config.kind is DataKind.text or config.layout.shape is Shape.tagged:
        return set(FORMATS.values())
    return set(FORMATS.values()) - {FileFormat.txt}


def _matches(file: PurePosixPath, pattern: str) -> bool:
    """A pattern without a slash is of the name alone."""
    pattern = composed(pattern)
    return fnmatch(str(file), pattern if "/" not in pattern else f"*{pattern}") or fnmatch(file.name, pattern)


def _digest(file: File) -> list[str]:
    suffixes = [suffix.lower() for suffix in PurePosixPath(file.name).suffixes]
    try:
        with file.open() as stream:
            sha256 = file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # all of ours have readinto
    except RejectedError as error:
        raise DataError(str(error.at(file.name))) from error
    return [*suffixes[-2 if is_archive(file.name) else -1 :], sha256]


def _check(places: list[Place], config: DataConfig) -> None:
    """Refuse a path that names nothing to read."""
    formats = _formats(config)
    wanted = " or ".join(suffix for suffix, file_format in FORMATS.items() if file_format in formats)
    names = [name_of(place) for place in places if isinstance(place, File) or place.fix]
    readable = [name for name in names if is_archive(name) or format_of(name, config.layout) in formats]
    if names and all(".xml" in PurePosixPath(name).suffixes for name in names):
        raise ConfigError(
            f"data.path={config.path}: {names[0]} is XML, which is not read. Of a Wikipedia give its parquet "
            "from the hub, its CirrusSearch dump (json), or what WikiExtractor --json makes of the XML."
        )
    if not names and (reason := explain_absent(str(config.path), "data.path")):
        raise ConfigError(reason)
    if not names or (not readable and len(names) > 1):
        raise ConfigError(f"data.path={config.path}: no {wanted} is there. Give a file, a folder or a quoted glob.")
    if not readable:
        raise ConfigError(
            f"data.path={config.path}: {names[0]} is not {wanted}, which is what data={config.kind.value} reads. "
            "Convert it, or say what it is with data.layout.format."
        )
