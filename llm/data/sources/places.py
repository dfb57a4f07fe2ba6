"""A path, folder, glob or URL -> the files that it names, in a fixed order; a split archive is one file."""

import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from llm.credentials import MASK, without_secrets
from llm.errors import ConfigError, DataError

_URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)  # two letters or more: C:\ is a drive
PART = re.compile(r"(?P<whole>.+\.(?:zip|tar|tgz|gz|zst))\.part(?P<offset>\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """A file that can be opened: on disk, in a split archive, or behind a URL."""

    name: str  # as messages show it
    size: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What cannot be looked into."""

    name: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Hidden:
    """A file or a folder with a name that begins with a dot, such as .ipynb_checkpoints: it is no data."""

    name: str


Place = File | Unreadable | Hidden


def find(path: str) -> list[Place]:
    """Every file that a path names, sorted by its path; nothing is opened.

    Raises:
        ConfigError: a URL cannot be listed, or the path is one that was recorded without its credential.
    """
    if MASK in path:  # a glob of every name otherwise
        raise ConfigError(
            f"data.path={path}: {MASK} stands for a credential, which no run records. Give data=<its choice> and "
            "data.path=<the whole of it> again."
        )
    if _URL.match(path):
        return _remote(path)
    forms = list(dict.fromkeys([path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]))
    path = next((form for form in forms if Path(form).exists()), path)  # macOS writes names in NFD, as no one types
    if Path(path).is_file():  # before glob: a file's name may hold a bracket
        return _joined([Path(path)])
    if Path(path).is_dir():
        others: list[Place] = []
        return [*_joined(_in_folder(path, others)), *others]
    found = {Path(name) for form in forms for name in glob(form, recursive=True)}
    return _joined(sorted(place for place in found if not place.is_dir()))


def is_hidden(name: str) -> bool:
    """Whether a part of a path begins with a dot."""
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts)


def _in_folder(folder: str, others: list[Place]) -> list[Path]:
    """The files under a folder, links followed once; what is hidden or cannot be listed goes to `others`."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        others.append(_explain(str(error.filename), error))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            others.append(Unreadable(place, "the folder links back to one that was read", "Remove the link"))
            continue
        seen.add((status.st_dev, status.st_ino))
        others += [Hidden(os.path.join(place, name)) for name in sorted([*folders, *names]) if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += _of_folder(Path(place), [name for name in names if not is_hidden(name)])
    return sorted(found)


def _of_folder(folder: Path, names: list[str]) -> list[Path]:
    """A folder's files; of one that `datasets` saved only its data, for caches and metadata lie beside it."""
    if (saved := _dataset_files(folder)) is not None:
        return saved
    return [folder / name for name in names if name != "dataset_dict.json"]


def _dataset_files(folder: Path) -> list[Path] | None:
    """The data files of a folder that `Dataset.save_to_disk` wrote; None for any other."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _joined(paths: Iterable[Path]) -> list[Place]:
    """Files of the paths; parts of a split archive (x.zip.part0, x.zip.part1073741824) as the one they are cut from."""
    whole: dict[str, dict[int, Path]] = {}
    places: list[Place] = []
    for path in paths:
        if part := PART.fullmatch(path.name):
            whole.setdefault(str(path.with_name(part["whole"])), {})[int(part["offset"])] = path
        else:
            places.append(_local(path))
    places += [_from_parts(name, parts) for name, parts in whole.items()]
    return sorted(places, key=lambda place: Path(place.name)) if whole else places


def _local(path: Path) -> Place:
    try:
        size = path.stat().st_size
        if not os.access(path, os.R_OK):
            raise PermissionError(13, "Permission denied")
        if not path.is_file():
            return Unreadable(str(path), "not a plain file", "Remove it")
    except OSError as error:
        return _explain(str(path), error)
    return File(str(path), size, lambda: path.open("rb"))


def _explain(name: str, error: OSError) -> Unreadable:
    fix = "Give yourself the right to read it" if isinstance(error, PermissionError) else "Put it right, or remove it"
    return Unreadable(name, f"cannot be read ({error.strerror or error})", fix)


def _from_parts(name: str, parts: dict[int, Path]) -> Place:
    """The offsets in the suffixes say whether all parts are there and in which order they go."""
    files = [_local(parts[offset]) for offset in sorted(parts)]
    if unreadable := next((file for file in files if isinstance(file, Unreadable)), None):
        return unreadable
    sizes = [file.size for file in files if isinstance(file, File)]
    starts = [sum(sizes[:count]) for count in range(len(sizes))]
    numbered = sorted(parts) in (list(range(len(parts))), list(range(1, len(parts) + 1)))  # .part0 .part1, or from 1
    if sorted(parts) != starts and not numbered:
        missing = next(start for start, offset in zip(starts, sorted(parts), strict=True) if start != offset)
        fix = f"A part that begins at byte {missing} is missing or cut; fetch the parts again"
        return Unreadable(name, "parts of the split archive are missing", fix)
    ordered = [parts[offset] for offset in sorted(parts)]
    return File(name, sum(sizes), lambda: io.BufferedReader(Joined(ordered, sizes)))


class Joined(io.RawIOBase):
    """Files read as if they were one."""

    def __init__(self, paths: list[Path], sizes: list[int]) -> None:
        self._paths, self._sizes = paths, sizes
        self._position = 0
        self._file: BinaryIO | None = None
        self._index = -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: sum(self._sizes)}[whence]
        if start + offset < 0:
            raise OSError(22, "Invalid argument")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        before = self._position
        for index, size in enumerate(self._sizes):
            if before < size:
                return self._read_part(index, before, memoryview(buffer)[: size - before])
            before -= size
        return 0

    def _read_part(self, index: int, offset: int, buffer: memoryview) -> int:
        if index != self._index:
            if self._file is not None:
                self._file.close()
            self._file, self._index = self._paths[index].open("rb"), index
        assert self._file is not None
        self._file.seek(offset)
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]  # of a buffered file
        self._position += count
        return int(count)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _remote(url: str) -> list[Place]:
    """The files behind a URL of any kind that fsspec knows: hf://datasets/<owner>/<name>, https://, s3://."""
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(url)
        if any(sign in inside for sign in "*?[") and not system.exists(inside):
            names = system.glob(inside)
        else:
            names = system.find(inside) if system.isdir(inside) else [inside]
        return [_remote_file(system, str(name)) for name in sorted(names)]
    except Exception as error:  # each protocol has its own kinds
        message = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"data.path={url}: cannot be listed ({message}). Check the URL and your access.") from error


def _remote_file(system: Any, name: str) -> File:
    size = system.size(name)
    shown = without_secrets(system.unstrip_protocol(name))
    return File(shown, int(size or 0), lambda: io.BufferedReader(_Remote(system, name), 2**20))


FETCH_IT = "Try again, or fetch the file and give data.path=<where it is>"


class RemoteError(DataError):
    """What a protocol raised while a file was read; no OSError, which zipfile takes for a file that is no zip."""


class _Remote(io.RawIOBase):
    """A file behind a URL."""

    def __init__(self, system: Any, name: str) -> None:
        self._name = name
        self._file = self._ask(system.open, name, "rb")

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except OSError:
            raise
        except Exception as error:  # each protocol has its own kinds
            message = (str(error) or type(error).__name__).splitlines()[0]
            raise RemoteError(without_secrets(f"{self._name}: {message.rstrip('.')}. {FETCH_IT}.")) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._ask(self._file.seek, offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._ask(self._file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
