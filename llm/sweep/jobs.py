"""The jobs of a sweep: what each is, how it stands, and who is at it, in files that drivers share."""

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
from llm.run.announcing import JOB, RESULT, Result, read_result
from llm.run.files import TEMPORARY, clear_temporaries, digest_of, write_json
from llm.run.owner import is_owned, owned
from llm.run.record import now
from llm.run.runs import Run, load

State = Literal["waiting", "queued", "running", "done", "failed", "stopped"]
KINDS = {error.exit_code: error.kind for error in (ConfigError, DataError, DivergedError, StoppedError)}


@dataclass
class Attempt:
    """One start of a job, by one driver."""

    started_at: str
    host: str
    driver: int
    ended_at: str | None = None  # None: the driver did not live to see it
    exit_code: int | None = None
    kind: str | None = None  # of the end: see llm.run.announcing.Result
    message: str | None = None
    is_idle: bool = False  # it was stopped before it had saved anything new


@dataclass
class JobRecord:
    """What job.json says of a job."""

    number: int
    overrides: list[str]
    state: State = "waiting"
    run: str | None = None  # its folder
    objective: float | None = None
    varying: list[str] = field(default_factory=list)  # the overrides that the other jobs do not have
    attempts: list[Attempt] = field(default_factory=list)

    def failures(self, since: int = 0) -> list[str]:
        """The kinds of the attempts that failed, those after the first `since` alone."""
        kinds = [attempt.kind for attempt in self.attempts[since:]]
        return [kind for kind in kinds if kind not in (None, "done", "stopped", "busy", "unfinished")]

    def may_retry(self, kind: str | None, retries: RetryConfig, *, since: int) -> bool:
        """Whether a job whose last attempt failed so is tried again; those before the first `since` do not count."""
        return kind is not None and self.failures(since).count(kind) <= getattr(retries, kind, 0)


