"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP -> an orderly stop; a second one ends the process at once, as without us.

A SIGHUP that is ignored, as under nohup, stays so.

Not so under Slurm, which sends several of them, to every process of a job, and a SIGKILL when its patience ends.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llm.environment import is_on_slurm
from llm.errors import StoppedError, say_error

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def on_signal(action: Callable[[str], None], *, is_last: bool = False) -> Iterator[None]:
    """Call `action` with the name of the first signal that comes while the block runs.

    `is_last` says that it is all that the process does: what comes once it has ended well has nothing left to stop.
    """

    def catch(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, _second(each))
        action(signal.Signals(number).name)

    wanted = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in wanted}
    for number in wanted:
        signal.signal(number, catch)
    has_ended_well = False
    try:
        yield
        has_ended_well = True
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_last and has_ended_well else handler)


@contextmanager
def stop_on_signal(*, is_last: bool = False) -> Iterator[None]:
    """Have a signal end the block, where no step is under way: everything is written whole or not at all.

    `is_last` is that of on_signal.

    Raises:
        StoppedError: one came.
    """
    came: list[str] = []

    def stop(name: str) -> None:
        came.append(name)
        if _is_importing():  # what a module raises while it loads may be swallowed, and leave half of it behind
            say_error(_stopped_by(name))
            os._exit(StoppedError.exit_code)
        raise StoppedError(_stopped_by(name))

    with on_signal(stop, is_last=is_last):
        try:
            yield
        except StoppedError:
            raise
        except BaseException as error:
            if came:  # a library made something else of it
                raise StoppedError(_stopped_by(came[0])) from error
            raise


def _second(number: signal.Signals) -> signal.Handlers:
    """Of a terminal that closes, the shell and the kernel each send a SIGHUP."""
    is_slurms = is_on_slurm() and number != signal.SIGINT
    return signal.SIG_IGN if is_slurms or number == signal.SIGHUP else signal.SIG_DFL


def _stopped_by(name: str) -> str:
    return f"stopped by {name}. Start the same command again to go on."


def _is_importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
