"""A job of a sweep: what it is, how it stands, and who is at it, in files that drivers on several machines share."""

import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm.config.stages import StageConfig
from llm.config.sweeping import RetryConfig
from llm.credentials import without_secrets
from llm.environment import COMMAND, JOB_FOLDER
from llm.errors import ConfigError, DamagedError, DataError, DivergedError, StoppedError
from llm.run.files import TEMPORARY, clear_temporaries, digest_of, write_json
from llm.run.launch import JOB, RESULT, Result, read_result
from llm.run.models import read_json
from llm.run.owner import owned
from llm.run.record import METRICS, now
from llm.run.runs import Run, load

STOP = "stop"  # a file in the folder of a job that others have outdone: it is to save, end, and not come back
State = Literal["waiting", "queued", "running", "done", "failed", "stopped"]
KINDS = {error.exit_code: error.kind for error in (ConfigError, DataError, DivergedError, StoppedError)}


@dataclass
class Attempt:
    """One start of a job."""

    started_at: str
    host: str
    driver: str  # the process that started it, or Slurm's name for the job
    ended_at: str | None = None  # None: nobody lived to see it
    exit_code: int | None = None
    kind: str | None = None  # of the end: see llm.run.launch.Result; unfinished, where nobody saw it
    message: str | None = None
    is_idle: bool = False  # it was stopped before it had saved anything new

    @property
    def has_failed(self) -> bool:
        return self.kind not in (None, "unfinished", "done", "stopped", "busy")


@dataclass(kw_only=True, eq=False)
class Job:
    """A job of a sweep, composed and checked; and how it stands in this start of the sweep."""

    number: int
    overrides: list[str]
    config: StageConfig
    label: str  # what tells it from the others
    folder: Path
    varying: list[str] = field(default_factory=list)  # the overrides that the other jobs do not have

    state: State = "waiting"
    run: Run | None = None  # once it is done
    result: Result | None = None  # of the last attempt
    attempts: list[Attempt] = field(default_factory=list)  # as its file had them when it was read last
    attempts_before: int = 0  # that had ended before this start of the sweep
    not_before: float = 0.0  # on the monotonic clock
    started: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)  # the last record of its run's metrics.jsonl
    metrics_read: int = 0  # bytes of that

    def reload(self) -> None:
        """Read its attempts anew, for others add to them.

        Raises:
            DamagedError: its file cannot be read.
        """
        path = self.folder / JOB
        self.attempts = [Attempt(**each) for each in read_json(path)["attempts"]] if path.exists() else []

    def write(self) -> None:
        run = self.run or self.announced_run()
        record = {
            "number": self.number,
            "overrides": list(map(without_secrets, self.overrides)),
            "varying": list(map(without_secrets, self.varying)),
            "state": self._recorded_state(),
            "run": str(run.path) if run else None,
            "attempts": list(map(asdict, self.attempts)),
        }
        write_json(self.folder / JOB, record)

    def _recorded_state(self) -> State:
        if self.run or not self.attempts:
            return "done" if self.run else "waiting"
        last = self.attempts[-1]
        if last.kind in (None, "done"):
            return "done" if last.kind else "running"
        return "failed" if last.has_failed else "stopped"

    def may_retry(self, kind: str | None, retries: RetryConfig) -> bool:
        """Whether it is tried again after an end of this kind; attempts of earlier starts do not count."""
        kinds = [attempt.kind for attempt in self.attempts[self.attempts_before :]]
        return kinds.count(kind) <= getattr(retries, str(kind), 0)

    @property
    def is_outdone(self) -> bool:
        """Whether it was stopped for good, for others do better."""
        return (self.folder / STOP).exists()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the one driver that is at it.

        Raises:
            ConfigError: another one is.
        """
        with owned(self.folder, wait=False):
            clear_temporaries(self.folder)  # what a driver that was killed had begun to write
            yield

    def begin(self, driver: str) -> None:
        """Keep that an attempt begins; one that nobody saw the end of is marked so."""
        for attempt in self.attempts:
            attempt.kind = attempt.kind or "unfinished"
        self.attempts.append(Attempt(now(), socket.gethostname(), driver))
        (self.folder / RESULT).unlink(missing_ok=True)
        self.write()

    def ending(self, exit_code: int) -> Result:
        """What became of the last attempt: by its own word, else by its exit code, minus the signal that ended it."""
        told = read_result(self.folder)
        if exit_code == 0:
            return Result("done") if self.finished_run() else Result("failed", "exit code 0, but no finished run")
        if told and told.kind and told.kind != "done":
            return told
        if exit_code < 0:
            name = signal.Signals(-exit_code).name
            return Result("killed", f"killed by {name}" + ", perhaps for want of memory" * (name == "SIGKILL"))
        return Result(KINDS.get(exit_code, "failed"), f"exit code {exit_code}, without a word")

    def end(self, result: Result, *, exit_code: int | None = None, is_idle: bool = False) -> None:
        """Keep how the last attempt has ended."""
        self.result, attempt = result, self.attempts[-1]
        attempt.ended_at, attempt.exit_code, attempt.is_idle = now(), exit_code, is_idle
        attempt.kind, attempt.message = result.kind, result.message or None
        self.write()

    def keep_found(self, run: Run) -> None:
        """Keep that its run is done, though no driver saw its end."""
        self.state, self.run = "done", run
        recorded = read_json(self.folder / JOB).get("state") if (self.folder / JOB).exists() else None
        if recorded == "done" and not any(self.folder.glob(f"{TEMPORARY}*")):
            return
        with suppress(ConfigError), self.claimed():  # else another driver is at it, and keeps it
            self.reload()
            self.write()

    def environment(self) -> dict[str, str]:
        """What its processes are to know of it; COMMAND is the same at each attempt, and in no other sweep."""
        first = f" {self.attempts[0].started_at}" if self.attempts else ""
        return {JOB_FOLDER: str(self.folder), COMMAND: f"{self.folder.parents[1].name}/{self.number}{first}"}

    def announced_folder(self) -> Path | None:
        """Where the run lies that it makes, or has made, once it has said so; None before."""
        told = read_result(self.folder)
        return Path(told.run) if told and told.run and told.stage == self.config.stage else None

    def announced_run(self) -> Run | None:
        """The run that it makes, or has made; None before it has begun, or where that was removed or is damaged."""
        folder = self.announced_folder()
        try:
            return load(folder) if folder else None
        except (ConfigError, DamagedError):
            return None

    def finished_run(self) -> Run | None:
        run = self.announced_run()
        return run if run and run.is_done else None

    def follow(self) -> list[dict[str, Any]]:
        """The records of its run's metrics.jsonl that are new; a start of the run may have cut it back meanwhile."""
        if (folder := self.announced_folder()) is None:
            return []
        try:
            with (folder / METRICS).open("rb") as file:
                if file.seek(0, 2) < self.metrics_read:
                    self.metrics_read = 0
                file.seek(self.metrics_read)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:  # not there yet
            return []
        self.metrics_read += len(whole) + 1 if whole else 0
        records = []
        for line in whole.split(b"\n"):
            with suppress(ValueError):  # the rest of one that was cut back
                records.append(dict(json.loads(line)))
        self.measured = records[-1] if records else self.measured
        return records


