"""What ranks above zero wait for: rank zero, for as long as somebody is at the run that it is to make."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm.environment import process_rank
from llm.errors import LaunchError
from llm.run.owner import WAIT_SECONDS, is_owned

IDLE_SECONDS = 600.0  # without an owner: rank zero makes another run than this one waits for, or none


def looks(folders: Sequence[Path]) -> Iterator[None]:
    """Time for one look after the other at what becomes of the one of these folders that rank zero works in.

    Raises:
        LaunchError: nobody has begun in any of them.
    """
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        time.sleep(WAIT_SECONDS)
        if time.monotonic() >= deadline:
            if not any(map(is_owned, folders)):
                places = " or ".join(map(str, folders))
                raise LaunchError(
                    f"rank {process_rank()} has waited {IDLE_SECONDS / 60:.0f} minutes for rank 0 to begin {places}, "
                    "and nobody is at it. All processes of a launch need the same code, the same data and one folder "
                    "for outputs: see what rank 0 says, and where it starts its run.",
                    exit_code=1,
                )
            deadline = time.monotonic() + IDLE_SECONDS
        yield
