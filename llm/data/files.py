"""The user's files of any format, plain or in archives -> documents or conversations, and what is left out.

archives.py   a file -> its members
parse.py      a member -> records as it has them
layout.py     such a record -> a document, or by turns.py a conversation
"""

import io
import json
import os
import re
import shlex
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from glob import glob
from hashlib import file_digest
from itertools import accumulate
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name
from typing import Any

from llm.config.data import DataConfig, DataKind, FileFormat, Shape
from llm.config.overrides import to_paste
from llm.credentials import MASK, without_secrets
from llm.data.archives import HIDDEN, Member, is_archive, is_hidden, members
from llm.data.layout import columns, to_records
from llm.data.parse import FORMATS, format_of, parse
from llm.data.records import Record, Rejected, unreadable
from llm.errors import ConfigError, DataError
from llm.run.files import composed, digest_of

PART = re.compile(r"(.+\.(?:zip|tar|tgz|gz|zst))\.part(\d+)", re.IGNORECASE)


Places = list[Member | Rejected]  # files, and what cannot be one, in the order of their names


def find_files(config: DataConfig) -> Places:
    """The files that data.path names; nothing is read yet, but what data.made_by makes is made if it is not there.

    Raises:
        ConfigError: there is none that can be read.
    """
    if config.made_by and not Path(str(config.path)).exists():
        resolve_name(config.made_by)(Path(str(config.path)))
    places = find(str(config.path))
    _check(places, config)
    return places


def read_files(places: Places, config: DataConfig, encodings: Counter[str] | None = None) -> Iterator[Record]:
    """Every record in a fixed order, or why it is left out; the encodings of the files that are read are counted."""
    counted = Counter[str]() if encodings is None else encodings
    for place in places:
        for member in members(place) if isinstance(place, Member) else [place]:
            if isinstance(member, Rejected):
                yield member
            elif reason := leaves_out(member.name, config):
                yield Rejected(member.origin, reason)
            elif member.size == 0:
                yield Rejected(f"{member.origin}:1", "the file is empty", "Remove it, or give another data.path")
            else:
                yield from to_records(parse(member, config.layout, columns(config), counted), config)


def digest_of_files(places: Places, config: DataConfig) -> str:
    """SHA-256 over the files' contents and formats, in order; the rest of their names does not matter.

    Raises:
        DataError: one cannot be read.
    """
    read = _read_by(config, places)
    return digest_of([_digest(each) if isinstance(each, Member) else [each.reason, ""] for each in read])


def state_of_files(places: Places, config: DataConfig) -> str:
    """What is another one where a file may be: by their paths, sizes and times of change; nothing is opened."""
    return digest_of([each.state if isinstance(each, Member) else str(each) for each in _read_by(config, places)])


def _read_by(config: DataConfig, places: Places) -> Places:
    return [each for each in places if _is_wanted(each) and not leaves_out(each.origin, config)]


def _is_wanted(place: Member | Rejected) -> bool:
    return isinstance(place, Member) or place.fix is not None


def leaves_out(name: str, config: DataConfig) -> str | None:
    """Why a file or member is not read; None if it is."""
    layout, file = config.layout, PurePosixPath(composed(name.replace("\\", "/")))
    if is_archive(file.name):
        return None
    if layout.files and not any(_matches(file, pattern) for pattern in layout.files):
        return "files that data.layout.files does not name"
    if any(_matches(file, pattern) for pattern in layout.skip):
        return "files that data.layout.skip names"
    if format_of(file.name, layout) not in _formats(config):
        return f"files of another suffix ({file.suffix.lower() or 'none'})"
    return None


def _formats(config: DataConfig) -> set[FileFormat]:
    """What is read: of conversations text files only where turns are known to be told apart by marks."""
    if config.kind is DataKind.text or config.layout.shape is Shape.tagged:
        return set(FORMATS.values())
    return set(FORMATS.values()) - {FileFormat.txt}


def _matches(file: PurePosixPath, pattern: str) -> bool:
    """A pattern without a slash is of the name alone."""
    pattern = composed(pattern)
    return fnmatch(str(file), pattern if "/" not in pattern else f"*{pattern}") or fnmatch(file.name, pattern)


def _digest(file: Member) -> list[str]:
    suffixes = [suffix.lower() for suffix in PurePosixPath(file.name).suffixes]
    try:
        with file.open() as stream:
            sha256 = file_digest(stream, "sha256").hexdigest()
    except Exception as error:
        raise DataError(str(unreadable(file.origin, error))) from error
    return [*suffixes[-2 if is_archive(file.name) else -1 :], sha256]


def _check(places: Places, config: DataConfig) -> None:
    """Refuse a path that names nothing to read."""
    formats = _formats(config)
    wanted = " or ".join(suffix for suffix, file_format in FORMATS.items() if file_format in formats)
    names = [each.origin for each in places if _is_wanted(each)]
    if any(is_archive(name) or format_of(name, config.layout) in formats for name in names):
        return
    if not names and (reason := explain_absent(str(config.path), "data.path")):
        raise ConfigError(reason)
    if len(names) != 1:
        raise ConfigError(f"data.path={config.path}: no {wanted} is there. Give a file, a folder or a quoted glob.")
    raise ConfigError(
        f"data.path={config.path}: {names[0]} is not {wanted}, which is what data={config.kind.value} reads. "
        "Convert it, or say what it is with data.layout.format."
    )


