"""A file -> the members of its zip, tar, gz, bz2, xz or zst, read where they lie: nothing is unpacked to disk.

Archives in archives, too; what must be gone back in and lies in a stream that cannot goes to a temporary file. A member
can be read until the next one is asked for. What cannot be read is rejected with the member's name, and no stream gives
more than an archive of its size plausibly holds.
"""

import bz2
import gzip
import lzma
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from llm.data.places import PART, File, no_data
from llm.data.records import Rejected, RejectedError
from llm.data.streams import BUFFER, WAY_OUT_OF_BOMB, implausible, open_stream, unreadable

DEPTH = 3  # archives within archives
PLAUSIBLE_RATIO = 300  # of bytes out to bytes in: running text gives 3 to 20, a bomb of zeros 1,000
PLAUSIBLE_BYTES = 64 * 2**20  # that any archive may give
SPOOL = 64 * 2**20  # bytes of what must be gone back in that are kept in memory; more go to a temporary file
DEFLATE64 = 9  # in the zip format's list of methods (APPNOTE 4.4.5)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)

# what zipfile and tarfile raise of a damaged list of members; each of these was seen
_OF_LISTS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    OSError,
    NotImplementedError,
    UnicodeDecodeError,
    OverflowError,
)
_HANGUL = re.compile("[가-힣ᄀ-ᇿ]")  # conjoining, too: macOS writes names in NFD


@dataclass(frozen=True, slots=True)
class Member:
    """A stream of bytes with its name: a plain file, or what is inside an archive."""

    name: str  # path inside its archive; a plain file's own
    origin: str  # file, or file!member
    size: int | None  # bytes when unpacked, where they are known
    open: Callable[[], BinaryIO]  # what it gives raises RejectedError where it cannot be read
    seekable: bool = True
    repaired: bool = False  # whether the name was in cp949


def members(file: File) -> Iterator[Member | Rejected]:
    """What a file holds: itself, if it is no archive."""
    yield from _inside(Member(file.name, file.name, file.size, file.open), DEPTH)


def is_archive(name: str) -> bool:
    """Whether members are looked for inside a file of this name."""
    return name.lower().endswith((".zip", ".tar", ".tgz", *_UNPACKED))


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


def _inside(member: Member, depth: int) -> Iterator[Member | Rejected]:
    name = member.name.lower()
    if depth < DEPTH and PART.fullmatch(PurePosixPath(name).name):
        fix = "Unpack the outer archive, and give data.path=<the folder>: the parts are joined there"
        yield Rejected(member.origin, "is a part of a split archive inside an archive", fix)
    elif not is_archive(name):
        yield member
    elif depth == 0:
        yield Rejected(member.origin, f"lies in more than {DEPTH} archives", WAY_OUT_OF_BOMB)
    else:
        try:
            if name.endswith(".zip"):
                yield from _packed(_in_zip(member), depth)
            elif name.endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
                yield from _packed(_in_tar(member), depth)
            else:
                yield from _inside(_unpacked(member), depth - 1)
        except (RejectedError, *_OF_LISTS) as error:
            yield unreadable(error).at(member.origin)


def _packed(found: Iterator[Member | Rejected], depth: int) -> Iterator[Member | Rejected]:
    """What the members of an archive are, or hold in their turn."""
    seen: set[str] = set()
    for each in found:
        if isinstance(each, Rejected):
            yield each
        elif wrong := _wrong_name(each.name, seen):
            yield Rejected(each.origin, *wrong)
        elif reason := no_data(each.name):
            yield Rejected(each.origin, reason)
        else:
            yield from _inside(each, depth - 1)


def _in_zip(member: Member) -> Iterator[Member | Rejected]:
    with seekable(member) as stream, zipfile.ZipFile(stream) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if sum(info.file_size for info in infos) > _plausible(member.size):
            raise implausible()
        for info in sorted(infos, key=lambda info: info.header_offset):
            name, repaired = _zip_name(info)
            origin = f"{member.origin}!{name}"

            def open_member(info: zipfile.ZipInfo = info) -> BinaryIO:
                return open_stream(lambda: archive.open(info), limit=_plausible(info.compress_size))

            if wrong := _wrong_method(info):
                yield Rejected(origin, *wrong)
            else:
                yield Member(name, origin, info.file_size, open_member, repaired=repaired)


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


def _wrong_method(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    if info.flag_bits & 0x1:
        return "is encrypted", "Unpack it with its password, and give data.path=<the folder>"
    if info.compress_type == DEFLATE64:
        fix = "Python cannot read that; unpack with 7z x or unzip, and give data.path=<the folder>"
        return "is compressed with Deflate64", fix
    if info.compress_type not in METHODS:
        fix = "Python cannot read that; unpack with 7z x, and give data.path=<the folder>"
        return f"is compressed with zip method {info.compress_type}", fix
    return None


def _in_tar(member: Member) -> Iterator[Member | Rejected]:
    if not member.name.lower().endswith(".tar"):
        member = _unpacked(member)
    mode: Any = "r:" if member.seekable else "r|"
    with member.open() as stream, tarfile.open(fileobj=stream, mode=mode, bufsize=BUFFER) as archive:
        for info in archive:
            name, repaired = _tar_name(info.name)
            origin = f"{member.origin}!{name}"

            def open_member(info: tarfile.TarInfo = info) -> BinaryIO:
                return open_stream(lambda: archive.extractfile(info))

            if info.isfile():
                yield Member(name, origin, info.size, open_member, seekable=member.seekable, repaired=repaired)
            elif not info.isdir():
                yield Rejected(origin, "is a link or a device in a tar", "Give data.path=<what it points to>")
            archive.members = []  # type: ignore[attr-defined]  # else it keeps the header of each for ever


def _tar_name(name: str) -> tuple[str, bool]:
    raw = name.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("cp949", "replace"), True


def _wrong_name(name: str, seen: set[str]) -> tuple[str, str] | None:
    """Of names that no honest archive has; nothing is unpacked, but what else is wrong with it is not known."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":" or ".." in PurePosixPath(plain).parts:
        return "has a name that leads out of its archive", "Pack it anew under a plain name"
    if plain in seen:
        return "has the name of an earlier member", "Pack it anew with one file of each name"
    seen.add(plain)
    return None


def _unpacked(member: Member) -> Member:
    """The one stream in a gz, bz2, xz or zst."""
    suffix = member.name[member.name.rindex(".") :].lower()
    name = member.name[: -len(suffix)] + (".tar" if suffix == ".tgz" else "")

    def open_member() -> BinaryIO:
        packed = member.open()
        return open_stream(lambda: _UNPACKED[suffix](packed), limit=_plausible(member.size), beneath=packed)

    return Member(name, member.origin, None, open_member, seekable=False, repaired=member.repaired)


def _gzip(packed: BinaryIO) -> Any:
    return gzip.GzipFile(fileobj=packed)


def _zst(packed: BinaryIO) -> Any:
    """Of any number of frames; unlike zstandard's own reader it notices that the last one is cut."""
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd")


_UNPACKED: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": _gzip,
    ".tgz": _gzip,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zst,
}


def _plausible(packed: int | None) -> int:
    return max(PLAUSIBLE_BYTES, PLAUSIBLE_RATIO * (packed or 0))
