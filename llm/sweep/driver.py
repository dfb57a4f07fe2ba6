"""The jobs of a sweep -> all of them done, as far as they can be: found, started, tried again, and told.

One loop for grids and searches, over a pool of this machine or a Slurm cluster. It leaves:

outputs/sweeps/<name>-<key>/       key: first 8 hex digits of the hash of the jobs
  sweep.json                       of a grid: the command, and the jobs
  search.json                      of a search: what it is for
  jobs/<number>/job.json           overrides, state, attempts, the run's folder; a driver writes it
                result.json        what the job says of itself: its run, and in the end what became of it
                console.log        what it printed
                rungs.json  stop   of a search that halves: what was measured at each rung; it is stopped for good
"""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live

from llm.compare.entries import read_sweep
from llm.compare.show import page_at_end, print_ranked
from llm.config.stages import Reuse, StageConfig
from llm.config.sweeping import PoolConfig, RetryConfig, SlurmConfig, SweeperConfig
from llm.errors import LaunchError, StoppedError, UserError
from llm.run.console import console, log, output_console
from llm.run.launch import Result, on_signal
from llm.run.making import say_reused
from llm.run.owner import owned
from llm.run.record import Record
from llm.run.runs import Run
from llm.stage import find_step, step_of
from llm.sweep.board import board
from llm.sweep.jobs import KINDS, Job, jobs_of_grid, sweep_folder, write_sweep
from llm.sweep.pool import Pool, open_pool
from llm.sweep.slurm import SEARCH_AT_ONCE, Cluster, require_slurm

if TYPE_CHECKING:
    from llm.sweep.search import Compose, Search, Space

LOOK_SECONDS = 0.5  # between two looks at what nobody tells us of: other drivers, Slurm
FOLLOW_SECONDS = 2.0  # between two looks at what the trainings have measured
WAIT_SECONDS = 2.0  # before a job that another process makes is tried again


class Grid:
    """Jobs that are all known from the beginning."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._left = [*jobs]
        self._best: tuple[float, str] | None = None

    def more(self) -> list[Job]:
        """Further jobs, where there is room for one; empty: none for now."""
        left, self._left = self._left, []
        return left

    def to_come(self) -> int:
        """The jobs that `more` has yet to give."""
        return len(self._left)

    def is_outdone(self, job: Job, records: list[Record]) -> bool:
        """Whether a job that runs is to be stopped for good, by what it has measured anew."""
        return False

    def settled(self, job: Job) -> None:
        """Take note that a job has come to its end: by its stage's objective the lowest is the best."""
        objective = job.run.objective if job.run else None
        if job.run and job.result:  # it was not done before
            log.info("%s: done%s", job.label, "" if objective is None else f", {objective:.4f}")
        if objective is not None and (self._best is None or objective < self._best[0]):
            self._best = objective, job.label

    def best(self) -> str | None:
        """The best result so far, and its job."""
        return f"{self._best[0]:.4f}: {self._best[1]}" if self._best else None


