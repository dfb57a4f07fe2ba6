"""reuse=never: what a run had made is set aside, and given back where its successor comes to nothing.

It lies in the run's own folder, under EARLIER, so that the folder's lock stays where it is and no search for runs sees
it. run.json is moved first and given back last: as long as EARLIER has one, all of it is there. Only the owner of the
folder does any of this.
"""

from pathlib import Path

from llm.run.console import log
from llm.run.files import remove
from llm.run.owner import LOCK, OWNER
from llm.run.record import read_record

EARLIER, RECORD = ".earlier", "run.json"


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
