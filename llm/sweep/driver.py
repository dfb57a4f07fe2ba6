"""The jobs of a sweep -> all of them done, as far as they can be: found, started, tried again, and told."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.config import PoolConfig, SlurmConfig
from llm.errors import ConfigError, DamagedError, StoppedError
from llm.run.runs import Run, load
from llm.run.signals import on_signal
from llm.sweep.board import Board
from llm.sweep.ending import Ending, may_retry
from llm.sweep.finding import Finder
from llm.sweep.ledger import Job, JobRecord
from llm.sweep.pool import Pool
from llm.sweep.slurm import Cluster

LOOK_SECONDS = 0.5  # between two looks at what nobody tells us of: other drivers, the metrics
WAIT_SECONDS = 2.0  # before a job that another process makes is tried again


@dataclass
class Standing:
    """How a job stands in this start of the sweep."""

    job: Job
    attempts_before: int  # in the ledger, of earlier starts
    state: str = "waiting"  # waiting, running, done, failed or stopped
    run: Run | None = None
    ending: Ending | None = None
    not_before: float = 0.0  # on the monotonic clock


class Driver:
    """Carries out jobs that are known from the beginning; several drivers, on several machines, can share them."""

    def __init__(
        self,
        jobs: Sequence[Job],
        pool: Pool | Cluster,
        settings: PoolConfig | SlurmConfig,
        board: Board,
        finder: Finder,
    ) -> None:
        self._pool, self._settings, self._board, self._finder = pool, settings, board, finder
        self._stopped_by: str | None = None
        self._gives_up = False
        self.standings = {job.number: Standing(job, len(job.read().attempts)) for job in jobs}

    def run(self) -> list[Standing]:
        """Every job's standing, once none is left that can be started.

        Raises:
            StoppedError: a signal came; the jobs have saved what they did.
        """
        try:
            with on_signal(self._stop), self._board.shown(self.standings.values(), self._pool):
                self._find_finished()
                while self._is_unsettled():
                    self._start_ready()
                    for job, ended in self._pool.ended(LOOK_SECONDS):
                        self._settle(self.standings[job.number], ended)
                    self._board.refresh()
        finally:
            self._pool.kill_all()
        if self._stopped_by:
            raise StoppedError(f"stopped by {self._stopped_by}. Start the same command again to go on.")
        return [*self.standings.values()]

    def submit(self) -> list[Standing]:
        """Every job's standing, once those that are left are submitted; nobody waits for them."""
        self._find_finished()
        self._start_ready()
        if isinstance(self._pool, Cluster):
            self._pool.submit()
        return [*self.standings.values()]

    def _stop(self, name: str) -> None:
        """On a signal: let no job start, and those that run save and end."""
        self._stopped_by = name

    def _is_unsettled(self) -> bool:
        if self._stopped_by and not self._gives_up:
            self._pool.leave(self._stopped_by)
            self._give_up()
        return bool(self._pool.running) or any(each.state == "waiting" for each in self.standings.values())

    def _give_up(self) -> None:
        self._gives_up = True
        self._pool.stop_all()
        for each in self.standings.values():
            if each.state == "waiting":
                each.state = "stopped"

    def _find_finished(self) -> None:
        for each in self.standings.values():
            if self._stopped_by:
                return
            if run := self._finder.find(each.job.config):
                self._take_run(each, run)
                for line in self._finder.said[str(run.path)]:
                    self._board.say(line)
                continue
            if (failed := len(each.job.read().failures())) >= self._settings.max_attempts:
                said = f"has failed {failed} times; hydra.launcher.max_attempts={self._settings.max_attempts}. Raise it"
                each.state, each.ending = "failed", Ending("failed", said)
                self._board.say(f"{each.job.label}: {said}")

    def _take_run(self, each: Standing, run: Run) -> None:
        each.state, each.run = "done", run
        each.job.keep_found(run)

    def _start_ready(self) -> None:
        for each in self.standings.values():
            if each.state != "waiting" or self._gives_up or time.monotonic() < each.not_before:
                continue
            if self._pool.is_taken(each.job):
                each.not_before = time.monotonic() + LOOK_SECONDS
                continue
            record = each.job.read()  # after the look: what it says is the last word of whoever had the job
            if self._settle_by_others(each, record):
                continue
            if self._pool.start(each.job, record):
                each.state = "running"
                self._board.say(f"{each.job.label}: {self._pool.begun}")

    def _settle_by_others(self, each: Standing, record: JobRecord) -> bool:
        """Whether another driver has brought the job to its end: a failure counts if it came since this one began."""
        if record.state == "done" and record.run and (run := load_finished(record)):
            each.state, each.run = "done", run
            return True
        if len(record.attempts) <= each.attempts_before:
            return False
        last = record.attempts[-1]
        if record.state == "failed" and last.kind and not self._is_retried(each, last.kind):
            each.state, each.ending = "failed", Ending(last.kind, last.message or "")
            return True
        return False

    def _is_retried(self, each: Standing, kind: str) -> bool:
        failures = each.job.read().failures(since=each.attempts_before)
        return may_retry(kind, failures, self._settings.retries)

    def _settle(self, each: Standing, ended: Ending) -> None:
        each.ending = ended
        if ended.kind == "done":
            each.state, each.run = "done", each.job.announced_run()
            self._board.say(f"{each.job.label}: done{_result(each.run)}")
        elif ended.kind == "busy" and not self._gives_up:
            each.state, each.not_before = "waiting", time.monotonic() + WAIT_SECONDS
        elif not ended.is_failure:
            each.state = "stopped"
            self._board.say(f"{each.job.label}: stopped; it can go on")
        elif not self._gives_up and self._is_retried(each, ended.kind):
            each.state = "waiting"
            self._board.say(f"{each.job.label}: {ended.kind}: {ended.message}; tried again")
        else:
            each.state = "failed"
            self._board.say(f"{each.job.label}: {ended.kind}: {ended.message}")
            if self._settings.fail_fast and not self._gives_up:
                self._board.say("hydra.launcher.fail_fast: the other jobs save what they did, and end")
                self._give_up()


def load_finished(record: JobRecord) -> Run | None:
    """The run that a record names, if it is done and still there."""
    try:
        run = load(Path(str(record.run)))
    except (ConfigError, DamagedError):  # removed since, or damaged: the job makes it again, or says so
        return None
    return run if run.is_done else None


def _result(run: Run | None) -> str:
    return "" if run is None or run.objective is None else f", {run.objective:.4f}"