def find_finished(config: StageConfig) -> Run | None:
    """The finished run that train.py would reuse for a config, which is said; None if there is none."""
    if config.reuse is Reuse.never:
        return None
    try:
        with quiet():  # what is said of a run's parents is nothing new here
            run = find_step(step := step_of(config))
        if run and step.plan:
            say_reused(run, step.plan.config)
        return run
    except (UserError, OSError):  # the job itself will say what is wrong
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing while the block runs."""
    log.disabled = console().quiet = True
    try:
        yield
    finally:
        log.disabled = console().quiet = False


class Driver:
    """Carries out jobs; several drivers, on several machines, can share a sweep."""

    def __init__(
        self,
        source: "Grid | Search",
        backend: Pool | Cluster,
        retries: RetryConfig,
        find: Callable[[StageConfig], Run | None] = find_finished,
    ) -> None:
        self._source, self._backend, self._retries = source, backend, retries
        self._find = find
        self._stopped_by: str | None = None
        self._has_left = False
        self._followed = 0.0
        self.jobs: dict[int, Job] = {}

    def run(self) -> list[Job]:
        """The jobs, once none is left that can be started.

        Raises:
            StoppedError: a signal came; the jobs have saved what they did, or are Slurm's.
        """
        try:
            with on_signal(self._stop), Live(console=console(), auto_refresh=False, transient=True) as live:
                self._start_ready()
                while self._goes_on():
                    for job in self._backend.ended(LOOK_SECONDS):
                        self._settle(job)
                    self._follow(live)
                    self._start_ready()
        finally:
            self._backend.kill_all()
        if self._stopped_by:
            raise StoppedError(f"stopped by {self._stopped_by}. Start the same command again to go on.")
        return [*self.jobs.values()]

    def _stop(self, name: str) -> None:
        """On a signal: no job starts any more; the rest is the loop's."""
        self._stopped_by = name

    def _goes_on(self) -> bool:
        if self._stopped_by and not self._has_left:
            self._has_left = True
            self._backend.leave(self._stopped_by)
        if self._stopped_by:
            return bool(self._backend.running)
        is_left = any(job.state in ("waiting", "queued", "running") for job in self.jobs.values())
        return is_left or self._source.to_come() > 0

    def _follow(self, live: Live) -> None:
        """Look at what the trainings measure."""
        if time.monotonic() < self._followed + FOLLOW_SECONDS:
            return
        self._followed = time.monotonic()
        jobs = [*self.jobs.values()]
        for job in jobs:
            if job.state == "running" and self._source.is_outdone(job, job.follow()):
                self._backend.stop(job)
        if live.console.is_terminal:
            live.update(board(jobs, to_come=self._source.to_come(), best=self._source.best()), refresh=True)

    def _start_ready(self) -> None:
        """Start what can be, and ask for more jobs as long as there is room for one."""
        now = time.monotonic()
        waiting = [job for job in self.jobs.values() if job.state == "waiting" and now >= job.not_before]
        has_room = all([self._start(job) for job in waiting])
        while has_room and not self._stopped_by and (more := self._source.more()):
            for job in more:
                self._add(job)
            has_room = all([self._start(job) for job in more if job.state == "waiting"])

    def _add(self, job: Job) -> None:
        """Take a job in; its run may be done."""
        self.jobs[job.number] = job
        job.reload()
        job.attempts_before = len([attempt for attempt in job.attempts if attempt.kind])
        if not self._stopped_by and (run := self._find(job.config)):
            job.keep_found(run)
            self._source.settled(job)

    def _start(self, job: Job) -> bool:
        """Start a job, unless another driver is at it or has brought it to its end; False: there is no room for it."""
        if self._stopped_by:
            return False
        if self._backend.is_taken(job):
            job.not_before = time.monotonic() + LOOK_SECONDS
            return True
        job.reload()  # after the look: what it says is the last word of whoever had the job
        if self._is_settled_by_another(job):
            self._source.settled(job)
        elif not self._backend.start(job):
            return False
        else:
            log.info("%s: %s", job.label, self._backend.begun)
        return True

    def _is_settled_by_another(self, job: Job) -> bool:
        """Whether another driver has brought the job to its end: a failure counts if it came since this one began."""
        last = job.attempts[-1] if job.attempts else None
        if last and last.kind == "done" and (run := job.finished_run()):
            job.state, job.run = "done", run
        elif job.is_outdone:
            job.state = "stopped"
        elif (
            last
            and last.has_failed
            and len(job.attempts) > job.attempts_before
            and not job.may_retry(last.kind, self._retries)
        ):
            job.state, job.result = "failed", Result(last.kind, last.message or "")
        return job.state != "waiting"

    def _settle(self, job: Job) -> None:
        """Go by the result of a job's attempt that has ended."""
        assert job.result
        kind, said = job.result.kind, f"{job.label}: {job.result.kind}: {job.result.message}"
        if kind == "done":
            job.state, job.run = "done", job.finished_run()
        elif job.is_outdone:
            job.state = "stopped"
        elif kind == "busy" and not self._stopped_by:
            job.state, job.not_before = "waiting", time.monotonic() + WAIT_SECONDS
        elif not job.result.is_failure:
            job.state = "stopped"
            log.info("%s: stopped; it can go on", job.label)
        elif not self._stopped_by and job.may_retry(kind, self._retries):
            job.state = "waiting"
            log.info("%s; tried again", said)
        else:
            job.state = "failed"
            log.info("%s", said)
        if job.state != "waiting":
            self._source.settled(job)


