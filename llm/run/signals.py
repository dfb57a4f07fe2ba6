"""SIGTERM, SIGINT and SIGUSR1 -> an orderly stop; a second one ends the process at once, as it would without us."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from llm.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def on_signal(action: Callable[[str], None]) -> Iterator[None]:
    """Call `action` with the name of the first signal that comes while the block runs."""

    def catch(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        action(signal.Signals(number).name)

    before = {number: signal.signal(number, catch) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(name: str) -> NoReturn:
    """What a signal does where no step is under way: everything is written whole or not at all."""
    raise StoppedError(f"stopped by {name}. Start the same command again to go on.")
