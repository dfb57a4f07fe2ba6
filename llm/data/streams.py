"""Streams of other libraries as streams of one kind, which say in one way that they cannot be read."""

import io
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from llm.credentials import without_secrets
from llm.data.records import RejectedError

BUFFER = 2**20
WAY_OUT_OF_BOMB = "Look at it with care; if it is what it should be, unpack it and give data.path=<the folder>"


def unreadable(error: Exception) -> RejectedError:
    """What any library raised, in one way."""
    if isinstance(error, RejectedError):
        return error
    return RejectedError("is damaged or cut", f"Fetch it again, or remove it ({first_line(error)})")


def implausible() -> RejectedError:
    """Of what may be a bomb."""
    return RejectedError("unpacks to more than is plausible", WAY_OUT_OF_BOMB)


def first_line(error: Exception) -> str:
    """What an error says, without the credentials that a URL in it may hold."""
    return without_secrets((str(error) or type(error).__name__).splitlines()[0].rstrip("."))


def open_stream(
    open_source: Callable[[], Any],
    *,
    limit: int | None = None,
    explain: Callable[[Exception], RejectedError] = unreadable,
    beneath: BinaryIO | None = None,
) -> BinaryIO:
    """What `open_source` gives as a stream that raises RejectedError, by `explain`, for whatever its library raises.

    `limit`: bytes that it plausibly has, of which more are an error, too. `beneath`: what it reads, closed with it.
    """
    try:
        source = open_source()
    except Exception as error:  # each library and protocol has its own kinds
        raise explain(error) from error
    return io.BufferedReader(_Stream(source, limit, explain, beneath), BUFFER)


class _Stream(io.RawIOBase):
    def __init__(
        self, source: Any, limit: int | None, explain: Callable[[Exception], RejectedError], beneath: BinaryIO | None
    ) -> None:
        self._source, self._limit, self._explain, self._beneath = source, limit, explain, beneath
        self._read = getattr(source, "read1", source.read)  # of a stream that is cut, all that comes before the cut
        self._given = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._source.seekable())

    def tell(self) -> int:
        return int(self._source.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._given = 0  # a reader that goes back reads again
        try:
            return int(self._source.seek(offset, whence))
        except OSError:  # by which zipfile knows a file that is no zip
            raise
        except Exception as error:
            raise self._explain(error) from error

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(min(len(buffer), BUFFER))
        except Exception as error:
            raise self._explain(error) from error
        self._given += len(data)
        if self._limit is not None and self._given > self._limit:
            raise implausible()
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
            if self._beneath is not None:
                self._beneath.close()
        super().close()


class Joined(io.RawIOBase):
    """Files of such sizes, read as if they were one."""

    def __init__(self, paths: list[Path], sizes: list[int]) -> None:
        self._paths = paths
        *self._starts, self._size = accumulate(sizes, initial=0)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(22, "Invalid argument")
        self._position = start + offset
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
