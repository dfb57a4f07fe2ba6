"""A file -> the members of its zip, tar, gz, bz2, xz or zst, read where they lie: nothing is unpacked to disk.

Archives in archives, too; what must be gone back in and lies in a stream that cannot goes to a temporary file. A member
can be read until the next one is asked for. What cannot be read is a fault with the member's name, and no stream gives
more than an archive of its size plausibly holds.
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
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from llm.credentials import without_secrets
from llm.data.records import Fault
from llm.data.sources.places import PART, File, RemoteError

DEPTH = 3  # archives within archives
PLAUSIBLE_RATIO = 300  # of bytes out to bytes in: running text gives 3 to 20, a bomb of zeros 1,000
PLAUSIBLE_BYTES = 64 * 2**20  # that any archive may give
BUFFER = 2**20
SPOOL = 64 * 2**20  # bytes of what must be gone back in that are kept in memory; more go to a temporary file
DEFLATE64 = 9  # in the zip format's list of methods (APPNOTE 4.4.5)
WAY_OUT_OF_BOMB = "Look at it with care; if it is what it should be, unpack it and give data.path=<the folder>"

_HANGUL = re.compile("[가-힣ᄀ-ᇿ]")  # conjoining, too: macOS writes names in NFD
DAMAGE = (RemoteError, EOFError, OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Member:
    """A stream of bytes with its name: a plain file, or what is inside an archive."""

    name: str  # path inside its archive; a plain file's own
    origin: str  # file, or file!member
    size: int | None  # bytes when unpacked, where they are known
    open: Callable[[], BinaryIO]
    seekable: bool = True
    repaired: bool = False  # whether the name was in cp949

    @property
    def is_packed(self) -> bool:
        """Whether it lies in a zip or a tar."""
        return not self.origin.startswith(self.name)  # a gz's is its file's, without the suffix


class BombError(Exception):
    """A stream gave more than an archive of its size plausibly holds."""


def members(file: File) -> Iterator[Member | Fault]:
    """What a file holds: itself, if it is no archive."""
    yield from _open(Member(file.name, file.name, file.size, file.open), DEPTH)


def is_archive(name: str) -> bool:
    """Whether members are looked for inside a file of this name."""
    return name.lower().endswith((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst"))


def seekable(member: Member) -> Any:
    """The member as a stream that can go back, as the index at the end of a zip or a table asks for."""
    stream = member.open()
    if member.seekable:
        return stream
    spool = tempfile.SpooledTemporaryFile(SPOOL)  # noqa: SIM115  # the caller closes it
    with stream:
        shutil.copyfileobj(stream, spool, BUFFER)
    spool.seek(0)
    return spool


def damage(error: BaseException, origin: str, *, size: int = 0) -> Fault:
    """The fault of a stream that cannot be read on."""
    if isinstance(error, BombError):
        return Fault(origin, "unpacks to more than is plausible", WAY_OUT_OF_BOMB, size)
    if isinstance(error, RemoteError):
        reason, _, fix = str(error).rstrip(".").rpartition(". ")
        return Fault(origin, "cannot be read from its URL", f"{fix} ({reason})", size)
    message = without_secrets((str(error) or type(error).__name__).splitlines()[0].rstrip("."))  # of a URL, say
    return Fault(origin, "is damaged or cut", f"Fetch it again, or remove it ({message})", size)


def damages() -> tuple[type[BaseException], ...]:
    """What reading a damaged stream raises."""
    return (*DAMAGE, BombError, *_zstandard_errors())


def _open(member: Member, depth: int) -> Iterator[Member | Fault]:
    name = member.name.lower()
    if depth < DEPTH and PART.fullmatch(PurePosixPath(name).name):
        fix = "Unpack the outer archive, and give data.path=<the folder>: the parts are joined there"
        yield Fault(member.origin, "is a part of a split archive inside an archive", fix, member.size or 0)
    elif not is_archive(name):
        yield member
    elif depth == 0:
        yield Fault(member.origin, f"lies in more than {DEPTH} archives", WAY_OUT_OF_BOMB, member.size or 0)
    else:
        try:
            if name.endswith(".zip"):
                yield from _zip(member, depth)
            elif name.endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
                yield from _tar(member, depth)
            else:
                yield from _open(_unpacked(member), depth - 1)
        except _of_archives() as error:
            yield damage(error, member.origin, size=member.size or 0)


def _zip(member: Member, depth: int) -> Iterator[Member | Fault]:
    with seekable(member) as stream, zipfile.ZipFile(stream) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if sum(info.file_size for info in infos) > _plausible(member.size):
            raise BombError
        seen: set[str] = set()
        for info in sorted(infos, key=lambda info: info.header_offset):
            name, repaired = _zip_name(info)
            origin = f"{member.origin}!{name}"
            if fault := _name_fault(name, origin, seen) or _zip_fault(info, origin):
                yield fault
                continue

            def open_member(info: zipfile.ZipInfo = info) -> BinaryIO:
                try:
                    inside = archive.open(info)
                except (NotImplementedError, UnicodeDecodeError, RuntimeError) as error:  # its two headers disagree
                    raise zipfile.BadZipFile(str(error)) from error
                return io.BufferedReader(Counted(inside, _plausible(info.compress_size)), BUFFER)

            yield from _open(Member(name, origin, info.file_size, open_member, repaired=repaired), depth - 1)


def _zip_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """(the name, whether it was repaired): without the UTF-8 flag zipfile takes names for cp437, where Korean Windows
    wrote cp949 and macOS UTF-8. What has more Hangul is right: the bytes of 책 in cp949 are å in UTF-8.
    """
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename, False
    raw = info.filename.encode("cp437")
    names = [raw.decode(encoding, "ignore") for encoding in ("utf-8", "cp949")]
    name = max(names, key=lambda name: len(_HANGUL.findall(name)))
    return (name, True) if _HANGUL.search(name) else (info.filename, False)


def _zip_fault(info: zipfile.ZipInfo, origin: str) -> Fault | None:
    if info.flag_bits & 0x1:
        fix = "Unpack it with its password, and give data.path=<the folder>"
        return Fault(origin, "is encrypted", fix, info.file_size)
    if info.compress_type == DEFLATE64:
        fix = "Python cannot read that; unpack with 7z x or unzip, and give data.path=<the folder>"
        return Fault(origin, "is compressed with Deflate64", fix, info.file_size)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        fix = "Python cannot read that; unpack with 7z x, and give data.path=<the folder>"
        return Fault(origin, f"is compressed with zip method {info.compress_type}", fix, info.file_size)
    return None


def _tar(member: Member, depth: int) -> Iterator[Member | Fault]:
    if not member.name.lower().endswith(".tar"):
        member = _unpacked(member)
    seen: set[str] = set()
    mode: Any = "r:" if member.seekable else "r|"
    with member.open() as stream, tarfile.open(fileobj=stream, mode=mode, bufsize=BUFFER) as archive:
        for info in archive:
            name, repaired = _tar_name(info.name)
            origin = f"{member.origin}!{name}"
            if info.isdir():
                continue
            if not info.isfile():
                yield Fault(origin, "is a link or a device in a tar", "Give data.path=<what it points to>")
                continue
            if fault := _name_fault(name, origin, seen):
                yield fault
                continue

            def open_member(info: tarfile.TarInfo = info) -> BinaryIO:
                inside = archive.extractfile(info)
                assert inside is not None  # it is a file
                return io.BufferedReader(_Raw(inside), BUFFER)

            yield from _open(
                Member(name, origin, info.size, open_member, seekable=member.seekable, repaired=repaired), depth - 1
            )
            archive.members = []  # type: ignore[attr-defined]  # else it keeps the header of each for ever


def _tar_name(name: str) -> tuple[str, bool]:
    raw = name.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("cp949", "replace"), True


def _name_fault(name: str, origin: str, seen: set[str]) -> Fault | None:
    """Names that no honest archive has; nothing is unpacked, but what else is wrong with such a file is not known."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":" or ".." in PurePosixPath(plain).parts:
        return Fault(origin, "has a name that leads out of its archive", "Pack it anew under a plain name")
    if plain in seen:
        return Fault(origin, "has the name of an earlier member", "Pack it anew with one file of each name")
    seen.add(plain)
    return None


