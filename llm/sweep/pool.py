"""Jobs that are ready -> processes, as many at once as the machine's shares allow, and how each of them ended."""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from llm.config import PoolConfig
from llm.errors import ConfigError
from llm.run import log
from llm.sweep.ending import Ending, close, ending
from llm.sweep.ledger import Job, JobRecord
from llm.sweep.process import JobProcess, wait_for_any
from llm.sweep.shares import Share, Shares

METRICS_TAIL_BYTES = 4_000


@dataclass
class Running:
    """An attempt at a job that is under way."""

    job: Job
    record: JobRecord
    process: JobProcess
    share: Share
    claim: ExitStack
    console_from: int
    started: float = field(default_factory=time.monotonic)
    state = "running"

    def last_metrics(self) -> dict[str, Any]:
        return last_metrics(self.job)


def last_metrics(job: Job) -> dict[str, Any]:
    """The newest whole record of a run's metrics.jsonl; empty before there is one."""
    folder = job.announced_folder()
    if folder is None:
        return {}
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - METRICS_TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        return dict(json.loads(lines[-1])) if lines else {}
    except (OSError, ValueError):  # not there yet, or one line longer than the tail
        return {}


class Pool:
    """The attempts that are under way on this machine, by this driver."""

    begun = "started"  # what the board says of a job that start() took

    def __init__(self, settings: PoolConfig, shares: Shares) -> None:
        self._settings, self._shares = settings, shares
        self.running: dict[int, Running] = {}

    def start(self, job: Job, seen: JobRecord) -> bool:
        """Start an attempt if there is room for it and no other driver is, or was, at the job since it was `seen`.

        Gives whether it was started.
        """
        share = self._shares.take(job.config)
        if share is None:
            return False
        claim = ExitStack()
        try:
            claim.enter_context(job.claimed())
        except ConfigError:
            self._shares.give_back(share)
            return False
        with ExitStack() as undo:
            undo.callback(self._shares.give_back, share)
            undo.push(claim)
            record = job.read()
            if record != seen:  # another driver had it between the look and the claim
                return False
            job.begin(record)
            console = job.folder / "console.log"
            size = console.stat().st_size if console.exists() else 0
            environment = share.environment | job.environment(record)
            process = JobProcess(job.overrides, folder=job.folder, environment=environment)
            self.running[job.number] = Running(job, record, process, share, claim, size)
            undo.pop_all()
        return True

    def ended(self, seconds: float) -> list[tuple[Job, Ending]]:
        """Wait so long for one to end; the attempts that have ended, their records written and their shares free."""
        wait_for_any([each.process for each in self.running.values()], seconds)
        done = []
        for number, each in [*self.running.items()]:
            code = each.process.exit_code
            if code is None:
                continue
            del self.running[number]
            done.append((each.job, self._close(each, code)))
        return done

    def stop(self, number: int) -> None:
        """Ask a job to save and end; it is killed once its grace is over."""
        if number in self.running:
            self.running[number].process.stop(self._settings.grace_seconds)

    def is_taken(self, job: Job) -> bool:
        """Whether another driver is at a job."""
        return job.is_taken()

    def leave(self, signal_name: str) -> None:
        """This driver is to end, and its jobs with it."""
        log.info("%s: %d jobs save what they did, and end", signal_name, len(self.running))
        self.stop_all()

    def stop_all(self) -> None:
        for number in self.running:
            self.stop(number)

    def kill_all(self) -> None:
        """End what is left at once."""
        for each in self.running.values():
            each.process.kill()
            each.claim.close()
        self.running.clear()

    def _close(self, each: Running, code: int) -> Ending:
        self._shares.give_back(each.share)
        with each.claim:
            ended = ending(each.job, code, console_from=each.console_from)
            close(each.job, each.record, ended, exit_code=code)
        return ended
