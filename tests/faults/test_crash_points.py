"""A fault at each file call of a save: checkpoints are whole, and what a stage made is all there or not at all."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import (
    Moment,
    Workspaces,
    assert_ends_the_same,
    faults_of_checkpoints,
    is_told_in_one_line,
    launch,
    said,
    strike_fork,
    unfinished,
)
from tests.faults.tracing import CHANGING, Call, Traced, file_calls, needs_strace, some

Times = Callable[..., Any]
# What is saved -> the command, the moment before it, how often that came when the launch before was killed there
SAVES = {
    "a checkpoint": ("gpt2", "checkpoint", ("micro-batch", 15)),  # the third: the first to remove an older one
    "a tokenizer": ("tokenizer", "tokenizer saving", ("tokenizer saving", 1)),
    "a model": ("gpt2", "model saving", ("model saving", 1)),
    "an adapter": ("lora", "adapter saving", ("adapter saving", 1)),
}
MOST_CALLS = 40  # of one save, in a storm


@pytest.fixture(scope="module")
def before(workspaces: Workspaces, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A workspace in which all is done up to a save."""
    made: dict[str, Path] = {}

    def get(save: str) -> Path:
        if save not in made:
            command, _, (killed_at, times) = SAVES[save]
            made[save] = workspaces.fresh(command, tmp_path_factory.mktemp("before") / "w")
            assert strike_fork(launch(command, made[save]), Moment(killed_at, times, 0.0)) == -signal.SIGKILL
        return made[save]

    return get


def traced(save: str, source: Path, folder: Path, *, inject: str | None = None) -> int:
    """The exit code of a launch that goes on with a copy of `source` under strace, from the save on."""
    command, moment, _ = SAVES[save]
    shutil.copytree(source, folder)
    found = Traced(launch(command, folder, waits_at=moment), folder / "trace", inject=inject)
    while found.running.reaches(moment):  # those after this one
        found.running.go_on()
    return found.exit_code()


def calls_of(save: str, source: Path, folder: Path) -> list[Call]:
    """The file calls of the save: up to the next step, or the end of the run; but for those of the log."""
    assert traced(save, source, folder) == 0, said(folder)[-1500:]
    calls = file_calls(folder / "trace", until="micro-batch" if save == "a checkpoint" else None)
    return [call for call in calls if "log.txt" not in call.shown]


def assert_nothing_is_lost(save: str, folder: Path, call: Call, workspaces: Workspaces) -> None:
    command = SAVES[save][0]
    assert (faults_of_checkpoints(folder), unfinished(folder, command, workspaces)) == ({}, []), call
    assert_ends_the_same(command, folder, workspaces)
    shutil.rmtree(folder)


@needs_strace
@pytest.mark.parametrize("save", SAVES)
def test_a_kill_at_any_file_call_of_a_save_leaves_all_or_nothing(
    save: str, before: Callable[[str], Path], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    calls = [call for call in calls_of(save, before(save), tmp_path / "all") if call.name in CHANGING]
    for call in some(calls, times(few=2, storm=MOST_CALLS)):
        folder = tmp_path / f"{call.name}-{call.number}"
        assert traced(save, before(save), folder, inject=call.injected("signal=SIGKILL")) == -signal.SIGKILL, call
        assert_nothing_is_lost(save, folder, call, workspaces)


@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("save", ["a checkpoint", "a model"])
def test_an_error_of_any_file_call_of_a_save_ends_in_one_line_or_in_a_whole_run(
    save: str, error: str, before: Callable[[str], Path], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    calls = calls_of(save, before(save), tmp_path / "all")
    meant = [call for call in calls if error == "EIO" or call.name in CHANGING]
    for call in some(meant, times(few=2, storm=MOST_CALLS)):
        folder = tmp_path / f"{call.name}-{call.number}"
        code = traced(save, before(save), folder, inject=call.injected(f"error={error}"))
        assert code == 0 or is_told_in_one_line(folder, code), (call, code, said(folder)[-3000:])
        assert_nothing_is_lost(save, folder, call, workspaces)