@dataclass(kw_only=True, eq=False)
class Job:
    """A job of a sweep, composed and checked; and how it stands in this start of the sweep."""

    number: int
    overrides: list[str]
    config: StageConfig
    label: str  # what tells it from the others
    folder: Path
    varying: tuple[str, ...] = ()  # the overrides that the other jobs do not have

    state: State = "waiting"
    run: Run | None = None  # once it is done
    result: Result | None = None  # of the last attempt
    attempts_before: int = 0  # of earlier starts
    not_before: float = 0.0  # on the monotonic clock
    started: float = 0.0

    def read(self) -> JobRecord:
        """What its file says.

        Raises:
            DamagedError: it cannot be read, or is of another job.
        """
        path = self.folder / JOB
        own = list(map(without_secrets, self.overrides))
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            attempts = [Attempt(**attempt) for attempt in value.pop("attempts")]
            record = JobRecord(**value, attempts=attempts)
        except FileNotFoundError:
            return JobRecord(self.number, own, varying=list(map(without_secrets, self.varying)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"{path} cannot be read ({error}). Remove it to have the job looked at anew.") from None
        if record.overrides != own:
            raise DamagedError(f"{path} is of another job. Remove it to have the job looked at anew.")
        return record

    def write(self, record: JobRecord) -> None:
        write_json(self.folder / JOB, asdict(record))

    def is_taken(self) -> bool:
        """Whether a living driver is at it."""
        return is_owned(self.folder)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the one driver that is at it.

        Raises:
            ConfigError: another one is.
        """
        with owned(self.folder, wait=False):
            clear_temporaries(self.folder)  # what a driver that was killed had begun to write
            yield

    def begin(self, record: JobRecord) -> None:
        """Keep that an attempt begins; one that nobody saw the end of is marked so."""
        for attempt in record.attempts:
            attempt.kind = attempt.kind or "unfinished"
        record.attempts.append(Attempt(now(), socket.gethostname(), os.getpid()))
        record.state = "running"
        (self.folder / RESULT).unlink(missing_ok=True)
        self.write(record)

    def ending(self, exit_code: int) -> Result:
        """What became of the last attempt: by its own word, else by its exit code, minus the signal that ended it."""
        told = read_result(self.folder)
        if exit_code == 0:
            run = self.announced_run()
            is_done = run is not None and run.is_done
            return Result("done") if is_done else Result("failed", "exit code 0, but no finished run")
        if told and told.kind and told.kind != "done":
            return told
        if exit_code < 0:
            name = signal.Signals(-exit_code).name
            return Result("killed", f"killed by {name}" + ", perhaps for want of memory" * (name == "SIGKILL"))
        return Result(KINDS.get(exit_code, "failed"), f"exit code {exit_code}, without a word")

    def end(self, record: JobRecord, ended: Result, *, exit_code: int | None, is_idle: bool = False) -> None:
        """Keep how the last attempt has ended."""
        attempt = record.attempts[-1]
        attempt.ended_at, attempt.exit_code = now(), exit_code
        attempt.kind, attempt.message, attempt.is_idle = ended.kind, ended.message or None, is_idle
        if run := self.announced_run():
            record.run = str(run.path)
            record.objective = run.objective if ended.kind == "done" else None
        record.state = "done" if ended.kind == "done" else "failed" if ended.is_failure else "stopped"
        self.write(record)

    def environment(self, record: JobRecord) -> dict[str, str]:
        """What its processes are to know of it; COMMAND is the same at each attempt, and in no other sweep."""
        first = f" {record.attempts[0].started_at}" if record.attempts else ""
        return {JOB_FOLDER: str(self.folder), COMMAND: f"{self.folder.parents[1].name}/{self.number}{first}"}

    def keep_found(self, run: Run) -> None:
        """Keep that the job's run is done, though no driver saw its end."""
        self.state, self.run = "done", run
        if self.read().state == "done" and not any(self.folder.glob(f"{TEMPORARY}*")):
            return
        with suppress(ConfigError), self.claimed():  # else another driver is at it, and keeps it
            record = self.read()
            if record.state != "done":
                record.state, record.run, record.objective = "done", str(run.path), run.objective
                self.write(record)

    def announced_folder(self) -> Path | None:
        """Where the run lies that the job makes, or has made, once it has said so; None before."""
        told = read_result(self.folder)
        return Path(told.run) if told and told.run and told.stage == self.config.stage else None

    def announced_run(self) -> Run | None:
        """The run that the job makes, or has made; None before it has begun."""
        folder = self.announced_folder()
        try:
            return load(folder) if folder else None
        except (ConfigError, DamagedError):
            return None


class NewMetrics:
    """The records of a run's metrics.jsonl as they come; a start of the run may have cut it back since."""

    def __init__(self) -> None:
        self._position = 0
        self.last: dict[str, Any] = {}

    def read(self, folder: Path | None) -> list[dict[str, Any]]:
        """Those that are new since the last time."""
        try:
            with ((folder or Path()) / "metrics.jsonl").open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0
                file.seek(self._position)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:  # not there yet
            return []
        self._position += len(whole) + 1 if whole else 0
        records = []
        for line in whole.split(b"\n"):
            with suppress(ValueError):  # the rest of one that was cut back
                records.append(dict(json.loads(line)))
        self.last = records[-1] if records else self.last
        return records


def sweep_folder(configs: Sequence[StageConfig], key: str, *, choice: str | None) -> Path:
    """Where the ledger of these jobs lies: the same command finds it again."""
    names = {config.name for config in configs}
    name = (names.pop() if len(names) == 1 else None) or choice or configs[0].stage
    return Path(configs[0].outputs) / "sweeps" / f"{name}-{key}"


def jobs_of_grid(
    jobs: Sequence[Sequence[str]], configs: Sequence[StageConfig], *, choice: str | None
) -> tuple[Path, list[Job]]:
    """(the folder of the sweep, its jobs)."""
    folder = sweep_folder(configs, digest_of([sorted(job) for job in jobs])[:8], choice=choice)
    made = []
    for number, (job, config, own) in enumerate(zip(jobs, configs, varying(jobs), strict=True)):
        label = " ".join(map(without_secrets, own)) or "the job"
        place = folder / "jobs" / f"{number:04d}"
        made.append(Job(number=number, overrides=list(job), config=config, label=label, folder=place, varying=own))
    return folder, made


def varying(jobs: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each job the overrides that not all have; those of the only job are all."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [tuple(override for override in job if override not in shared) for job in jobs]


def open_ledger(folder: Path, jobs: Sequence[Job]) -> None:
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
