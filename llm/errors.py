"""What a user can cause, and the exit code that goes with it: one line on the terminal, no traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import ClassVar


class UserError(ValueError):
    """Something that the user can put right; the message says what was wrong, what was expected and how to fix it."""

    exit_code: ClassVar[int] = 2


class ConfigError(UserError):
    """A setting, a choice or a run's name that cannot be: known before any work is done."""


class DataError(UserError):
    """The user's text or records are not what the config says; the message starts with file:line."""

    exit_code: ClassVar[int] = 65  # EX_DATAERR in sysexits.h


class DivergedError(UserError):
    """The loss or the gradients stopped being finite."""

    exit_code: ClassVar[int] = 70  # EX_SOFTWARE


class DamagedError(UserError):
    """A file that a run left is missing or is not what its manifest says."""

    exit_code: ClassVar[int] = 74  # EX_IOERR


class StoppedError(UserError):
    """A signal asked the run to stop; it saved its state, and the same command goes on from there."""

    exit_code: ClassVar[int] = 75  # EX_TEMPFAIL


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and its exit code; HYDRA_FULL_ERROR=1 shows the traceback."""
    try:
        yield
    except (UserError, OSError) as error:
        if tracebacks_wanted():
            raise
        if isinstance(error, UserError):
            fail(str(error), error.exit_code)
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}", DamagedError.exit_code)


@cache
def tracebacks_wanted() -> bool:
    """Whether the user asked for tracebacks, as Hydra lets them: HYDRA_FULL_ERROR=1."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def fail(message: str, exit_code: int) -> None:
    """Say one line on stderr and end the process."""
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(exit_code)
