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
from llm.environment import slurm_array_id, slurm_job_id, slurm_node, variables
from llm.errors import StoppedError
from llm.run.console import log, start_logging
from llm.run.launch import LOOPBACK, TRAIN, Result
from llm.run.owner import owned
from llm.sweep.jobs import Job
from llm.sweep.slurm import job_state, node_address, requeue

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

    def run(self) -> int:
        """Its exit code."""
        job = self.job
        with owned(job.folder, wait=True):
            if self.job.is_outdone:
                return StoppedError.exit_code
            job.reload()
            if job.attempts and job.attempts[-1].kind == "done":
                return 0
            left_before = _left(job)
            job.begin(slurm_array_id())
            code, ended = self.attempt()
            is_idle = ended.kind == "stopped" and _left(job) == left_before
            before = takewhile(lambda attempt: attempt.is_idle, reversed(job.attempts[:-1]))
            if is_idle and (times := 1 + len([*before])) >= MAX_IDLE_STARTS:
                said = f"{ended.message}; nothing new was saved, {times} times in a row"
                ended = Result("failed", f"{said}. Raise hydra.launcher.time_minutes")
            job.end(ended, exit_code=code, is_idle=is_idle)
        if self.goes_on(ended.kind):
            self._requeue()
        return code

    def attempt(self) -> tuple[int, Result]:
        """(the exit code, what became of it)."""
        with (self.job.folder / "console.log").open("ab") as file:
            ran = subprocess.run(
                self._command(), env=self._environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        code = ran.returncode  # the highest of all processes; of one that a signal ended, as a shell says it
        code = 128 - code if 128 < code < 128 + signal.NSIG else code
        ended = self.job.ending(code)
        if ended.kind == "killed" and job_state(slurm_job_id()) not in ("RUNNING", "UNKNOWN"):
            ended = Result("stopped", f"{ended.message}, as Slurm ended the job")
        return code, ended

    def goes_on(self, kind: str | None) -> bool:
        """Whether the job is to start again in this Slurm job."""
        return not self.job.is_outdone and (kind in ("stopped", "busy") or self.job.may_retry(kind, self.retries))

    def _command(self) -> list[str]:
        """srun's, which starts one process for each device of each node."""
        return [
            *("srun", "--export=ALL", "--unbuffered", "--kill-on-bad-exit=1"),
            *(f"--nodes={self.nodes}", f"--ntasks={self.nodes * self.devices}", f"--ntasks-per-node={self.devices}"),
            *(f"--cpus-per-task={self.cpus_per_task}", *self.srun),
            *(sys.executable, str(TRAIN), *self.job.overrides, "hydra.mode=RUN"),
        ]

    def _environment(self) -> dict[str, str]:
        """Of those processes."""
        return {
            **variables(),
            **self.job.environment(),
            "MASTER_ADDR": LOOPBACK if self.nodes == 1 else node_address(slurm_node()),
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": str(self.cpus_per_task),
        }

    def _requeue(self) -> None:
        """Back into the queue; not where somebody else ends the job or has done so, who could mean to cancel it."""
        if job_state(slurm_job_id()) == "RUNNING" and not requeue(slurm_job_id()):
            log.warning("%s: Slurm does not requeue it. The same command submits it again", self.job.label)


def slurm_job(tasks: Path, index: str) -> SlurmJob:
    """One of those that llm.sweep.slurm has written down."""
    said: dict[str, Any] = json.loads(tasks.read_text(encoding="utf-8"))
    launch, job = said["launch"], said["jobs"][index]
    config, folder = StageConfig(stage=job.pop("stage")), Path(job.pop("folder"))
    retries = RetryConfig(**launch.pop("retries"))
    return SlurmJob(job=Job(config=config, folder=folder, **job), retries=retries, **launch)


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
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder else frozenset()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    start_logging()
    live_through_signals()
    sys.exit(slurm_job(Path(sys.argv[1]), slurm_array_id().partition("_")[2]).run())
