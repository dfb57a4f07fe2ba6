"""What a person sees: log lines on the terminal and in log.txt, and the console that they share."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from rich.console import Console

from llm.run.environment import process_rank

log = logging.getLogger("llm")


@cache
def console() -> Console:
    """The terminal (stderr), shared so that log lines and a progress bar do not overwrite each other."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console().print(self.format(record), markup=False)


def start_logging() -> None:
    """Send the log to the terminal: rank zero all of it, the other ranks what is wrong."""
    if log.handlers:
        return
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if process_rank() == 0 else logging.WARNING)
    log.propagate = False


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Keep the log, and the warnings of libraries, in a file too for as long as the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    python_warnings = logging.getLogger("py.warnings")
    log.addHandler(handler)
    python_warnings.addHandler(handler)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        log.removeHandler(handler)
        python_warnings.removeHandler(handler)
        handler.close()