def run_grid(
    jobs: Sequence[list[str]],
    configs: Sequence[StageConfig],
    *,
    settings: PoolConfig | SlurmConfig,
    choice: str | None,
    prints: bool = True,
) -> list[Job]:
    """Carry out the jobs, in their order as far as there is room, and print how they compare; the jobs as they ended.

    Raises:
        ConfigError: a setting of the launcher that cannot be, or a job that can never run there.
        StoppedError: a signal came; the same command goes on.
    """
    settings.check()
    folder, made = jobs_of_grid(jobs, configs, choice=choice)
    with _backend(settings, configs, folder, num_jobs=len(jobs)) as backend:
        write_sweep(folder, made)
        with page_at_end(folder):
            Driver(Grid(made), backend, settings.retries).run()
    if prints and len(made) > 1 and len({config.stage for config in configs}) == 1 and any(job.run for job in made):
        print_ranked(read_sweep(folder))
    return made


def run_search(
    settings: SweeperConfig,
    launcher: PoolConfig | SlurmConfig,
    *,
    space: "Space",
    fixed: list[str],
    compose: "Compose",
    choice: str | None,
) -> None:
    """Search, and print how the trials compare and how to run the best again.

    With dry_run=true, print what its first point would take in its place.

    Raises:
        ConfigError: a space, an objective or a job that cannot be.
        StoppedError: a signal came.
        LaunchError: no trial came to its end.
    """
    from llm.sweep.search import Search, as_overrides, check_objectives, check_space, key_of_search

    settings.check()
    launcher.check()
    config = check_space(settings, space, fixed, compose)
    check_objectives(settings, config)
    if config.dry_run:
        from llm.dry_run.table import show

        show([config])
        return
    folder = sweep_folder([config], key_of_search(settings, space, fixed), choice=choice)
    with _backend(launcher, [config], folder, num_jobs=settings.trials or 1) as backend:
        search = Search(settings, space=space, fixed=fixed, compose=compose, folder=folder)
        with page_at_end(folder):
            Driver(search, backend, launcher.retries).run()
    best = search.best_trials()
    print_ranked(read_sweep(folder), search=folder)
    for trial in best:
        command = shlex.join([*as_overrides(trial.params), *fixed, "hydra.mode=RUN"])
        output_console().print(f"best: python train.py {command}", markup=False, soft_wrap=True)


@contextmanager
def _backend(
    settings: PoolConfig | SlurmConfig, configs: Sequence[StageConfig], folder: Path, *, num_jobs: int
) -> Iterator[Pool | Cluster]:
    """Where `num_jobs` jobs run that are like those of the configs; of a search there are more than these.

    Raises:
        ConfigError: a job that can never run there, or another driver is at the same sweep of a cluster.
    """
    said = f"{num_jobs} jobs"
    if isinstance(settings, PoolConfig):
        pool, at_once = open_pool(settings, configs, num_jobs=num_jobs)
        log.info("%s, at most %d at once; how they stand and what they say: %s", said, at_once, folder)
        yield pool
        return
    require_slurm()
    at_once = settings.array_parallelism or SEARCH_AT_ONCE if num_jobs > len(configs) else num_jobs
    cluster = Cluster(settings, folder, at_once=at_once)
    cluster.check(configs)
    with owned(folder, wait=False):  # two drivers could submit one job twice
        log.info("%s on Slurm, as %s; how they stand and what they say: %s", said, cluster.name, folder)
        cluster.find_left()
        yield cluster


def error_of(job: Job) -> LaunchError | None:
    """Why a job has no finished run, with the exit code that the job alone would end with; None if it has."""
    if job.run:
        return None
    ended = job.result
    if ended is None or job.state == "stopped":
        return LaunchError("stopped before its end. Start the same command again to go on.", exit_code=75)
    codes = {kind: code for code, kind in KINDS.items()}
    return LaunchError(
        f"{ended.kind}: {ended.message} (see {job.folder}/console.log)", exit_code=codes.get(str(ended.kind), 1)
    )
