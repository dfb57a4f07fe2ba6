"""Files that are whole or absent: written under a temporary name beside the target, synced, renamed."""

import errno
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = "Make room on that disk; the same command goes on from there."
TEMPORARY = ".tmp-"  # what is left under this prefix belongs to a process that died


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole: a reader sees the old content or the new, never a part."""
    temporary, content = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}"), text.encode()
    try:
        with naming(path, temporary):
            temporary.write_bytes(content)
            sync_file(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented, Korean readable."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the name `path`, in place of what is there, when the block ends well.

    An error in the block leaves what is there. A folder cannot be replaced in one step: a crash between the two
    renames leaves none, never a part of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}"), path) as temporary:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            give_usual_mode(file)
            sync_file(file)
        sync_folder(temporary)
        earlier = path.with_name(f"{TEMPORARY}earlier-{path.name}-{os.getpid()}")
        if path.exists():
            path.rename(earlier)
        temporary.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved to `folder`, each whole, when the block ends well."""
    with _temporary_folder(folder / f"{TEMPORARY}files-{os.getpid()}", folder) as temporary:
        yield temporary
        for file in sorted(temporary.iterdir()):
            sync_file(file)
            file.replace(folder / file.name)
        sync_folder(folder)


@contextmanager
def _temporary_folder(temporary: Path, path: Path) -> Iterator[Path]:
    """An empty folder while the block runs, whose files are to have names in `path`."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(path, temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Have an error of a write say where, by the name that the file is to have, and of a full disk what is free.

    What is written may lie under a `temporary` name. What libraries in Rust (safetensors, tokenizers) say of a full
    disk and the like comes as an OSError too.
    """
    place = temporary or path
    try:
        yield
    except Exception as error:
        in_rust = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(in_rust[1]) if in_rust else None
        if number is None:
            raise
        said = str(getattr(error, "filename", None) or path).replace(str(place), str(path))
        reason = getattr(error, "strerror", None) or os.strerror(number)
        if number in FULL and ROOM not in reason:
            written = [file for file in (place, *place.rglob("*")) if file.is_file()]
            room = shutil.disk_usage(path.parent).free + sum(file.stat().st_size for file in written)
            reason += f": it takes more than the {room / 1e6:.2f} MB that are free. {ROOM}"
        raise OSError(number, reason, said) from error


def give_usual_mode(path: Path) -> None:
    """Let those read and write a file or folder who may by the umask: safetensors makes files for their owner alone."""
    umask = os.umask(0o077)  # what another thread makes meanwhile is private, not open to all
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def composed(name: str) -> str:
    """A file's name in NFC, as people type it: macOS takes Hangul apart, and copies keep that on other systems."""
    return unicodedata.normalize("NFC", name)


def sync_file(path: Path) -> None:
    """Have the disk hold the file's content before anything that comes after."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


sync_folder = sync_file  # a folder's entries are synced by the same calls


def clear_temporaries(folder: Path) -> None:
    """Remove what a process that died had under temporary names in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no white space), in hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
