"""A job of a sweep, inside its Slurm allocation -> its processes, started by srun, and how they ended in the ledger.

One process of this kind runs in the batch script, on the first node; srun starts one process of train.py for each
device, on every node. Slurm tells those by a signal that their time is nearly over, or that another job wants the
nodes: they save, and end with exit code 75. Then this process has the job put back into the queue. A driver need not
live for it.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from llm.config import RetryConfig
from llm.errors import StoppedError
from llm.run import log, start_logging
from llm.run.launch import LOOPBACK, TRAIN
from llm.run.owner import owned
from llm.sweep.ending import Ending, close, ending, may_retry
from llm.sweep.ledger import Job, JobRecord
from llm.sweep.slurm_queue import job_state, node_address, requeue
from llm.sweep.slurm_submission import read_submission

MAX_IDLE_STARTS = 3  # in a row that left nothing to go on from
FIRST_FAILURE = re.compile(rb"^srun: error: \S+: tasks? [\d,-]+: (?:Exited with exit code (\d+)|([A-Z][a-z ]+))", re.M)
SIGNALS_OF_SRUN = {b"Killed": -9, b"Terminated": -15, b"Segmentation fault": -11, b"Aborted": -6, b"Bus error": -7}


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What is submitted: the job, and all that its supervisor needs to know of the launcher."""

    job: Job  # its folder is absolute
    token: str  # of the submission that this is
    nodes: int
    devices: int
    cpus_per_task: int
    srun: list[str]
    retries: RetryConfig
    max_attempts: int

    def __call__(self) -> None:
        """Run it, and end with its exit code.

        Raises:
            SystemExit: always.
        """
        raise SystemExit(self._supervise())

    def _supervise(self) -> int:
        start_logging()
        ignore_slurms_signals()
        with owned(self.job.folder, wait=True):
            submission = read_submission(self.job.folder)
            if submission is None or submission.token != self.token:
                log.info("%s: submitted anew since; this Slurm job does nothing", self.job.label)
                return 0
            if submission.is_to_stop:
                return StoppedError.exit_code
            record = self.job.read()
            if record.state == "done":
                return 0
            left_before = _left(self.job)
            self.job.begin(record)
            code, ended = self._attempt()
            ended = self._as_it_was_meant(ended)
            if ended.kind == "stopped" and _left(self.job) == left_before:
                ended = self._if_idle(record, ended)
            close(self.job, record, ended, exit_code=code)
        if self._goes_on(record, ended, begun_at=submission.attempts):
            self._requeue()
        return code

    def _attempt(self) -> tuple[int, Ending]:
        console = self.job.folder / "console.log"
        size = console.stat().st_size if console.exists() else 0
        with console.open("ab") as file:
            ran = subprocess.run(
                self.command(), env=self._environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        code = exit_code_of(console, size, ran.returncode)
        return code, ending(self.job, code, console_from=size)

    def command(self) -> list[str]:
        """srun's, which starts one process for each device of each node."""
        return [
            *("srun", "--export=ALL", "--unbuffered", "--kill-on-bad-exit=1"),
            *(f"--nodes={self.nodes}", f"--ntasks={self.nodes * self.devices}", f"--ntasks-per-node={self.devices}"),
            *(f"--cpus-per-task={self.cpus_per_task}", *self.srun),
            *(sys.executable, str(TRAIN), *self.job.overrides, "hydra.mode=RUN"),
        ]

    def _environment(self) -> dict[str, str]:
        host = LOOPBACK if self.nodes == 1 else node_address(os.environ.get("SLURMD_NODENAME", socket.gethostname()))
        return {
            **os.environ,
            **self.job.environment(self.job.read()),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": str(self.cpus_per_task),
        }

    def _as_it_was_meant(self, ended: Ending) -> Ending:
        """What died while Slurm ended the job was stopped, if not in good order."""
        if ended.kind == "killed" and job_state(slurm_id()) not in ("RUNNING", "UNKNOWN"):
            return Ending("stopped", f"{ended.message}, as Slurm ended the job")
        return ended

    def _if_idle(self, record: JobRecord, ended: Ending) -> Ending:
        """A failure, where one start after the other ends before it has saved anything."""
        idle = 1
        for attempt in reversed(record.attempts[:-1]):
            if attempt.kind != "stopped" or "nothing new was saved" not in (attempt.message or ""):
                break
            idle += 1
        message = f"{ended.message}; nothing new was saved"
        if idle < MAX_IDLE_STARTS:
            return Ending("stopped", message)
        return Ending("failed", f"{message}, {idle} times in a row. Raise hydra.launcher.time_minutes")

    def _goes_on(self, record: JobRecord, ended: Ending, *, begun_at: int) -> bool:
        """Whether the job is to start again in this Slurm job."""
        submission = read_submission(self.job.folder)
        if submission is None or submission.token != self.token or submission.is_to_stop:
            return False
        if ended.kind in ("stopped", "busy"):
            return True
        failures = record.failures(since=begun_at)
        return (
            ended.is_failure
            and may_retry(ended.kind, failures, self.retries)
            and len(record.failures()) < self.max_attempts
        )

    def _requeue(self) -> None:
        """Back into the queue; not where somebody else ends the job or has done so, who could mean to cancel it."""
        if job_state(slurm_id()) == "RUNNING" and not requeue(slurm_id()):
            log.warning("%s: Slurm does not requeue it. The same command submits it again", self.job.label)


def slurm_id() -> str:
    """The id of the Slurm job that this process is in."""
    return os.environ["SLURM_JOB_ID"]  # of an element of an array too, which has a number of its own


def exit_code_of(console: Path, begin: int, code: int) -> int:
    """The code of the process that failed first, or minus its signal: srun's is the highest of all."""
    if code == 0:
        return 0
    with console.open("rb") as file:
        file.seek(begin)
        found = FIRST_FAILURE.search(file.read())
    if found and found[1]:
        code = int(found[1])
    elif found and found[2].strip() in SIGNALS_OF_SRUN:
        code = SIGNALS_OF_SRUN[found[2].strip()]
    return 128 - code if 128 < code < 128 + signal.NSIG else code


def ignore_slurms_signals() -> None:
    """Live on through what Slurm sends to every process of the job: srun's processes save, and end by themselves.

    A handler, for srun would inherit that a signal is ignored.
    """
    handler: Callable[[int, FrameType | None], None] = _go_on
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, handler)


def _go_on(number: int, frame: FrameType | None) -> None:
    log.info("%s came", signal.Signals(number).name)


def _left(job: Job) -> frozenset[str]:
    """The names of what the job's run has to go on from."""
    folder = job.announced_folder()
    if folder is None or not folder.is_dir():
        return frozenset()
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
