"""What a job tells the sweep that started it: its run, and how it ended, by the process that is right about it."""

import errno
from pathlib import Path

import pytest

from llm.environment import JOB_FOLDER
from llm.errors import ConfigError, LaunchError, StoppedError
from llm.run.launch import Result, announce, read_result, reporting
from llm.run.owner import OwnedError
from llm.run.runs import Run


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(JOB_FOLDER, str(tmp_path))
    return tmp_path


def end_with(error: BaseException) -> None:
    with pytest.raises(type(error)), reporting():
        raise error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConfigError("seed=x is no number."), "config", "seed=x is no number."),
        (OwnedError(Path("a")), "busy", "a is being made by another process. Wait for it, or end it first."),
        (StoppedError("stopped by SIGTERM"), "stopped", "stopped by SIGTERM"),
        (LaunchError("rank 1 was killed", exit_code=1, kind="killed"), "killed", "rank 1 was killed"),
        (RuntimeError("a bug\nin lines"), "failed", "RuntimeError: a bug"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory",
         "OSError: [Errno 12] Cannot allocate memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_an_error_is_told_by_its_kind_and_in_one_line(job: Path, error: BaseException, kind: str, message: str) -> None:
    announce("pretrain", Path("outputs/pretrain/a"))
    end_with(error)
    assert read_result(job) == Result(kind, message, "pretrain", "outputs/pretrain/a")


def test_a_finished_run_is_told(job: Path) -> None:
    assert read_result(job) is None
    with reporting() as done:
        done(Run(Path("outputs/pretrain/a"), {"stage": "pretrain"}))
    assert read_result(job) == Result("done", "", "pretrain", "outputs/pretrain/a")


def test_of_several_ranks_the_first_that_failed_by_itself_is_told(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    end_with(LaunchError("another process of this launch ended", exit_code=1))  # it only lost the other
    assert read_result(job) is None
    monkeypatch.setenv("RANK", "1")
    end_with(MemoryError())
    monkeypatch.delenv("RANK")
    end_with(LaunchError("rank 1 ended first", exit_code=1))
    assert read_result(job) == Result("out_of_memory", "MemoryError")
    monkeypatch.setenv("RANK", "0")
    end_with(RuntimeError("a bug"))  # which the other only heard of
    assert read_result(job) == Result("failed", "RuntimeError: a bug")
