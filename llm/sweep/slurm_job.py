"""A job of a sweep, inside its Slurm allocation -> its processes, started by srun, and in its file how they ended.

    python -m llm.sweep.slurm_job TASKS     # what the script of an array runs, on the first node of each job

srun starts one process of train.py for each device, on every node. Slurm tells those by a signal that their time is
nearly over, or that another job wants the nodes: they save, and end with exit code 75. Then this process has the job
put back into the queue. A driver need not live for it.
"""

import json
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

from llm.config.stages import StageConfig
from llm.config.sweeping import RetryConfig
from llm.environment import slurm_array_index, slurm_job_id, slurm_node, variables
from llm.errors import StoppedError
from llm.run.announcing import Result
from llm.run.console import log, start_logging
from llm.run.launch import LOOPBACK, TRAIN
from llm.run.owner import owned
from llm.sweep.jobs import Job, JobRecord
from llm.sweep.slurm_queue import job_state, node_address, requeue

STOP = "stop"  # a file in the folder of a job that is to save, end, and not come back
MAX_IDLE_STARTS = 3  # in a row that left nothing to go on from


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job, and all that is to be known of the launcher that submitted it."""

    job: Job
    nodes: int
    devices: int
    cpus_per_task: int
    srun: list[str]
    retries: RetryConfig
    max_attempts: int

    def run(self) -> int:
        """Its exit code."""
        with owned(self.job.folder, wait=True):
            if self.is_to_stop:
                return StoppedError.exit_code
            record = self.job.read()
            if record.state == "done":
                return 0
            left_before = _left(self.job)
            self.job.begin(record)
            code, ended = self.attempt()
            is_idle = ended.kind == "stopped" and _left(self.job) == left_before
            if is_idle and (times := idle_starts(record)) >= MAX_IDLE_STARTS:
                said = f"{ended.message}; nothing new was saved, {times} times in a row"
                ended = Result("failed", f"{said}. Raise hydra.launcher.time_minutes")
            self.job.end(record, ended, exit_code=code, is_idle=is_idle)
        if self.goes_on(record, ended):
            self.requeue()
        return code

    @property
    def is_to_stop(self) -> bool:
        return (self.job.folder / STOP).exists()

    def attempt(self) -> tuple[int, Result]:
        """(the exit code, what became of it)."""
        with (self.job.folder / "console.log").open("ab") as file:
            ran = subprocess.run(
                self.command(), env=self.environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        code = ran.returncode  # the highest of all processes; of one that a signal ended, as a shell says it
        code = 128 - code if 128 < code < 128 + signal.NSIG else code
        ended = self.job.ending(code)
        if ended.kind == "killed" and job_state(slurm_job_id()) not in ("RUNNING", "UNKNOWN"):
            ended = Result("stopped", f"{ended.message}, as Slurm ended the job")
        return code, ended

    def command(self) -> list[str]:
        """srun's, which starts one process for each device of each node."""
        return [
            *("srun", "--export=ALL", "--unbuffered", "--kill-on-bad-exit=1"),
            *(f"--nodes={self.nodes}", f"--ntasks={self.nodes * self.devices}", f"--ntasks-per-node={self.devices}"),
            *(f"--cpus-per-task={self.cpus_per_task}", *self.srun),
            *(sys.executable, str(TRAIN), *self.job.overrides, "hydra.mode=RUN"),
        ]

    def environment(self) -> dict[str, str]:
        """Of those processes."""
        host = LOOPBACK if self.nodes == 1 else node_address(slurm_node())
        return {
            **variables(),
            **self.job.environment(self.job.read()),
            "MASTER_ADDR": host,
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": str(self.cpus_per_task),
        }

    def goes_on(self, record: JobRecord, ended: Result) -> bool:
        """Whether the job is to start again in this Slurm job."""
        if self.is_to_stop or ended.kind in ("stopped", "busy"):
            return not self.is_to_stop
        may_retry = ended.is_failure and record.may_retry(ended.kind, self.retries, since=self.job.attempts_before)
        return may_retry and len(record.failures()) < self.max_attempts

    def requeue(self) -> None:
        """Back into the queue; not where somebody else ends the job or has done so, who could mean to cancel it."""
        if job_state(slurm_job_id()) == "RUNNING" and not requeue(slurm_job_id()):
            log.warning("%s: Slurm does not requeue it. The same command submits it again", self.job.label)


def slurm_job(tasks: Path, index: int) -> SlurmJob:
    """One of those that llm.sweep.slurm has written down."""
    said: dict[str, Any] = json.loads(tasks.read_text(encoding="utf-8"))
    launch, job = said["launch"], said["jobs"][str(index)]
    config, folder = StageConfig(stage=job.pop("stage")), Path(job.pop("folder"))
    made = Job(config=config, folder=folder, **{**job, "varying": tuple(job["varying"])})
    retries = RetryConfig(**launch.pop("retries"))
    del launch["gpus"]  # which Slurm gives
    return SlurmJob(job=made, retries=retries, **launch)


def idle_starts(record: JobRecord) -> int:
    """How many starts in a row ended before they had saved anything, with the one that has just ended so."""
    return 1 + sum(1 for _ in takewhile(lambda attempt: attempt.is_idle, reversed(record.attempts[:-1])))


def live_through_signals() -> None:
    """Go on when Slurm sends its signals to every process of the job: those of srun save, and end by themselves.

    A handler, for srun would inherit that a signal is ignored.
    """

    def say(number: int, frame: FrameType | None) -> None:
        log.info("%s came", signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, say)


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


if __name__ == "__main__":
    start_logging()
    live_through_signals()
    sys.exit(slurm_job(Path(sys.argv[1]), slurm_array_index()).run())
