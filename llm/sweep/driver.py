"""The jobs of a sweep -> all of them done, as far as they can be: found, started, tried again, and told.

One loop for grids and searches (a Source says which jobs there are) over a pool or a Slurm cluster (a Backend).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from llm.config.slurm import SlurmConfig
from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig
from llm.data import available_cores
from llm.errors import ConfigError, DamagedError, StoppedError
from llm.run.announcing import Result
from llm.run.console import log, start_logging
from llm.run.owner import owned
from llm.run.runs import Run, load
from llm.run.signals import on_signal
from llm.sweep.board import Board
from llm.sweep.finding import Finder
from llm.sweep.jobs import Job, JobRecord
from llm.sweep.pool import Pool
from llm.sweep.process import prepare_server
from llm.sweep.shares import Estimates, Shares, free_memory, present_gpus
from llm.sweep.slurm import SEARCH_AT_ONCE, Cluster
from llm.sweep.slurm_queue import require_slurm

LOOK_SECONDS = 0.5  # between two looks at what nobody tells us of: other drivers, the metrics
WAIT_SECONDS = 2.0  # before a job that another process makes is tried again


class Source(Protocol):
    """Where the jobs come from: a grid knows all of them, a search chooses as others end."""

    def more(self) -> Sequence[Job]:
        """Further jobs, where there is room for one; empty: none for now."""

    def is_over(self) -> bool:
        """Whether no more will come."""

    def keeps(self, job: Job, *, is_taken: bool) -> bool:
        """Whether a job is still for this driver to do; `is_taken`: another one is at it."""

    def outdone(self) -> Sequence[Job]:
        """The jobs that run and are to be stopped, for others do better."""

    def settled(self, job: Job) -> str | None:
        """Take note that a job has come to its end; gives what is wrong with its result, if anything is."""

    def to_come(self) -> int:
        """The jobs that nobody has chosen yet."""

    def best(self) -> str | None:
        """The best result so far, and its job."""


class Backend(Protocol):
    """Where jobs run; it sets their state while they do."""

    begun: str  # what is said of a job that start() took

    def start(self, job: Job, seen: JobRecord) -> bool:
        """Start an attempt if there is room and no other driver is, or was, at the job since it was `seen`."""

    def is_taken(self, job: Job) -> bool:
        """Whether another driver is at a job."""

    def ended(self, seconds: float) -> list[tuple[Job, Result]]:
        """Wait so long for one to end; the attempts that have ended, kept in the jobs' files."""

    def submit(self) -> None:
        """Hand over what start() took, if that was gathered."""

    def stop(self, job: Job) -> None:
        """Have a job save and end."""

    def leave(self, signal_name: str) -> None:
        """This driver is to end."""

    def kill_all(self) -> None:
        """End at once what may not outlive this driver."""

    def is_idle(self) -> bool:
        """Whether nothing is under way."""


