"""Who makes a run: a lock, and beside it the owner's host, process and heartbeat; what an owner sets aside.

The kernel lets go of the lock when its holder dies, so a dead owner on this host is taken over at once. Where a network
file system does not share locks between hosts, the heartbeat tells of a living owner elsewhere. An owner that was taken
over, as its beat did not come through or its process was suspended, ends at once: two never write.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from llm.environment import process_rank
from llm.errors import ConfigError, DamagedError, LaunchError, say_error
from llm.run.console import log
from llm.run.files import remove, write_json
from llm.run.record import read_record

T = TypeVar("T")

LOCK, OWNER = ".lock", ".owner.json"
EARLIER, RECORD = ".earlier", "run.json"
WAIT_SECONDS = 0.5  # between two looks at a run that another process makes
BEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 60.0  # without a beat
IDLE_SECONDS = 600.0  # without an owner: rank zero makes another run than a rank waits for, or none


class OwnedError(ConfigError):
    """Another process makes a run."""

    kind = "busy"

    def __init__(self, folder: Path) -> None:
        self.maker = _name(folder)
        super().__init__(f"{folder} is being made by {self.maker}. Wait for it, or end it first.")


@contextmanager
def owned(folder: Path, *, wait: bool) -> Iterator[None]:
    """Be the one process that makes the run in `folder` while the block runs.

    Raises:
        OwnedError: another one is, and `wait` says not to wait for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, has_waited = FileLock(folder / LOCK), False
    while not _take(lock, folder):
        if not wait:
            raise OwnedError(folder)
        if not has_waited:
            log.info("waiting for %s, which is being made by %s", folder, _name(folder))
            has_waited = True
        time.sleep(WAIT_SECONDS)
    try:
        with _heartbeat(folder / OWNER):
            yield
    finally:
        lock.release()


def is_owned(folder: Path) -> bool:
    """Whether a living process makes this run, or may make it: the lock of another user's run cannot be tried."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return _lives_elsewhere(folder)
    except (Timeout, PermissionError):
        return True


def wait_for_rank_zero(folder: Path, look: Callable[[], T | None]) -> T:
    """What `look` finds once rank zero has come so far with the run in `folder`, for as long as somebody is at it.

    Raises:
        LaunchError: nobody has begun it.
    """
    deadline = time.monotonic() + IDLE_SECONDS
    while (found := look()) is None:
        time.sleep(WAIT_SECONDS)
        if time.monotonic() >= deadline:
            if not is_owned(folder):
                raise LaunchError(
                    f"rank {process_rank()} has waited {IDLE_SECONDS / 60:.0f} minutes for rank 0 to begin {folder}, "
                    "and nobody is at it. All processes of a launch need the same code, data and folder for outputs."
                )
            deadline = time.monotonic() + IDLE_SECONDS
    return found


def _take(lock: FileLock, folder: Path) -> bool:
    try:
        lock.acquire(timeout=WAIT_SECONDS)  # not 0: somebody who looks whether it is held holds it for a moment
    except Timeout:
        return False
    if _lives_elsewhere(folder):
        lock.release()
        return False
    return True


def _lives_elsewhere(folder: Path) -> bool:
    """Whether an owner on another host has given a sign of life; the clock is the file system's, on both sides."""
    owner = _read(folder / OWNER)
    if owner is None or owner.get("host") == socket.gethostname():
        return False
    os.utime(folder / LOCK)
    return (folder / LOCK).stat().st_mtime - (folder / OWNER).stat().st_mtime < DEAD_AFTER_SECONDS


@contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    """A file that says who is here, touched every few seconds while the block runs, and then removed."""
    me = {"host": socket.gethostname(), "pid": os.getpid()}
    write_json(path, me)
    has_ended = Event()

    def beat() -> None:
        while not has_ended.wait(BEAT_SECONDS):
            try:
                if path.parent.is_dir() and json.loads(path.read_bytes() if path.exists() else b"0") != me:
                    _end_as_taken_over(path.parent)
                os.utime(path)
            except (OSError, ValueError) as error:
                log.warning("%s: no heartbeat for now (%s); after a minute another host may take over", path, error)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
        if _read(path) in (None, me):
            path.unlink(missing_ok=True)


def _end_as_taken_over(folder: Path) -> None:
    """End this process before it writes any more: another one is the owner, or has been it meanwhile."""
    with suppress(OSError):
        say_error(
            f"{folder} was taken over by {_name(folder)}, for this process gave no sign of life for a minute. It ends "
            "here, so that two do not write one run."
        )
    os._exit(DamagedError.exit_code)


def _name(folder: Path) -> str:
    owner = _read(folder / OWNER)
    return f"process {owner.get('pid')} on {owner.get('host')}" if owner else "another process"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


# reuse=never: what a run had made is set aside, and given back where its successor comes to nothing. It lies in the
# run's own folder, under EARLIER, so that the lock stays where it is and no search for runs sees it. run.json is moved
# first and given back last: as long as EARLIER has one, all of it is there.


def set_aside(folder: Path) -> None:
    """Have the folder be as new; what a run left there is kept, unless it never had a record."""
    forget_earlier(folder)
    if (folder / RECORD).exists():
        (folder / EARLIER).mkdir()
        for path in sorted(_content(folder), key=lambda path: path.name != RECORD):
            path.rename(folder / EARLIER / path.name)
    _clear(folder)


def keep_new_or_earlier(folder: Path) -> None:
    """Keep the new run once it is done or has a checkpoint; else give back what it was to replace.

    So it is also after any moment at which the process that set that aside was killed.
    """
    earlier = folder / EARLIER
    if (earlier / RECORD).exists():
        record = read_record(folder)  # of the new run; without it, what else is there is of the old
        if record is None or (record["status"] != "done" and not any(folder.glob("checkpoints/step-*"))):
            if record:
                _clear(folder)
            log.info("what was to take the place of %s came to nothing; it is again as it was", folder)
            for path in sorted(earlier.iterdir(), key=lambda path: path.name == RECORD):
                path.rename(folder / path.name)
    forget_earlier(folder)


def forget_earlier(folder: Path) -> None:
    """Remove what was set aside."""
    (folder / EARLIER / RECORD).unlink(missing_ok=True)
    if (folder / EARLIER).exists():
        remove(folder / EARLIER)


def _clear(folder: Path) -> None:
    for path in sorted(_content(folder), key=lambda path: path.name == RECORD):
        remove(path)


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in (EARLIER, LOCK, OWNER)]
