"""What a person sees: log lines on the terminal and in log.txt, the console that they share, answers and tables."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm.credentials import without_secrets
from llm.environment import process_rank


def _without_secrets(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), None
    return True


log = logging.getLogger("llm")
log.setLevel(logging.DEBUG)
log.addFilter(_without_secrets)


@cache
def console() -> Console:
    """The terminal (stderr), shared so that log lines and a progress bar do not overwrite each other."""
    return Console(file=cast(TextIO, _Stderr()), soft_wrap=True, highlight=False, emoji=False)


def output_console() -> Console:
    """The terminal, or a pipe, which has no width: nothing is folded."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000)


class _Stderr:
    """stderr, whatever that is now; a terminal that was closed ends no run, whose log.txt has the lines."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            self.__getattr__("write")(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.__getattr__("flush")()

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys.stderr, "rich_proxied_file", sys.stderr), name)  # a progress bar of rich is no file


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console().print(self.format(record), markup=False)


class _LogFile(logging.FileHandler):
    """A log that a full disk interrupts, but that stops no run: what is made tells of the disk by itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without the line."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def start_logging() -> None:
    """Send the log to the terminal: rank zero all but debugging, the others what they alone may have to say."""
    if any(isinstance(handler, _ConsoleHandler) for handler in log.handlers):
        return
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO if process_rank() == 0 else logging.ERROR)  # each warns of what all of them find
    log.addHandler(handler)
    log.propagate = False


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Keep the log in a file too for as long as the block runs, and have the warnings of libraries in the log.

    What is for debugging, such as a traceback, is in the file alone.
    """
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, category, filename, lineno, *_: log.warning(
                "%s:%d: %s: %s", filename, lineno, category.__name__, message
            )
            yield
    finally:
        log.removeHandler(handler)
        handler.close()


# Rows of text -> a table in the terminal, or as Markdown; the same for every command that shows one


ABSENT = "-"  # what a row has nothing of
MOST_COLUMNS = 6  # with more, and where they do not fit, a row becomes a column
TURNED_WIDTH = 24  # characters for a row that is a column


@dataclass(frozen=True)
class TextTable:
    """Cells of text by row and column; the first column says what a row is of."""

    columns: list[str]
    rows: list[list[str]]
    heads_may_fold: bool = False  # where a terminal is too narrow for them beside each other

    def drawn(self, console: Console) -> list[Table]:
        """For a terminal: a line for each row where they fit, else a column for each, as many in a table as fit.

        A pipe has no width: with many columns it gets one table with a column for each row.
        """
        if len(self.columns) <= MOST_COLUMNS or self.fits(console):
            return [_table(self.columns, self.rows)]
        names, *others = self.columns
        room = len(self.rows)
        if console.is_terminal:
            room = max(1, (console.width - max(map(cell_len, others))) // TURNED_WIDTH)
        blocks = [self.rows[start : start + room] for start in range(0, len(self.rows), room)]
        return [
            _table(
                [names, *(row[0] for row in block)], [[key, *(r[i] for r in block)] for i, key in enumerate(others, 1)]
            )
            for block in blocks
        ]

    def fits(self, console: Console) -> bool:
        """Whether a terminal is wide enough for a line for each row."""
        columns = zip(*([] if self.heads_may_fold else [self.columns]), *self.rows, strict=True)
        widths = [max(map(cell_len, column)) for column in columns]
        return console.is_terminal and sum(widths) + 3 * len(widths) + 1 <= console.width

    def markdown(self) -> str:
        """As Markdown has it."""
        columns, *rows = [[markdown_text(cell) for cell in row] for row in [self.columns, *self.rows]]
        return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    drawn = Table(highlight=False)
    for index, column in enumerate(columns):
        # The first column is what is looked up: it keeps its width, and the others fold.
        drawn.add_column(Text(column), overflow="fold", no_wrap=index == 0)
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def markdown_text(text: str) -> str:
    """Text that Markdown and the HTML in it leave alone, in one line."""
    for special in "\\`*_[]#|":
        text = text.replace(special, f"\\{special}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")


def shown(value: float) -> str:
    """A number as a person reads it: whole ones whole, others with about 5 digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.1f}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"