class Driver:
    """Carries out jobs; several drivers, on several machines, can share a sweep."""

    def __init__(
        self, source: Source, backend: Backend, settings: PoolConfig | SlurmConfig, board: Board, finder: Finder
    ) -> None:
        self._source, self._backend, self._settings = source, backend, settings
        self._board, self._finder = board, finder
        self._stopped_by: str | None = None
        self._gives_up = False
        self.failed_fast = ""  # the failure that stopped the others
        self.jobs: dict[int, Job] = {}

    def run(self) -> list[Job]:
        """The jobs, once none is left that can be started.

        Raises:
            StoppedError: a signal came; the jobs have saved what they did.
        """
        try:
            with on_signal(self._stop), self._board.shown(self.jobs, self._source):
                self._start_ready()
                while self._goes_on():
                    for job, ended in self._backend.ended(LOOK_SECONDS):
                        self._settle(job, ended)
                    for job in self._source.outdone():
                        self._backend.stop(job)
                    self._start_ready()
                    self._board.refresh()
        finally:
            self._backend.kill_all()
        if self._stopped_by:
            raise StoppedError(f"stopped by {self._stopped_by}. Start the same command again to go on.")
        return [*self.jobs.values()]

    def submit(self) -> list[Job]:
        """The jobs, once those that are left are with the backend; nobody waits for them."""
        self._start_ready()
        self._backend.submit()
        return [*self.jobs.values()]

    def _stop(self, name: str) -> None:
        """On a signal: let no job start, and those that run save and end."""
        self._stopped_by = name

    def _goes_on(self) -> bool:
        if self._stopped_by and not self._gives_up:
            self._backend.leave(self._stopped_by)
            self._give_up()
        if self._gives_up:
            return not self._backend.is_idle()
        return any(job.state in ("waiting", "queued", "running") for job in self.jobs.values()) or (
            not self._source.is_over()
        )

    def _give_up(self) -> None:
        self._gives_up = True
        for job in self.jobs.values():
            if job.state == "waiting":
                job.state = "stopped"
            elif job.state in ("queued", "running"):
                self._backend.stop(job)

    def _start_ready(self) -> None:
        for job in self._waiting():
            if not self._stopped_by and not self._gives_up and time.monotonic() >= job.not_before:
                self._start(job)
        while not self._stopped_by and not self._gives_up and not self._waiting() and (more := self._source.more()):
            for job in more:
                self._add(job)
            for job in self._waiting():
                self._start(job)

    def _waiting(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == "waiting"]

    def _add(self, job: Job) -> None:
        """Take a job in, and find what is known of it: that its run is done, or that it has failed too often."""
        if self._stopped_by:
            return
        self.jobs[job.number] = job
        record = job.read()
        job.attempts_before = len(record.attempts)
        if run := self._finder.find(job.config):
            job.keep_found(run)
            self._settled(job)
        elif (failed := len(record.failures())) >= self._settings.max_attempts:
            said = f"has failed {failed} times; hydra.launcher.max_attempts={self._settings.max_attempts}. Raise it"
            job.state, job.result = "failed", Result("failed", said)
            self._board.say(f"{job.label}: {said}")
            self._settled(job)

    def _start(self, job: Job) -> None:
        is_taken = self._backend.is_taken(job)
        if not self._source.keeps(job, is_taken=is_taken):
            del self.jobs[job.number]
            return
        if is_taken:
            job.not_before = time.monotonic() + LOOK_SECONDS
            return
        record = job.read()  # after the look: what it says is the last word of whoever had the job
        if not self._settle_by_others(job, record) and self._backend.start(job, record):
            self._board.say(f"{job.label}: {self._backend.begun}")

    def _settle_by_others(self, job: Job, record: JobRecord) -> bool:
        """Whether another driver has brought the job to its end: a failure counts if it came since this one began."""
        if record.state == "done" and (run := finished_run(record)):
            job.state, job.run = "done", run
        elif record.state == "failed" and len(record.attempts) > job.attempts_before:
            last = record.attempts[-1]
            if not last.kind or record.may_retry(last.kind, self._settings.retries, since=job.attempts_before):
                return False
            job.state, job.result = "failed", Result(last.kind, last.message or "")
        else:
            return False
        self._settled(job)
        return True

    def _settle(self, job: Job, ended: Result) -> None:
        job.result = ended
        said = f"{job.label}: {ended.kind}: {ended.message}"
        if ended.kind == "done":
            job.state, job.run = "done", job.announced_run()
        elif not self._source.keeps(job, is_taken=False):
            job.state = "stopped"
        elif ended.kind == "busy" and not self._gives_up:
            job.state, job.not_before = "waiting", time.monotonic() + WAIT_SECONDS
        elif not ended.is_failure:
            job.state = "stopped"
            self._board.say(f"{job.label}: stopped; it can go on")
        elif not self._gives_up and self._is_retried(job, ended):
            job.state = "waiting"
            self._board.say(f"{said}; tried again")
        else:
            job.state = "failed"
            self._board.say(said)
            self._fail_fast(said)
        if job.state != "waiting":
            self._settled(job)

    def _is_retried(self, job: Job, ended: Result) -> bool:
        return job.read().may_retry(ended.kind, self._settings.retries, since=job.attempts_before)

    def _settled(self, job: Job) -> None:
        if wrong := self._source.settled(job):
            self._board.say(wrong)
            self._fail_fast(wrong)

    def _fail_fast(self, said: str) -> None:
        if self._settings.fail_fast and not self._gives_up:
            self._board.say("hydra.launcher.fail_fast: the other jobs save what they did, and end")
            self.failed_fast = said
            self._give_up()


def finished_run(record: JobRecord) -> Run | None:
    """The run that a record names, if it is done and still there."""
    try:
        run = load(Path(str(record.run)))
    except (ConfigError, DamagedError):  # removed since, or damaged: the job makes it again, or says so
        return None
    return run if run.is_done else None


@contextmanager
def opened(
    settings: PoolConfig | SlurmConfig, configs: Sequence[StageConfig], folder: Path, *, num_jobs: int, of: str
) -> Iterator[Backend]:
    """Where `num_jobs` jobs run, or so many of a search; `of` says what they are in the log.

    Raises:
        ConfigError: a job that can never run there, or another driver is at the same sweep of a cluster.
    """
    if isinstance(settings, SlurmConfig):
        require_slurm()
        is_search = num_jobs > len(configs)
        limit = (settings.array_parallelism or SEARCH_AT_ONCE) if is_search else None
        cluster = Cluster(settings, folder, at_once=limit)
        cluster.check(configs)
        with owned(folder, wait=False):  # two drivers could submit one job twice
            start_logging()
            log.info("%s on Slurm, as %s; their ledger and what they say: %s", of, cluster.name, folder)
            yield cluster
        return
    shares = Shares(
        settings,
        num_jobs=num_jobs,
        gpus=present_gpus(),
        cores=available_cores(),
        memory=free_memory(),
        bytes_of=Estimates(threads=settings.threads or max(1, available_cores() // num_jobs)),
    )
    for config in configs:
        shares.check(config)
    prepare_server({config.stage for config in configs})
    start_logging()
    log.info("%s, at most %d at once; their ledger and what they say: %s", of, shares.slots, folder)
    yield Pool(settings, shares)
