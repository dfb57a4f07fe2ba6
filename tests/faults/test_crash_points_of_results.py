"""A fault at each file call by which a stage saves what it made: all of it is there under its name, or nothing."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import (
    Moment,
    Workspaces,
    is_told_in_one_line,
    launch,
    leftovers,
    remains,
    run,
    run_folder,
    said,
    strike_fork,
    unfinished,
)
from tests.faults.tracing import CHANGING, Call, Traced, file_calls, needs_strace, some, writing_tensors

Times = Callable[..., Any]
SAVING = {"tokenizer": "tokenizer saving", "gpt2": "model saving", "lora": "adapter saving"}


@pytest.fixture(scope="module")
def trained(workspaces: Workspaces, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A workspace in which all is done for a command but to save what it made."""
    made: dict[str, Path] = {}

    def get(command: str) -> Path:
        if command not in made:
            made[command] = workspaces.fresh(command, tmp_path_factory.mktemp("trained") / "w")
            code = strike_fork(launch(command, made[command]), Moment(SAVING[command], 1, 0.0))
            assert code == -signal.SIGKILL, said(made[command])
        return made[command]

    return get


def traced(command: str, source: Path, folder: Path, *, inject: str | None = None) -> int:
    """The exit code of a launch that saves in `folder`, under strace from the beginning of that to its end."""
    shutil.copytree(source, folder)
    return Traced(launch(command, folder, waits_at=SAVING[command]), folder / "trace", inject=inject).exit_code()


def calls_of(command: str, source: Path, folder: Path) -> list[Call]:
    """The file calls from the beginning of saving to the end of the run, but for those of the log."""
    assert traced(command, source, folder) == 0, said(folder)[-1500:]
    return [call for call in file_calls(folder / "trace") if "log.txt" not in call.shown]


def assert_ends_the_same(command: str, folder: Path, what: Call, workspaces: Workspaces) -> None:
    assert unfinished(folder, command, workspaces) == [], what
    assert run(command, folder) == 0, said(folder)[-1500:]
    assert leftovers(folder) == [], what
    assert remains(run_folder(folder, command)) == workspaces.remains_of(command), what
    shutil.rmtree(folder)


@needs_strace
@pytest.mark.parametrize("command", ["tokenizer", "gpt2", "lora"])
def test_a_kill_at_any_file_call_of_saving_leaves_all_or_nothing(
    command: str, trained: Callable[[str], Path], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    calls = [call for call in calls_of(command, trained(command), tmp_path / "all") if call.name in CHANGING]
    writes = [call for call in calls if call.name == "write"]
    for call in times(few=some(writes, 2), storm=calls):
        folder = tmp_path / f"{call.name}-{call.number}"
        assert traced(command, trained(command), folder, inject=call.injected("signal=SIGKILL")) == -signal.SIGKILL
        assert_ends_the_same(command, folder, call, workspaces)


@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("part", ["the rest", "tensors"])
def test_an_error_of_any_file_call_of_saving_a_model_ends_in_one_line_or_in_a_whole_run(
    part: str,
    error: str,
    trained: Callable[[str], Path],
    workspaces: Workspaces,
    tmp_path: Path,
    times: Times,
) -> None:
    calls = calls_of("gpt2", trained("gpt2"), tmp_path / "all")
    meant = [call for call in calls if (call in writing_tensors(calls)) == (part == "tensors")]
    meant = [call for call in meant if error == "EIO" or call.name in CHANGING]
    for call in some(meant, times(few=1, storm=len(meant))):
        folder = tmp_path / f"{call.name}-{call.number}"
        code = traced("gpt2", trained("gpt2"), folder, inject=call.injected(f"error={error}"))
        assert code == 0 or is_told_in_one_line(folder, code), (call, code, said(folder)[-3000:])
        assert_ends_the_same("gpt2", folder, call, workspaces)
