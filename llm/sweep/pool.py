"""Jobs that are ready -> processes of train.py here, as many at once as the machine's shares allow, and their ends.

Importing torch, Lightning and transformers takes about six seconds of CPU, which every job would pay again. A server
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
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig
from llm.data.shards import available_cores
from llm.environment import set_variables, variables, with_variables
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.launch import PR_SET_PDEATHSIG, TRAIN
from llm.run.owner import is_owned
from llm.stage import stage_named
from llm.sweep.jobs import Job, this_process
from llm.sweep.shares import BYTES_PER_JOB, Share, Shares, present_gpus

FOR_THE_DRIVER = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_forks = multiprocessing.get_context("forkserver")


@dataclass
class Running:
    """An attempt at a job that is under way."""

    job: Job
    process: BaseProcess
    share: Share
    claim: ExitStack
    kill_at: float = float("inf")  # on the monotonic clock: once it is asked to stop


class Pool:
    """The attempts that are under way on this machine, by this driver."""

    begun = "started"

    def __init__(self, settings: PoolConfig, shares: Shares) -> None:
        self._settings, self._shares = settings, shares
        self.running: dict[int, Running] = {}

    def start(self, job: Job) -> bool:
        """Start an attempt, if there is room and no other driver is, or was, at the job since it was read."""
        share = self._shares.take(job.config)
        if share is None:
            return False
        with ExitStack() as undo:
            undo.callback(self._shares.give_back, share)
            claim, num_attempts = undo.enter_context(ExitStack()), len(job.attempts)
            try:
                claim.enter_context(job.claimed())
            except ConfigError:
                return False
            job.reload()
            if len(job.attempts) > num_attempts:
                return False
            job.begin(this_process())
            process = _start(job, variables() | share.environment | job.environment())
            self.running[job.number] = Running(job, process, share, claim)
            job.state, job.started = "running", time.monotonic()
            undo.pop_all()
        return True

    def is_taken(self, job: Job) -> bool:
        """Whether another driver is at a job."""
        return is_owned(job.folder)

    def ended(self, seconds: float) -> list[Job]:
        """Wait so long for one to end; the jobs whose attempts have ended, with the results of these."""
        wait([each.process.sentinel for each in self.running.values()], timeout=seconds)
        done = []
        for number, each in [*self.running.items()]:
            if time.monotonic() >= each.kill_at:
                each.process.kill()
            code = each.process.exitcode
            if code is None:
                continue
            _kill_group(each.process)
            del self.running[number]
            self._shares.give_back(each.share)
            with each.claim:
                each.job.end(each.job.ending(code), exit_code=code)
            done.append(each.job)
        return done

    def stop(self, job: Job) -> None:
        """Ask a job to save and end: itself, which passes it on to its ranks; it is killed once its grace is over."""
        each = self.running.get(job.number)
        if each and each.kill_at == float("inf"):
            each.kill_at = time.monotonic() + self._settings.grace_seconds
            each.process.terminate()

    def leave(self, signal_name: str) -> None:
        """Have all of them save and end, for the driver is to."""
        log.info("%s: %d jobs save what they did, and end", signal_name, len(self.running))
        for each in self.running.values():
            self.stop(each.job)

    def kill_all(self) -> None:
        """End at once what may not outlive this driver."""
        for each in self.running.values():
            each.process.kill()
            _kill_group(each.process)
            each.claim.close()
        self.running.clear()


def open_pool(settings: PoolConfig, configs: Sequence[StageConfig], *, num_jobs: int) -> tuple[Pool, int]:
    """(the pool for so many jobs like these, how many run at once).

    Raises:
        ConfigError: a job that can never run here.
    """
    cores = available_cores()
    shares = Shares(
        settings,
        num_jobs=num_jobs,
        gpus=present_gpus(),
        cores=cores,
        memory=psutil.virtual_memory().available,
        bytes_of=Estimates(threads=settings.threads or max(1, cores // num_jobs)),
    )
    for config in configs:
        shares.check(config)
    prepare_server(config.stage for config in configs)
    return Pool(settings, shares), shares.slots


class Estimates:
    """The memory of a job's processes as a dry run says it, worked out once for those that share a model and rows."""

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._known: dict[str, int] = {}

    def __call__(self, config: StageConfig) -> int:
        if not hasattr(config, "trainer"):
            return BYTES_PER_JOB
        any_config: Any = config
        same = {"name": None, "seed": 0, "optimizer": replace(any_config.optimizer, learning_rate=1e-3)}
        place = repr(replace(config, **same))
        if place not in self._known:
            self._known[place] = self._ask_dry_run(config)
        return self._known[place]

    def _ask_dry_run(self, config: StageConfig) -> int:
        from llm.dry_run.survey import memory_of

        _ensure_server(str(self._threads))
        try:
            with ProcessPoolExecutor(1, _forks, initializer=_say_to, initargs=(os.devnull,)) as executor:
                return executor.submit(memory_of, config).result()
        except Exception:  # of a model that cannot be built: the job itself will say why
            return BYTES_PER_JOB


def prepare_server(stages: Iterable[str]) -> None:
    """Say which stages the server is to import, before the first job has it start."""
    of_stages = {module for stage in stages for module in preloaded(stage)}
    _forks.set_forkserver_preload(["__main__", __name__, *sorted(of_stages)])


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


def _start(job: Job, environment: dict[str, str]) -> BaseProcess:
    """Start an attempt; what it says is added to console.log in the job's folder."""
    _ensure_server(environment["OMP_NUM_THREADS"])
    console, method = str(job.folder / "console.log"), multiprocessing.get_start_method()
    process = _forks.Process(target=_run, args=(str(TRAIN), job.overrides, console, environment, method))
    process.start()
    return process


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


def _kill_group(process: BaseProcess) -> None:
    """End what a job has left in its process group; its ranks die with it."""
    assert process.pid is not None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
