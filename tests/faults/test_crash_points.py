"""A fault at each file call of one save beside older checkpoints: what is verified is there after each."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.trainer.checkpoint import find_fault, newest_good
from tests.faults.harness import (
    Moment,
    Workspaces,
    faults_of_checkpoints,
    is_told_in_one_line,
    launch,
    leftovers,
    remains,
    run,
    run_folder,
    said,
    strike_fork,
)
from tests.faults.tracing import CHANGING, Call, Traced, file_calls, needs_strace, some, writing_tensors

Times = Callable[..., Any]
SAVED, NEXT = ["step-00000003", "step-00000006"], "step-00000009"


@pytest.fixture(scope="module")
def interrupted(workspaces: Workspaces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run was killed after its second checkpoint: the next save is the first to remove one."""
    folder = workspaces.fresh("gpt2", tmp_path_factory.mktemp("interrupted") / "w")
    assert strike_fork(launch("gpt2", folder), Moment("micro-batch", 15, 0.0)) == -signal.SIGKILL
    assert sorted(path.name for path in checkpoints_of(folder).iterdir()) == SAVED
    return folder


@pytest.fixture(scope="module")
def calls(interrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The file calls from the beginning of a save to the next micro-batch, removing an older one included."""
    folder = tmp_path_factory.mktemp("calls") / "w"
    shutil.copytree(interrupted, folder)
    traced = Traced(launch("gpt2", folder, waits_at="checkpoint"), folder / "trace")
    assert traced.running.reaches("micro-batch")
    traced.running.send(signal.SIGKILL)
    traced.exit_code()
    found = file_calls(folder / "trace", until="micro-batch")
    assert {"openat", "fsync", "rename", "mkdir", "unlinkat", "rmdir"} <= {call.name for call in found}
    return found


def checkpoints_of(folder: Path) -> Path:
    return run_folder(folder, "gpt2") / "checkpoints"


def with_fault(interrupted: Path, folder: Path, call: Call, fault: str) -> int:
    """The exit code of the interrupted run, gone on with in `folder`, the fault befalling the call of its next save."""
    shutil.copytree(interrupted, folder)
    with_it = launch("gpt2", folder, waits_at="checkpoint")
    traced = Traced(with_it, folder / "trace", inject=call.injected(fault))
    while traced.running.reaches("checkpoint"):  # those after this one
        traced.running.go_on()
    return traced.exit_code()


def assert_good_checkpoint_and_same_end(folder: Path, what: str, workspaces: Workspaces) -> None:
    good = newest_good(checkpoints_of(folder))
    assert good is not None and find_fault(good) is None, what
    assert run("gpt2", folder) == 0, said(folder)[-1500:]
    assert leftovers(folder) == [], what
    assert remains(run_folder(folder, "gpt2")) == workspaces.remains_of("gpt2"), what
    shutil.rmtree(folder)


@needs_strace
@pytest.mark.parametrize("part", ["the rest", "removal"])
def test_a_kill_at_any_file_call_of_a_save_leaves_every_checkpoint_whole(
    part: str, interrupted: Path, calls: list[Call], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    meant = [call for call in calls if (call in removing(calls)) == (part == "removal")]
    for call in some(meant, times(few=2, storm=len(meant))):
        folder = tmp_path / f"{call.name}-{call.number}"
        assert with_fault(interrupted, folder, call, "signal=SIGKILL") == -signal.SIGKILL, call
        assert faults_of_checkpoints(folder) == {}, call
        assert_good_checkpoint_and_same_end(folder, str(call), workspaces)


def removing(calls: list[Call]) -> list[Call]:
    """The calls that remove the oldest checkpoint, each after the first: when some of it is gone already."""
    saved = max(i for i, call in enumerate(calls) if call.name == "rename" and f'/{NEXT}"' in call.shown)
    found = [call for call in calls[saved:] if call.name in ("unlink", "unlinkat", "rmdir")]
    assert len(found) >= 4, found
    return found[1:]


@needs_strace
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "part",
    ["the rest", "tensors", "removal"],
)
def test_an_error_of_any_file_call_of_a_save_ends_in_one_line_or_in_a_whole_run(
    part: str,
    error: str,
    interrupted: Path,
    calls: list[Call],
    workspaces: Workspaces,
    tmp_path: Path,
    times: Times,
) -> None:
    parts = {"tensors": writing_tensors(calls), "removal": removing(calls)}
    others = [call for call in calls if not any(call in part for part in parts.values())]
    meant = parts.get(part, [call for call in others if error == "EIO" or call.name in CHANGING])
    for call in some(meant, times(few=2, storm=len(meant))):
        folder = tmp_path / f"{call.name}-{call.number}"
        code = with_fault(interrupted, folder, call, f"error={error}")
        assert "(INJECTED)" in (folder / "trace").read_text(encoding="utf-8", errors="replace"), call
        assert code == 0 or is_told_in_one_line(folder, code), (call, code, said(folder)[-3000:])
        assert faults_of_checkpoints(folder) == {}, call
        assert_good_checkpoint_and_same_end(folder, str(call), workspaces)
