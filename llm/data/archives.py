"""A file -> the members of its zip, tar, gz, bz2, xz or zst, archives in archives too, read where they lie.

Nothing is unpacked to disk, but what must be gone back in and lies in a stream that cannot. A member can be read until
the next one is asked for.
"""

import bz2
import gzip
import io
import lzma
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from llm.data.records import Rejected, unreadable

DEPTH = 3  # archives within archives
PLAUSIBLE_RATIO = 300  # of bytes out to bytes in: running text gives 3 to 20, a bomb of zeros 1,000
PLAUSIBLE_BYTES = 64 * 2**20  # that any archive may give
SPOOL = 64 * 2**20  # bytes of what must be gone back in that are kept in memory; more go to a temporary file
HIDDEN = "hidden files or folders, such as .ipynb_checkpoints or __MACOSX"

_HANGUL = re.compile("[가-힣ᄀ-ᇿ]")  # conjoining, too: macOS writes names in NFD


@dataclass(frozen=True, slots=True)
class Member:
    """A stream of bytes with its name: a plain file, or what is inside an archive."""

    name: str  # path inside its archive; a plain file's own
    origin: str  # file, or file!member
    size: int | None  # bytes when unpacked, where they are known
    open: Callable[[], Any]  # a binary stream; it and its library may raise anything
    is_seekable: bool = True
    state: str = ""  # of a file: is another when the file is


def members(file: Member, depth: int = DEPTH) -> Iterator[Member | Rejected]:
    """What a file holds: itself, if it is no archive."""
    name = file.name.lower()
    if not is_archive(name):
        yield file
        return
    try:
        if depth == 0:
            raise Rejected(file.origin, f"lies in more than {DEPTH} archives", "Unpack it, and give data.path=<folder>")
        in_tar = re.search(r"\.(tar(\.\w+)?|tgz)$", name)
        inside = _in_zip(file) if name.endswith(".zip") else _in_tar(file) if in_tar else iter([_unpacked(file)])
        for member in inside:
            path = PurePosixPath(member.name.replace("\\", "/"))
            if member.origin != file.origin and (path.is_absolute() or ".." in path.parts):
                yield Rejected(member.origin, "has a name that leads out of its archive", "Pack it under a plain name")
            elif member.origin != file.origin and is_hidden(path):
                yield Rejected(member.origin, HIDDEN)
            else:
                yield from members(member, depth - 1)
    except Exception as error:  # of a damaged archive each library raises several kinds
        yield unreadable(file.origin, error)


def is_archive(name: str) -> bool:
    """Whether members are looked for inside a file of this name."""
    return name.lower().endswith((".zip", ".tar", ".tgz", *_UNPACKED))


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a part of a path begins with a dot, or is what macOS or Windows put there."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db") for part in path.parts)


def seekable(member: Member) -> Any:
    """The member as a stream that can go back, as the index at the end of a zip or a table asks for."""
    stream = member.open()
    if member.is_seekable:
        return stream
    spool = tempfile.SpooledTemporaryFile(SPOOL)  # noqa: SIM115  # the caller closes it
    with stream:
        shutil.copyfileobj(stream, spool, 2**20)
    spool.seek(0)
    return spool


def _in_zip(file: Member) -> Iterator[Member]:
    with seekable(file) as stream, _open_zip(stream) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if sum(info.file_size for info in infos) > _plausible(file.size):  # of which zipfile gives no byte more
            raise _implausible(file)
        for info in sorted(infos, key=lambda info: info.header_offset):
            origin = f"{file.origin}!{info.filename}"
            yield Member(info.filename, origin, info.file_size, partial(archive.open, info))


def _open_zip(stream: Any) -> zipfile.ZipFile:
    """With its names as they were written: without the UTF-8 flag Korean Windows has them in cp949, macOS in UTF-8.

    What has most Hangul is right: the bytes of 책 in cp949 are å in UTF-8.
    """
    archive = zipfile.ZipFile(stream)
    if all(info.flag_bits & 0x800 or info.filename.isascii() for info in archive.infolist()):
        return archive
    opened = [archive]
    for encoding in ("cp949", "utf-8"):
        with suppress(UnicodeDecodeError):
            opened.append(zipfile.ZipFile(stream, metadata_encoding=encoding))
    return max(opened, key=lambda archive: len(_HANGUL.findall("".join(archive.namelist()))))


def _in_tar(file: Member) -> Iterator[Member]:
    if not file.name.lower().endswith(".tar"):
        file = _unpacked(file)
    mode: Any = "r:" if file.is_seekable else "r|"
    with file.open() as stream, tarfile.open(fileobj=stream, mode=mode) as archive:
        for info in archive:
            if info.isfile():
                name = _tar_name(info.name)
                open_member = partial(archive.extractfile, info)
                yield Member(name, f"{file.origin}!{name}", info.size, open_member, file.is_seekable)
            archive.members = []  # type: ignore[attr-defined]  # else it keeps the header of each for ever


def _tar_name(name: str) -> str:
    """A name as it was written: tarfile leaves what is no UTF-8 as lone surrogates."""
    raw = name.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp949", "replace")


def _unpacked(file: Member) -> Member:
    """The one stream in a gz, bz2, xz or zst."""
    suffix = file.name[file.name.rindex(".") :].lower()
    name = file.name[: -len(suffix)] + (".tar" if suffix == ".tgz" else "")
    open_member = lambda: io.BufferedReader(_Unpacking(file, _UNPACKED[suffix]), 2**18)  # noqa: E731
    return Member(name, file.origin, None, open_member, is_seekable=False)


class _Unpacking(io.RawIOBase):
    """What a library unpacks, up to what is plausible."""

    def __init__(self, file: Member, unpack: Callable[[Any], Any]) -> None:
        self._file, self._packed, self._left = file, file.open(), _plausible(file.size)
        self._unpacked = unpack(self._packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unpacked.read1(len(buffer))  # of a stream that is cut, all that comes before the cut
        self._left -= len(data)
        if self._left < 0:
            raise _implausible(self._file)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        super().close()
        self._unpacked.close()
        self._packed.close()


def _zst(packed: Any) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd")


_UNPACKED: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda packed: gzip.GzipFile(fileobj=packed),
    ".tgz": lambda packed: gzip.GzipFile(fileobj=packed),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zst,
}


def _plausible(packed: int | None) -> int:
    return max(PLAUSIBLE_BYTES, PLAUSIBLE_RATIO * (packed or 0))


def _implausible(file: Member) -> Rejected:
    return Rejected(file.origin, "unpacks to more than is plausible", "Look at it with care, and unpack it yourself")
