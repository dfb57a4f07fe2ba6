"""reuse=never: what a run had made is set aside, and given back where its successor comes to nothing.

It lies in the run's own folder, under EARLIER, so that the folder's lock stays where it is and no search for runs sees
it. run.json is moved first and given back last: as long as EARLIER has one, all of it is there. Only the owner of the
folder does any of this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm.environment import command_id
from llm.errors import StoppedError
from llm.run.console import log
from llm.run.files import remove
from llm.run.owner import LOCK, OWNER
from llm.run.record import read_record

EARLIER = ".earlier"
RECORD = "run.json"
_STAYS = (EARLIER, LOCK, OWNER)


def set_aside(folder: Path) -> None:
    """Have the folder be as new; what a run left there is kept, unless it never had a record."""
    forget_earlier(folder)
    if (folder / RECORD).exists():
        (folder / EARLIER).mkdir()
        (folder / RECORD).rename(folder / EARLIER / RECORD)
        for path in _content(folder):
            path.rename(folder / EARLIER / path.name)
    _clear(folder)


@contextmanager
def taking_its_place(folder: Path) -> Iterator[None]:
    """Work on a run that may have an earlier one beside it; what is stopped may go on at the command's next start."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, StoppedError) or command_id() is None:
            keep_new_or_earlier(folder)
        raise
    forget_earlier(folder)


def keep_new_or_earlier(folder: Path) -> None:
    """Keep what has come of a run that took an earlier one's place: the new one, once it has something; else the old.

    So it is also after any moment at which the process that set the old one aside was killed.
    """
    if (folder / EARLIER / RECORD).exists() and not _has_something(folder):
        _give_back(folder)
    forget_earlier(folder)


def forget_earlier(folder: Path) -> None:
    """Remove what was set aside."""
    (folder / EARLIER / RECORD).unlink(missing_ok=True)
    if (folder / EARLIER).exists():
        remove(folder / EARLIER)


def _has_something(folder: Path) -> bool:
    """Whether the new run is done, or has a checkpoint to go on from."""
    record = read_record(folder)
    return record is not None and (record["status"] == "done" or any(folder.glob("checkpoints/step-*")))


def _give_back(folder: Path) -> None:
    if (folder / RECORD).exists():  # of the new run; without it, what else is there is of the old
        _clear(folder)
    log.info("what was to take the place of %s came to nothing; it is again as it was", folder)
    for path in [*(folder / EARLIER).iterdir()]:
        if path.name != RECORD:
            path.rename(folder / path.name)
    (folder / EARLIER / RECORD).rename(folder / RECORD)


def _clear(folder: Path) -> None:
    for path in sorted(_content(folder), key=lambda path: path.name == RECORD):
        remove(path)


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in _STAYS]
