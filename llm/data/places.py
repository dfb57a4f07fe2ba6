"""A path, folder, glob or URL -> the files that it names, in a fixed order; a split archive is one file."""

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from llm.config.overrides import to_paste
from llm.credentials import MASK, without_secrets
from llm.data.records import Rejected, RejectedError
from llm.data.streams import Joined, first_line, open_stream
from llm.errors import ConfigError
from llm.run.files import composed

_URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)  # two letters or more: C:\ is a drive
PART = re.compile(r"(?P<whole>.+\.(?:zip|tar|tgz|gz|zst))\.part(?P<offset>\d+)", re.IGNORECASE)
HIDDEN = "hidden files or folders, such as .ipynb_checkpoints"
OF_SYSTEM = "files that an operating system left"
SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class File:
    """A file that can be opened: on disk, in a split archive, or behind a URL."""

    name: str  # as messages show it
    size: int
    open: Callable[[], BinaryIO]  # what it gives raises RejectedError where it cannot be read
    state: str  # is another when the file is: its path, size and time of change, or what its server says


Place = File | Rejected


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
        left_out: list[Rejected] = []
        return [*_joined(_in_folder(path, left_out)), *left_out]
    found = {Path(name) for form in forms for name in glob(form, recursive=True)}
    return _joined(sorted(place for place in found if not place.is_dir()))


def left_by_system(name: str) -> bool:
    """Whether a part of a path is what macOS or Windows put there."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return any(part.startswith("._") or part in ("__MACOSX", ".DS_Store", "Thumbs.db") for part in parts)


def no_data(name: str) -> str | None:
    """Why a file in an archive is none of the user's data, by its path there; None where it may be."""
    if left_by_system(name):
        return OF_SYSTEM
    return HIDDEN if is_hidden(name) else None


def is_hidden(name: str) -> bool:
    """Whether a part of a path begins with a dot."""
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts)


def _in_folder(folder: str, left_out: list[Rejected]) -> list[Path]:
    """The files under a folder, links followed once; what is hidden or cannot be listed goes to `left_out`."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        left_out.append(_explain(str(error.filename), error))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            left_out.append(Rejected(place, "the folder links back to one that was read", "Remove the link"))
            continue
        seen.add((status.st_dev, status.st_ino))
        hidden = sorted(filter(is_hidden, [*folders, *names]))
        left_out += [Rejected(os.path.join(place, name), HIDDEN) for name in hidden]
        folders[:] = [name for name in folders if not is_hidden(name)]
        saved = _saved_by_datasets(Path(place))
        of_folder = [Path(place, name) for name in names if not is_hidden(name) and name != "dataset_dict.json"]
        found += of_folder if saved is None else saved
    return sorted(found)


def _saved_by_datasets(folder: Path) -> list[Path] | None:
    """The data files of a folder that `Dataset.save_to_disk` wrote, for caches lie beside them; None for any other."""
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
    return sorted(places, key=lambda place: Path(name_of(place))) if whole else places


def name_of(place: Place) -> str:
    return place.name if isinstance(place, File) else place.origin


def _local(path: Path) -> Place:
    try:
        status = path.stat()
        if not os.access(path, os.R_OK):
            raise PermissionError(13, "Permission denied")
        if not path.is_file():
            return Rejected(str(path), "not a plain file", "Remove it")
    except OSError as error:
        return _explain(str(path), error)
    state = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    return File(str(path), status.st_size, lambda: open_stream(lambda: path.open("rb")), state)


def _explain(name: str, error: OSError) -> Rejected:
    fix = "Give yourself the right to read it" if isinstance(error, PermissionError) else "Put it right, or remove it"
    return Rejected(name, f"cannot be read ({error.strerror or error})", fix)


def _from_parts(name: str, parts: dict[int, Path]) -> Place:
    """The offsets in the suffixes say whether all parts are there and in which order they go."""
    files = [_local(parts[offset]) for offset in sorted(parts)]
    if unreadable := next((file for file in files if isinstance(file, Rejected)), None):
        return unreadable
    sizes = [file.size for file in files if isinstance(file, File)]
    starts = [sum(sizes[:count]) for count in range(len(sizes))]
    numbered = sorted(parts) in (list(range(len(parts))), list(range(1, len(parts) + 1)))  # .part0 .part1, or from 1
    if sorted(parts) != starts and not numbered:
        missing = next(start for start, offset in zip(starts, sorted(parts), strict=True) if start != offset)
        fix = f"A part that begins at byte {missing} is missing or cut; fetch the parts again"
        return Rejected(name, "parts of the split archive are missing", fix)
    ordered = [parts[offset] for offset in sorted(parts)]
    state = "\n".join(file.state for file in files if isinstance(file, File))
    return File(name, sum(sizes), lambda: open_stream(lambda: Joined(ordered, sizes)), state)


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
    def explain(error: Exception) -> RejectedError:
        fix = f"Try again, or fetch the file and give data.path=<where it is> ({shown}: {first_line(error)})"
        return RejectedError("cannot be read from its URL", fix)

    shown = without_secrets(system.unstrip_protocol(name))
    size = int(system.size(name) or 0)
    opened = partial(open_stream, lambda: system.open(name, "rb"), explain=explain)
    return File(shown, size, opened, f"{system.ukey(name)} {size}")


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
    said = f"{typed} does not exist" + ("" if missing == Path(path) else f": there is no {missing}")
    names = {composed(name).lower(): name for name in sorted(os.listdir(missing.parent)) if not name.startswith(".")}
    if close := get_close_matches(composed(missing.name).lower(), names, n=1):
        meant = str(missing.parent / names[close[0]] / Path(path).relative_to(missing))
        return f"{said}. Did you mean {to_paste(key, meant) if key else shlex.quote(meant)}?"
    shown = ", ".join([*names.values()][:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    return f"{said}. {missing.parent.resolve()} has {shown or 'nothing in it'}."