def find(path: str) -> Places:
    """Every file that a path names, sorted by its path; nothing is opened. A split archive is one file.

    Raises:
        ConfigError: a URL cannot be listed, or the path is one that was recorded without its credential.
    """
    if MASK in path:  # a glob of every name otherwise
        raise ConfigError(
            f"data.path={path}: {MASK} stands for a credential, which no run records. Give data=<its choice> and "
            "data.path=<the whole of it> again."
        )
    if "://" in path:
        return _remote(path)
    forms = dict.fromkeys([path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))])  # NFD: of macOS
    path = next((form for form in forms if Path(form).exists()), path)
    if Path(path).is_dir():
        return _in_folder(path)
    if Path(path).is_file():  # before glob: a file's name may hold a bracket
        return _joined([Path(path)])
    found = {Path(name) for form in forms for name in glob(form, recursive=True)}
    return _joined(sorted(place for place in found if not place.is_dir()))


def _in_folder(folder: str) -> Places:
    found: list[Path] = []
    left_out: list[Rejected] = []
    seen: set[str] = set()

    def unlisted(error: OSError) -> None:
        left_out.append(unreadable(str(error.filename), error))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=unlisted):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            left_out.append(Rejected(place, "folders that link to one that was read"))
            continue
        seen.add(real)
        hidden = [name for name in (*folders, *names) if is_hidden(PurePosixPath(name))]
        left_out += [Rejected(os.path.join(place, name), HIDDEN) for name in sorted(hidden)]
        folders[:] = [name for name in folders if name not in hidden]
        shown = [name for name in names if name not in hidden and name != "dataset_dict.json"]
        found += [Path(place, name) for name in _saved_by_datasets(Path(place)) or shown]
    return [*_joined(sorted(found)), *left_out]


def _saved_by_datasets(folder: Path) -> list[str]:
    """The data files of a folder that `Dataset.save_to_disk` wrote, for caches lie beside them; none of any other."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _joined(paths: Iterable[Path]) -> Places:
    """The files, where parts of an archive (x.zip.part0, x.zip.part1073741824) are the one that they are cut from."""
    groups: dict[Path, list[tuple[int, Path]]] = {}
    for path in paths:
        part = PART.fullmatch(path.name)
        whole, number = (path.with_name(part[1]), int(part[2])) if part else (path, 0)
        groups.setdefault(whole, []).append((number, path))
    return [_file(whole, [path for _, path in sorted(parts)]) for whole, parts in sorted(groups.items())]


def _file(path: Path, parts: list[Path]) -> Member | Rejected:
    name = str(path)
    if not all(part.is_file() for part in parts):  # opening a pipe would wait for ever
        return Rejected(name, "cannot be read", "It is no plain file, or a link to none. Remove it")
    stats = [part.stat() for part in parts]
    state = f"{path.resolve()} {[(stat.st_size, stat.st_mtime_ns) for stat in stats]}"
    opened = partial(open, path, "rb") if parts == [path] else lambda: io.BufferedReader(_Parts(parts), 2**20)
    return Member(name, name, sum(stat.st_size for stat in stats), opened, state=state)


class _Parts(io.RawIOBase):
    """Files that are read as if they were one."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths, self._position = paths, 0
        *self._starts, self._size = accumulate((path.stat().st_size for path in paths), initial=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        part = bisect_right(self._starts, self._position) - 1
        with self._paths[part].open("rb", buffering=0) as file:
            file.seek(self._position - self._starts[part])
            count = file.readinto(buffer)
        self._position += count
        return count


def _remote(url: str) -> Places:
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


def _remote_file(system: Any, name: str) -> Member:
    shown, size = without_secrets(system.unstrip_protocol(name)), int(system.size(name) or 0)
    return Member(shown, shown, size, partial(system.open, name, "rb"), state=f"{system.ukey(name)} {size}")


def explain_absent(path: str, key: str | None = None) -> str | None:
    """What is missing of a path, and the nearest name that is there; None where the path exists, or is a URL.

    `key`: the setting that it was typed as.
    """
    if "://" in path or Path(path).exists():
        return None
    typed = f"{key}={path}" if key else path
    if any(sign in path for sign in "*?["):
        return f"{typed}: no file matches it. Give a file, a folder, a quoted glob or a URL."
    missing = Path(path)
    while not missing.parent.exists():
        missing = missing.parent
    names = {composed(name).lower(): name for name in sorted(os.listdir(missing.parent)) if not name.startswith(".")}
    if close := get_close_matches(composed(missing.name).lower(), names, n=1):
        meant = str(missing.parent / names[close[0]] / Path(path).relative_to(missing))
        return f"{typed} does not exist. Did you mean {to_paste(key, meant) if key else shlex.quote(meant)}?"
    return f"{typed} does not exist: {missing.parent.resolve()} has no {missing.name}. Give a file that is there."
