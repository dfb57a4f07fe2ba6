"""What a person sees: log lines on the terminal and in log.txt, the console that they share, and that of answers."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console

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
    """Send the log to the terminal: rank zero all but debugging, the other ranks what is wrong."""
    if any(isinstance(handler, _ConsoleHandler) for handler in log.handlers):
        return
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO if process_rank() == 0 else logging.WARNING)
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