def this_process() -> str:
    """By which an attempt names the driver that started it."""
    return f"process {os.getpid()}"


def sweep_folder(configs: Sequence[StageConfig], key: str, *, choice: str | None) -> Path:
    """Where the files of these jobs lie: the same command finds them again. `choice` is a recorded sweep's name."""
    names = {config.name for config in configs}
    name = (names.pop() if len(names) == 1 else None) or choice or configs[0].stage
    return Path(configs[0].outputs) / "sweeps" / f"{name}-{key}"


def jobs_of_grid(
    jobs: Sequence[list[str]], configs: Sequence[StageConfig], *, choice: str | None
) -> tuple[Path, list[Job]]:
    """(the folder of the sweep, its jobs)."""
    folder = sweep_folder(configs, digest_of([sorted(job) for job in jobs])[:8], choice=choice)
    made = []
    for number, (job, config, own) in enumerate(zip(jobs, configs, varying(jobs), strict=True)):
        label = " ".join(map(without_secrets, own)) or "the job"
        place = folder / "jobs" / f"{number:04d}"
        made.append(Job(number=number, overrides=job, config=config, label=label, folder=place, varying=own))
    return folder, made


def varying(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """For each job the overrides that not all have; those of the only job are all."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [[override for override in job if override not in shared] for job in jobs]


def write_sweep(folder: Path, jobs: Sequence[Job]) -> None:
    """Write down what the sweep is, unless that is there."""
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sweep.json").exists():
        said = {
            "created_at": now(),
            "command": shlex.join(map(without_secrets, sys.argv)),
            "jobs": [list(map(without_secrets, job.overrides)) for job in jobs],
        }
        write_json(folder / "sweep.json", said)
