"""The ledger of a sweep: what each of its jobs is, how it stands, and who is at it, in files that drivers share."""

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm.config import StageConfig
from llm.credentials import without_secrets
from llm.environment import COMMAND
from llm.errors import ConfigError, DamagedError
from llm.run.announcing import ANNOUNCED, JOB_FOLDER, tell_job
from llm.run.files import TEMPORARY, digest_of, write_json
from llm.run.owner import is_owned, owned
from llm.run.record import now
from llm.run.runs import Run, load

State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass
class Attempt:
    """One start of a job, by one driver."""

    started_at: str
    host: str
    driver: int
    ended_at: str | None = None  # None: the driver did not live to see it
    exit_code: int | None = None
    kind: str | None = None  # of the end: see llm.sweep.ending
    message: str | None = None


@dataclass
class JobRecord:
    """What the ledger says of a job."""

    number: int
    overrides: list[str]
    state: State = "waiting"
    run: str | None = None  # its folder
    objective: float | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def failures(self, since: int = 0) -> list[str]:
        """The kinds of the attempts that failed, those after the first `since` alone."""
        kinds = [attempt.kind for attempt in self.attempts[since:]]
        return [kind for kind in kinds if kind not in (None, "done", "stopped", "busy", "unfinished")]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of a sweep, composed and checked."""

    number: int
    overrides: list[str]
    config: StageConfig
    label: str  # what tells it from the others
    folder: Path
    varying: tuple[str, ...] = ()  # the overrides that the other jobs do not have

    def read(self) -> JobRecord:
        """What the ledger says of it.

        Raises:
            DamagedError: its file cannot be read, or is of another job.
        """
        path = self.folder / "job.json"
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            attempts = [Attempt(**attempt) for attempt in value.pop("attempts")]
            record = JobRecord(**value, attempts=attempts)
        except FileNotFoundError:
            return JobRecord(self.number, list(map(without_secrets, self.overrides)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedError(f"{path} cannot be read ({error}). Remove it to have the job looked at anew.") from None
        if record.overrides != list(map(without_secrets, self.overrides)):
            raise DamagedError(f"{path} is of another job. Remove it to have the job looked at anew.")
        return record

    def write(self, record: JobRecord) -> None:
        write_json(self.folder / "job.json", asdict(record))

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
            for path in self._left_over():
                path.unlink()
            yield

    def _left_over(self) -> list[Path]:
        """What a driver that was killed had begun to write of the record; only one that is at the job writes it."""
        return [*self.folder.glob(f"{TEMPORARY}job.json*")]

    def begin(self, record: JobRecord) -> None:
        """Keep that an attempt begins; one that nobody saw the end of is marked so."""
        for attempt in record.attempts:
            attempt.kind = attempt.kind or "unfinished"
        record.attempts.append(Attempt(now(), socket.gethostname(), os.getpid()))
        record.state = "running"
        (self.folder / ANNOUNCED).unlink(missing_ok=True)
        tell_job(self.folder, list(map(without_secrets, self.varying)))
        self.write(record)

    def environment(self, record: JobRecord) -> dict[str, str]:
        """What its processes are to know of it; COMMAND is the same at each attempt, and in no other sweep."""
        first = f" {record.attempts[0].started_at}" if record.attempts else ""
        return {JOB_FOLDER: str(self.folder), COMMAND: f"{self.folder.parents[1].name}/{self.number}{first}"}

    def keep_found(self, run: Run) -> None:
        """Keep that the job's run is done, though no driver saw its end."""
        if self.read().state == "done" and not self._left_over():
            return
        with suppress(ConfigError), self.claimed():  # else another driver is at it, and keeps it
            record = self.read()
            if record.state != "done":
                record.state, record.run, record.objective = "done", str(run.path), run.objective
                self.write(record)

    def announced_folder(self) -> Path | None:
        """Where the run lies that the job makes, or has made, once it has said so; None before."""
        try:
            stage, folder = (self.folder / ANNOUNCED).read_text(encoding="utf-8").split("\n")[:2]
        except FileNotFoundError:
            return None
        return Path(folder) if stage == self.config.stage else None

    def announced_run(self) -> Run | None:
        """The run that the job makes, or has made; None before it has begun."""
        folder = self.announced_folder()
        try:
            return load(folder) if folder else None
        except (ConfigError, DamagedError):
            return None


def sweep_folder(configs: Sequence[StageConfig], jobs: Sequence[Sequence[str]], *, choice: str | None) -> Path:
    """Where the ledger of these jobs lies: the same command finds it again."""
    names = {config.name for config in configs}
    name = (names.pop() if len(names) == 1 else None) or choice or configs[0].stage
    key = digest_of([sorted(job) for job in jobs])[:8]
    return Path(configs[0].outputs) / "sweeps" / f"{name}-{key}"


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


def labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """For each job the overrides that not all have; those of the only job are all."""
    return [" ".join(map(without_secrets, own)) or "the job" for own in varying(jobs)]


def varying(jobs: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each job the overrides that not all have; those of the only job are all."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [tuple(override for override in job if override not in shared) for job in jobs]
