"""The end of a sweep -> its runs ranked in the terminal, and compare.html in its folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm.compare.entries import Entry, Found, once_each, read_sweep
from llm.compare.show import Section, print_section, ranking_of, report_of
from llm.errors import LaunchError, StoppedError
from llm.run.console import log, output_console

PAGE = "compare.html"
ANSWERS = "answers/loss"  # what evaluations of tuned models are ranked by


@contextmanager
def page_at_end(folder: Path) -> Iterator[None]:
    """Write the page of a sweep once the block ends: also where a signal stopped it, or all of it failed."""
    try:
        yield
    except (StoppedError, LaunchError):
        _write_page(folder)
        raise
    _write_page(folder)


def _write_page(folder: Path) -> None:
    from llm.compare.page import write_page  # imports plotly

    try:
        report = report_of(Found(read_sweep(folder), folder), title=folder.name)
        size = write_page(report, folder / PAGE)
        log.info("how its jobs compare: %s (%.1f MB, open it in a browser)", folder / PAGE, size / 1e6)
    except Exception as error:  # the jobs are done, and a page that cannot be drawn undoes none of them
        log.warning("%s is not written: %s: %s", folder / PAGE, type(error).__name__, error)
        log.debug("why:", exc_info=True)


def print_ranked(entries: Sequence[Entry]) -> None:
    """Print how the runs of a sweep compare that are done; tuned models that were evaluated by their answers.

    Where a terminal is too narrow for all of it, what tells them apart stays, a line for each.
    """
    done = once_each([entry for entry in entries if entry.is_done])
    has_answers = all(ANSWERS in entry.outcome for entry in done.entries)
    ranking = ranking_of(done, metric=ANSWERS if has_answers else None)
    if len(ranking.choices) > 1 and all(len(choice.entries) == 1 for choice in ranking.choices):
        ranking.notes.append("One seed each: a small difference can be chance. Sweep seed=0,1,2, too.")
    console = output_console()
    table = ranking.table
    if ranking.settings and not table.fits(console) and ranking.short_table.fits(console):
        table = ranking.short_table
    print_section(Section("", ranking.notes, table), console)