def _unpacked(member: Member) -> Member:
    """The one stream in a gz, bz2, xz or zst."""
    suffix = member.name[member.name.rindex(".") :].lower()
    name = member.name[: -len(suffix)] + (".tar" if suffix == ".tgz" else "")
    limit = _plausible(member.size)

    def open_stream() -> BinaryIO:
        packed = member.open()
        raw: Any = _READERS[suffix](packed)
        return io.BufferedReader(Counted(raw, limit, packed=packed), BUFFER)

    return Member(name, member.origin, None, open_stream, seekable=False, repaired=member.repaired)


def _gzip(packed: BinaryIO) -> Any:
    return gzip.GzipFile(fileobj=packed)


def _plausible(packed: int | None) -> int:
    return max(PLAUSIBLE_BYTES, PLAUSIBLE_RATIO * (packed or 0))


class _Raw(io.RawIOBase):
    """A stream of any kind as one that a BufferedReader takes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # what is there: of a stream that is cut, all that comes before the cut
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class Counted(_Raw):
    """A stream that stops with a BombError past `limit` bytes."""

    def __init__(self, stream: Any, limit: int, *, packed: BinaryIO | None = None) -> None:
        super().__init__(stream)
        self._limit, self._given = limit, 0
        self._packed = packed  # closed with it

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._given += count
        if self._given > self._limit:
            raise BombError
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._given = 0  # a reader that goes back reads again
        return super().seek(offset, whence)

    def close(self) -> None:
        super().close()
        if self._packed is not None:
            self._packed.close()


class Zstd:
    """A zst stream of any number of frames, which unlike the library's own reader notices that the last one is cut."""

    def __init__(self, packed: BinaryIO) -> None:
        import zstandard

        self._packed = packed
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._rest, self._ready, self._offset = b"", b"", 0
        self._in_frame = False

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")

    def read1(self, size: int) -> bytes:
        while self._offset == len(self._ready):
            packed = self._rest or self._packed.read(2**16)
            self._rest = b""
            if not packed:
                if self._in_frame:
                    raise EOFError("the last zst frame is cut")
                return b""
            self._ready, self._offset = self._frame.decompress(packed), 0
            self._in_frame = not self._frame.eof
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._frame = self._new()
        data = self._ready[self._offset : self._offset + size]
        self._offset += len(data)
        return data

    def close(self) -> None:
        self._ready = self._rest = b""


_READERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": _gzip,
    ".tgz": _gzip,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": Zstd,
}


def _of_archives() -> tuple[type[BaseException], ...]:
    """What zipfile and tarfile raise of a damaged list of members, too; each of these was seen."""
    return (*damages(), NotImplementedError, UnicodeDecodeError, OverflowError)


def _zstandard_errors() -> tuple[type[BaseException], ...]:
    import sys

    module = sys.modules.get("zstandard")  # an error of it was raised only if it is there
    return (module.ZstdError,) if module else ()
