"""Jobs that are ready -> processes, as many at once as the machine's shares allow, and how each of them ended."""

import time
from contextlib import ExitStack
from dataclasses import dataclass

from llm.config.sweeping import PoolConfig
from llm.errors import ConfigError
from llm.run.announcing import Result
from llm.run.console import log
from llm.sweep.jobs import Job, JobRecord
from llm.sweep.process import JobProcess, wait_for_any
from llm.sweep.shares import Share, Shares


@dataclass
class Running:
    """An attempt at a job that is under way."""

    job: Job
    record: JobRecord
    process: JobProcess
    share: Share
    claim: ExitStack


class Pool:
    """The attempts that are under way on this machine, by this driver."""

    begun = "started"

    def __init__(self, settings: PoolConfig, shares: Shares) -> None:
        self._settings, self._shares = settings, shares
        self.running: dict[int, Running] = {}

    def start(self, job: Job, seen: JobRecord) -> bool:
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
            environment = share.environment | job.environment(record)
            process = JobProcess(job.overrides, folder=job.folder, environment=environment)
            self.running[job.number] = Running(job, record, process, share, claim)
            job.state, job.started = "running", time.monotonic()
            undo.pop_all()
        return True

    def ended(self, seconds: float) -> list[tuple[Job, Result]]:
        """Wait so long for one to end; the attempts that have ended, their records written and their shares free."""
        wait_for_any([each.process for each in self.running.values()], seconds)
        done = []
        for number, each in [*self.running.items()]:
            code = each.process.exit_code
            if code is None:
                continue
            del self.running[number]
            self._shares.give_back(each.share)
            with each.claim:
                ended = each.job.ending(code)
                each.job.end(each.record, ended, exit_code=code)
            done.append((each.job, ended))
        return done

    def submit(self) -> None:
        """Nothing: start() has started it."""

    def stop(self, job: Job) -> None:
        """Ask a job to save and end; it is killed once its grace is over."""
        if job.number in self.running:
            self.running[job.number].process.stop(self._settings.grace_seconds)

    def is_taken(self, job: Job) -> bool:
        return job.is_taken()

    def is_idle(self) -> bool:
        return not self.running

    def leave(self, signal_name: str) -> None:
        log.info("%s: %d jobs save what they did, and end", signal_name, len(self.running))

    def kill_all(self) -> None:
        for each in self.running.values():
            each.process.kill()
            each.claim.close()
        self.running.clear()
