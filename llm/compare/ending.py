"""The end of a sweep -> compare.html in its folder, and a line that says where; whatever happens, the sweep goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm.errors import LaunchError, StoppedError
from llm.run import log

PAGE = "compare.html"


@contextmanager
def page_at_end(folder: Path) -> Iterator[None]:
    """Write the page of a sweep once the block ends: also where a signal stopped it, or all of it failed."""
    try:
        yield
    except (StoppedError, LaunchError):
        _write(folder)
        raise
    _write(folder)


def _write(folder: Path) -> None:
    from llm.compare.finding import Found, read_sweep
    from llm.compare.page import write_page
    from llm.compare.report import report_of

    try:
        entries = read_sweep(folder)
        size = write_page(report_of(Found(entries, folder), title=folder.name), folder / PAGE)
        log.info("how its jobs compare: %s (%.1f MB, open it in a browser)", folder / PAGE, size / 1e6)
    except Exception as error:  # the jobs are done, and a page that cannot be drawn undoes none of them
        log.warning("%s is not written: %s: %s", folder / PAGE, type(error).__name__, error)
        log.debug("why:", exc_info=True)
