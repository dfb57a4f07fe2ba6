"""What can go wrong that is no bug, and its exit code: the user gets one line on stderr instead of a traceback."""

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import NoReturn

from llm.credentials import without_secrets
from llm.environment import agents_sweep, is_launched, tracebacks_wanted

PARTIAL_EXIT_CODE = 3  # some jobs of a sweep failed, the others are done
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it
# As Python, torch on a device and on the host, and Rust say it
_OUT_OF_MEMORY = re.compile(
    r"(OutOf)?MemoryError|can('t|not) allocate memory|out of memory|os error 12\b"
    r"|CU\w+_ALLOC(ATION)?_FAILED",  # of cuBLAS and cuDNN, whose workspaces torch's allocator does not give
    re.I,
)


class UserError(ValueError):
    """Something that the user can put right; the message says what was wrong, what was expected and how to fix it."""

    exit_code = 2
    kind = "failed"  # what it is to a sweep, which tries some kinds again

    def __init__(self, message: str, *, exit_code: int | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.exit_code, self.kind = exit_code or self.exit_code, kind or self.kind


class ConfigError(UserError):
    """A setting, a choice or a run's name that cannot be: known before any work is done."""

    kind = "config"


class DataError(UserError):
    """The user's text or records are not what the config says; the message starts with file:line."""

    exit_code = 65  # EX_DATAERR in sysexits.h
    kind = "data"


class DivergedError(UserError):
    """The loss or the gradients stopped being finite."""

    exit_code = 70  # EX_SOFTWARE
    kind = "diverged"


class UnequalError(UserError):
    """What was made of a model does not do what that model does."""

    exit_code = 70


class DamagedError(UserError):
    """A file of a run, or of a model's folder, is missing, is not what its manifest says, or cannot be read."""

    exit_code = 74  # EX_IOERR


class LaunchError(UserError):
    """A process of a distributed launch failed."""

    exit_code = 1  # or that of the process


class MachineError(UserError):
    """The machine has no room for the work, on a disk or a device, or killed a process of it."""

    exit_code = 74  # as EX_IOERR


class StoppedError(BaseException):
    """A signal asked the run to stop; it saved its state, and the same command goes on from there.

    Like KeyboardInterrupt it is no Exception: a sweep catches those of a job and starts the next one.
    """

    exit_code = 75  # EX_TEMPFAIL
    kind = "stopped"


def nearest(name: str, known: Iterable[str], prefix: str = "", *, otherwise: str = "Known here:") -> str:
    """What to type in place of a name that there is not: the nearest that there is, or all of them."""
    known = list(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {prefix}{close[0]}?" if close else f"{otherwise} {', '.join(known) or 'none'}."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left to give; not of what has been told in words of ours."""
    return not isinstance(error, UserError) and bool(_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))


def is_panic(error: BaseException) -> bool:
    """Whether a library gave up in Rust, which is no Exception in Python."""
    return type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named_line(error: BaseException) -> str:
    """As it ends a traceback, in one line."""
    said, name = first_line(error), type(error).__name__
    return said if said == name else f"{name}: {said}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what is no bug into one line on stderr and its exit code; HYDRA_FULL_ERROR=1 shows the traceback."""
    try:
        yield
    except (Exception, StoppedError, KeyboardInterrupt) as error:
        line, exit_code = _ending(error)
        if line and not tracebacks_wanted():
            fail(line, exit_code)
        told = "".join(traceback.format_exception(error))
        if (kept := without_secrets(told)) == told:
            raise
        with suppress(OSError):
            print(kept, end="", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _ending(error: BaseException) -> tuple[str, int]:
    """(the line, the exit code) of what is no bug; of a bug no line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted. The same command goes on from what was saved.", INTERRUPTED_EXIT_CODE
    if isinstance(error, StoppedError):  # the trial of an agent, which takes 75 for a failure and gives up, ends with 0
        return str(error), 0 if agents_sweep() and not is_launched() else error.exit_code
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}", DamagedError.exit_code
    return "", 1


def fail(message: str, exit_code: int) -> NoReturn:
    """Say one line on stderr, if it takes one, and end the process."""
    with suppress(OSError):  # stderr may lie on the disk that is full: the exit code is right all the same
        say_error(message)
    raise SystemExit(exit_code)


def say_error(message: str) -> None:
    """Say one line on stderr, after what is on its way to stdout."""
    sys.stdout.flush()
    print("error:", *without_secrets(message).splitlines(), file=sys.stderr, flush=True)
