"""Two starts of one command at once: one makes the run, and the other says who does."""

import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.faults.harness import Running, Workspaces, launch, leftovers, remains, run_folder


def test_of_two_starts_at_once_exactly_one_makes_the_run(
    workspaces: Workspaces, tmp_path: Path, times: Callable[..., int]
) -> None:
    for number in range(times(few=3, storm=20)):
        folder = workspaces.fresh("gpt2", tmp_path / str(number))
        # Made to last longer than the moment for which a start waits before it takes the run for owned
        command = replace(launch("gpt2", folder), pauses={"model building": 1.5})
        starts = [replace(command, console_name=f"{name}.txt") for name in ("one", "other")]
        both = [Running(start) for start in starts]
        pids = [running.pid for running in both]
        ended = [
            (running.exit_code(), start.console.read_text(), pid)
            for running, start, pid in zip(both, starts, pids, strict=True)
        ]
        (won, _, winner), (lost, said_by_loser, _) = sorted(ended)
        assert (won, lost) == (0, 2), ended
        (line,) = [line for line in said_by_loser.splitlines() if line.startswith("error: ")]
        assert re.search(rf"is being made by .*\b{winner}\b.*{re.escape(socket.gethostname())}", line), line
        assert leftovers(folder) == []
        assert remains(run_folder(folder, "gpt2")) == workspaces.remains_of("gpt2")
        shutil.rmtree(folder)
