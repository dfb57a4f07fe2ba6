"""Signals outside of training: one line and exit code 75, whatever a library makes of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.errors import StoppedError
from llm.run.launch import SIGNALS, on_signal, stop_on_signal

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Where the tests run under nohup too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=f"stopped by {number.name}. Start the same command again"), stop_on_signal():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_what_a_library_makes_of_it_is_a_stop_all_the_same() -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise TypeError("expected a message argument") from None

    with pytest.raises(StoppedError, match="stopped by SIGTERM"), stop_on_signal():
        library()


def test_the_first_signal_alone_is_told() -> None:
    told: list[str] = []
    before = signal.getsignal(signal.SIGUSR1)
    with on_signal(told.append):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL  # a second one would end this process
    assert told == ["SIGUSR1"]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_what_comes_once_all_is_done_stops_nothing() -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        with stop_on_signal(is_last=True):
            pass
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        for each, handler in before.items():
            signal.signal(each, handler)
        with pytest.raises(RuntimeError), stop_on_signal(is_last=True):
            raise RuntimeError
        assert {each: signal.getsignal(each) for each in SIGNALS} == before  # of what failed, a Ctrl-C ends the rest
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_hangup_that_is_ignored_stays_so_and_a_second_one_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    told: list[str] = []
    try:
        with on_signal(told.append):
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with on_signal(told.append):
            for _ in range(2):  # from the shell and from the kernel
                os.kill(os.getpid(), signal.SIGHUP)
        assert told == ["SIGHUP"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_slurm_what_follows_the_first_signal_is_left_to_its_sigkill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    told: list[str] = []
    with on_signal(told.append):
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # a person's
    assert told == ["SIGUSR1"]


def test_a_signal_while_a_module_loads_ends_at_once_though_the_module_swallows_errors(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n    pass\n"
    )
    program = "from llm.run.launch import stop_on_signal\nwith stop_on_signal():\n    import greedy\nprint('went on')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "error: stopped by SIGTERM. Start the same command again to go on.\n"
