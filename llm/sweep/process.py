"""A job -> a process of its own that runs train.py, forked from a server that has done the imports.

Importing torch, Lightning and transformers takes about six seconds of CPU, which every job would pay again. The server
(the standard library's forkserver) pays once, before anything touches a GPU, and each job starts as a copy of it.
"""

import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from llm.environment import set_variables, variables, with_variables
from llm.run.launch import PR_SET_PDEATHSIG, TRAIN
from llm.stage import stage_named

FOR_THE_DRIVER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_forks = multiprocessing.get_context("forkserver")


def prepare_server(stages: Iterable[str]) -> None:
    """Say which stages the server is to import, before the first job has it start."""
    _forks.set_forkserver_preload(sorted({module for stage in stages for module in preloaded(stage)}))


def preloaded(stage: str) -> list[str]:
    """The modules that a stage's jobs would each import."""
    return [f"llm.stage.{stage}", *stage_named(stage).loads]


def _ensure_server(threads: str) -> None:
    """Have the server run; it ends with this process. `threads` is for OpenMP, which reads it as torch is loaded.

    A signal to the whole process group, as from a terminal that closes, is for this process: the server outlives it,
    for with it the jobs would end before they have saved.
    """
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in FOR_THE_DRIVER}  # which a new process keeps
    try:
        with with_variables({"OMP_NUM_THREADS": threads}):
            multiprocessing.forkserver.ensure_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ask_server(function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
    """What a function gives in a process of the server, which has done the imports; None where it raised."""
    _ensure_server(str(threads))
    receiving, sending = _forks.Pipe(duplex=False)
    process = _forks.Process(target=_answer, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _answer(sending: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _say_to(os.devnull)
    sending.send(function(*arguments))


class JobProcess:
    """One attempt at a job."""

    def __init__(self, overrides: list[str], *, folder: Path, environment: dict[str, str]) -> None:
        """Start it; what it says is added to console.log in the job's folder."""
        _ensure_server(environment["OMP_NUM_THREADS"])
        self._process = _forks.Process(
            target=_run,
            args=(
                str(TRAIN),
                overrides,
                str(folder / "console.log"),
                variables() | environment,
                multiprocessing.get_start_method(),
            ),
        )
        self._process.start()
        self._killed_at: float | None = None

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As the shell would see it, or minus the number of the signal that ended it; None while it runs.

        What the job left in its process group is ended with it.
        """
        if self._killed_at is not None and time.monotonic() >= self._killed_at:
            self.kill()
        code = self._process.exitcode
        if code is not None:
            self._kill_group()
        return code

    def stop(self, grace_seconds: float) -> None:
        """Ask it to save and end: itself, which passes it on to its ranks; not the loaders of its data."""
        if self._killed_at is None:
            self._killed_at = time.monotonic() + grace_seconds
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, and what it started in its process group, at once; its ranks die with it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._kill_group()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def sentinel(self) -> int:
        return self._process.sentinel


def wait_for_any(processes: Iterable[JobProcess], seconds: float) -> None:
    """Wait until one of them ends, or for so long."""
    sentinels = [process.sentinel for process in processes]
    if sentinels:
        wait(sentinels, timeout=seconds)
    else:
        time.sleep(seconds)


def _run(train: str, overrides: list[str], console: str, environment: dict[str, str], start_method: str) -> None:
    """What the forked process does; it ends with the exit code of train.py."""
    os.setsid()  # a Ctrl-C in the terminal comes through the driver, once
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the server's end, which is the driver's, is ours
        _let_the_server_end()
    _say_to(console)
    for number in FOR_THE_DRIVER:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    multiprocessing.set_start_method(start_method, force=True)  # what train.py has by itself
    set_variables(environment, only=True)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [os.path.relpath(train), *overrides, "hydra.mode=RUN"]
    runpy.run_path(train, run_name="__main__")


def _let_the_server_end() -> None:
    """Close our end of the pipe by which the server lives as long as its children do, not only as its driver does."""
    server: Any = multiprocessing.forkserver._forkserver  # there is no public name
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = None


def _say_to(console: str) -> None:
    for name, standard in ((os.devnull, (0,)), (console, (1, 2))):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        for each in standard:
            os.dup2(descriptor, each)
        os.close(descriptor)
