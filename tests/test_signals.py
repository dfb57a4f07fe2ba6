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
def _as_before() -> Iterator[None]:
    """SIGHUP is heard where the tests run under nohup too; at the end each handler is again as it was."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_whatever_a_library_makes_of_it(number: signal.Signals) -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise TypeError("expected a message argument") from None

    before = signal.getsignal(number)
    for stopped in (library, lambda: os.kill(os.getpid(), number)):
        with pytest.raises(StoppedError, match=f"stopped by {number.name}. Start the same command"), stop_on_signal():
            stopped()
        assert signal.getsignal(number) is before


def test_the_first_signal_alone_is_told_and_a_second_one_ends_the_process() -> None:
    told: list[str] = []
    with on_signal(told.append):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert told == ["SIGUSR1"]


def test_what_comes_once_all_is_done_stops_nothing() -> None:
    before = {each: signal.getsignal(each) for each in SIGNALS}
    with pytest.raises(RuntimeError), stop_on_signal(is_last=True):
        raise RuntimeError
    assert {each: signal.getsignal(each) for each in SIGNALS} == before  # of what failed, a Ctrl-C ends the rest
    with stop_on_signal(is_last=True):
        pass
    for number in SIGNALS:
        os.kill(os.getpid(), number)


def test_a_hangup_that_is_ignored_stays_so_and_a_second_one_ends_nothing() -> None:
    told: list[str] = []
    for handler, times in ((signal.SIG_IGN, 1), (signal.SIG_DFL, 2)):  # nohup's; from the shell and from the kernel
        signal.signal(signal.SIGHUP, handler)
        with on_signal(told.append):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGHUP)
    assert told == ["SIGHUP"]


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
