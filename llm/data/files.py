"""The user's files of any format, plain or in archives -> documents or conversations, and what was left out."""

from collections.abc import Iterator
from fnmatch import fnmatch
from hashlib import file_digest
from pathlib import PurePosixPath

from llm.config import DataConfig, DataKind, FileFormat, Shape
from llm.data.records import Fault, Record
from llm.data.sources.absent import explain_absent
from llm.data.sources.archives import Member, damage, damages, is_archive, members
from llm.data.sources.formats import FORMATS, Reading, format_of, raw_records, suffixes
from llm.data.sources.layouts import columns, to_records
from llm.data.sources.places import File, Hidden, Place, Unreadable, find, is_hidden
from llm.errors import ConfigError
from llm.run import composed, digest_of

HIDDEN = "hidden files or folders, such as .ipynb_checkpoints"


def _formats(config: DataConfig) -> set[FileFormat]:
    """What is read: of conversations text files only where turns are known to be told apart by marks."""
    if config.kind is DataKind.text or config.layout.shape is Shape.tagged:
        return set(FORMATS.values())
    return set(FORMATS.values()) - {FileFormat.txt}


class Files:
    """The files that a path, a folder, a glob or a URL names, in the order of their names."""

    rights: str | None = None

    def __init__(self, config: DataConfig, places: list[Place]) -> None:
        self._config = config
        self.reading = Reading()  # of the last pass, and while it goes on
        self.places = places

    def digest(self) -> str:
        """SHA-256 over the files' contents and formats, in order; the rest of their names does not matter."""
        read = [place for place in self.places if not isinstance(place, Hidden) and not self.leaves_out(place.name)]
        return digest_of(list(map(_digest, read)))

    def records(self) -> Iterator[Record]:
        self.reading = Reading()
        for place in self.places:
            if isinstance(place, Hidden):
                self.reading.skipped[HIDDEN] += 1
            elif isinstance(place, File):
                for member in members(place):
                    yield from [member] if isinstance(member, Fault) else self.read(member)
            else:
                yield Fault(place.name, place.reason, place.fix)

    def read(self, member: Member) -> Iterator[Record]:
        """The records of one member; nothing but a count, if it is not what the config asks for."""
        if reason := self.leaves_out(member.name) or (HIDDEN if member.is_packed and is_hidden(member.name) else None):
            self.reading.skipped[reason] += 1
            return
        self.reading.members += 1
        self.reading.repaired_names += member.repaired
        if member.size == 0:
            yield Fault(f"{member.origin}:1", "the file is empty", "Remove it, or give another data.path")
            return
        file_format = format_of(member.name, self._config.layout)
        assert file_format is not None  # else it is left out
        raws = raw_records(member, file_format, self._config.layout, columns(self._config), self.reading)
        try:
            yield from to_records(raws, self._config, self.reading)
        except damages() as error:
            yield damage(error, member.origin)

    def leaves_out(self, name: str) -> str | None:
        """Why a file or member is not read; None if it is."""
        layout, file = self._config.layout, PurePosixPath(composed(name.replace("\\", "/")))
        if any(part.startswith("._") or part in ("__MACOSX", ".DS_Store", "Thumbs.db") for part in file.parts):
            return "files that an operating system left"
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


def _matches(file: PurePosixPath, pattern: str) -> bool:
    """A pattern without a slash is of the name alone."""
    pattern = composed(pattern)
    return fnmatch(str(file), pattern if "/" not in pattern else f"*{pattern}") or fnmatch(file.name, pattern)


def _digest(place: File | Unreadable) -> list[str]:
    if not isinstance(place, File):
        return [place.reason, ""]
    suffixes_of = [suffix.lower() for suffix in PurePosixPath(place.name).suffixes]
    with place.open() as file:
        sha256 = file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # every file of ours has readinto
    return [*suffixes_of[-2 if is_archive(place.name) else -1 :], sha256]


def _check(places: list[Place], config: DataConfig) -> None:
    """Refuse a path that names nothing to read."""
    wanted = " or ".join(suffixes(_formats(config)))
    places = [place for place in places if not isinstance(place, Hidden)]
    readable = [place for place in places if _is_wanted(place.name, config)]
    if places and all(".xml" in PurePosixPath(place.name).suffixes for place in places):
        raise ConfigError(
            f"data.path={config.path}: {places[0].name} is XML, which is not read. Of a Wikipedia give its parquet "
            "from the hub, its CirrusSearch dump (json), or what WikiExtractor --json makes of the XML."
        )
    if not places and (reason := explain_absent(str(config.path), "data.path")):
        raise ConfigError(reason)
    if not places or (not readable and len(places) > 1):
        raise ConfigError(f"data.path={config.path}: no {wanted} is there. Give a file, a folder or a quoted glob.")
    if not readable:
        raise ConfigError(
            f"data.path={config.path}: {places[0].name} is not {wanted}, which is what data={config.kind.value} reads. "
            "Convert it, or say what it is with data.layout.format."
        )


def _is_wanted(name: str, config: DataConfig) -> bool:
    return is_archive(name) or format_of(name, config.layout) in _formats(config)
