"""How an attempt at a job ended: its exit code, its run and its console -> the kind, and one line that says why."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from llm.config import RetryConfig
from llm.errors import ConfigError, DataError, DivergedError, StoppedError
from llm.run.owner import is_owned
from llm.run.record import now
from llm.sweep.ledger import Job, JobRecord

OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|MemoryError|can't allocate memory|out of memory|os error 12\b", re.I)
OF_SLURM = ("srun: ", "slurmstepd")  # what these say of a job's end is no word of the job
BUSY = "is being made by"  # what llm.run.owner says; its maker may have ended since
TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Ending:
    """Why an attempt ended."""

    kind: str  # done, stopped, busy, killed, out_of_memory, diverged, config, data or failed
    message: str = ""

    @property
    def is_failure(self) -> bool:
        return self.kind not in ("done", "stopped", "busy")


def ending(job: Job, exit_code: int, *, console_from: int) -> Ending:
    """What became of an attempt whose console begins at a byte of console.log."""
    if exit_code == 0:
        run = job.announced_run()
        if run is None or not run.is_done:
            return Ending("failed", "exit code 0, but no finished run")
        return Ending("done")
    if exit_code == StoppedError.exit_code:
        return Ending("stopped", "stopped by a signal")
    lines = _tail(job.folder / "console.log", console_from)
    said = _last_words(lines)
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return Ending("killed", f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else ""))
    if exit_code == ConfigError.exit_code:
        return Ending("busy" if BUSY in said or _is_busy(job) else "config", said)
    if exit_code == DataError.exit_code:
        return Ending("data", said)
    if exit_code == DivergedError.exit_code:
        return Ending("diverged", said)
    if any(OUT_OF_MEMORY.search(line) for line in lines[-5:]):
        return Ending("out_of_memory", said)
    if re.search(r"rank \d+ was killed by ", said):
        return Ending("killed", said)
    return Ending("failed", said or f"exit code {exit_code}")


def close(job: Job, record: JobRecord, ended: Ending, *, exit_code: int | None) -> None:
    """Keep in the ledger how the last attempt at a job has ended."""
    attempt = record.attempts[-1]
    attempt.ended_at, attempt.exit_code = now(), exit_code
    attempt.kind, attempt.message = ended.kind, ended.message or None
    if run := job.announced_run():
        record.run = str(run.path)
        record.objective = run.objective if ended.kind == "done" else None
    record.state = "done" if ended.kind == "done" else "failed" if ended.is_failure else "stopped"
    job.write(record)


def may_retry(kind: str, failures: list[str], retries: RetryConfig) -> bool:
    """Whether a job that failed so often, for the last time so, is tried again."""
    return failures.count(kind) <= getattr(retries, kind, 0)


def _is_busy(job: Job) -> bool:
    """Whether the run is refused because another process makes it: one of another sweep, or one that is ending."""
    folder = job.announced_folder()
    return folder is not None and is_owned(folder)


def _tail(console: Path, begin: int) -> list[str]:
    try:
        with console.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(begin, size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return [line for line in lines if line.strip() and not line.startswith(OF_SLURM)]
    except FileNotFoundError:
        return []


def _last_words(lines: list[str]) -> str:
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or [line.strip() for line in lines] or [""])[-1]
