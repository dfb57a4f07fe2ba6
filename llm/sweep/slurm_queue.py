"""Slurm's own commands -> the state of jobs, what a partition has, and what sbatch thinks of a request."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.environment import variables
from llm.errors import ConfigError

# How a Slurm job ends that will never run again; all others wait, run, or are on their way from one to the other.
FINAL = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
    "REVOKED",
}
UNKNOWN = "UNKNOWN"  # neither the queue nor the accounting knows of it
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")  # which cluster it is
OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_")
SECONDS = 60  # that a command may take


@dataclass(frozen=True)
class QueuedJob:
    """What Slurm's queue says of a job."""

    id: str  # 12, or 12_3 of an array
    state: str
    comment: str = ""  # of its submission
    nodes: str = ""

    @property
    def index(self) -> int | None:
        """In its array."""
        _, _, index = self.id.partition("_")
        return int(index) if index else None

    @property
    def is_queued(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")

    @property
    def is_over(self) -> bool:
        return self.state in FINAL or self.state == UNKNOWN


def require_slurm() -> None:
    """Refuse a machine from which nothing can be submitted.

    Raises:
        ConfigError: a command of Slurm's is missing.
    """
    for command in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        if shutil.which(command) is None:
            raise ConfigError(
                f"hydra/launcher=slurm, but {command} is not on this machine's PATH. Start the sweep on a login node "
                "of the cluster, or leave the launcher out to run the jobs here."
            )


def queued_jobs(name: str) -> dict[str, QueuedJob] | None:
    """The jobs of that name that Slurm's controller knows, by their ids; None if it does not answer."""
    said = _run("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%F|%K|%T|%k|%N")
    if said is None:
        return None
    jobs = [_queued_job(*line.split("|")) for line in said.splitlines() if line.count("|") == 4]
    return {job.id: job for job in jobs}


def _queued_job(array: str, index: str, state: str, comment: str, nodes: str) -> QueuedJob:
    return QueuedJob(f"{array}_{index}" if index.isdigit() else array, state, comment, nodes)


def accounted_state(job_id: str) -> str:
    """The state of a job that has left the queue, where the cluster keeps accounts; else UNKNOWN."""
    if shutil.which("sacct") is None:
        return UNKNOWN
    said = _run("sacct", "--allocations", "--noheader", "--parsable2", "--format=State", f"--jobs={job_id}")
    states = said.split("\n") if said else []
    return states[0].split()[0] if states and states[0].strip() else UNKNOWN  # "CANCELLED by 1000"


def job_state(job_id: str) -> str:
    """The state of one job, by the controller; UNKNOWN where it does not say."""
    said = _run("scontrol", "--oneliner", "show", "job", job_id)
    found = re.search(r"\bJobState=(\S+)", said or "")
    return found[1] if found else UNKNOWN


def node_address(name: str) -> str:
    """Where a node is reached: as Slurm itself reaches it, for its name may mean nothing elsewhere."""
    said = _run("scontrol", "--oneliner", "show", "node", name)
    found = re.search(r"\bNodeAddr=(\S+)", said or "")
    return found[1] if found else name


def requeue(job_id: str) -> bool:
    """Have Slurm put a job back into its queue; whether it did. Where it ends the job for that, this never returns."""
    return _run("scontrol", "requeue", job_id) is not None


def cancel(job_id: str, *, signal: str | None = None) -> None:
    """Take a job from the queue or end it; or only send its processes a signal."""
    _run("scancel", *([f"--signal={signal}"] if signal else []), job_id)


def most_gpus(partition: str | None) -> int:
    """The most GPUs that a node of the partition has, by default of any."""
    where = [f"--partition={partition}"] if partition else []
    said = _run("sinfo", "--noheader", *where, "--format=%G") or ""
    return max((int(number) for number in re.findall(r"gpu(?::[^:,\s(]+)?:(\d+)", said)), default=0)


def sbatch(arguments: Mapping[str, Any], *script: Path) -> str:
    """What sbatch says to these arguments: with --test-only nothing, else the number of the job.

    Raises:
        ConfigError: it refuses them; in its own words.
    """
    flags = [f"--{key}" if value is True else f"--{key}={value}" for key, value in arguments.items()]
    try:
        asked = ["sbatch", "--parsable", *flags, *map(str, script)]
        done = subprocess.run(asked, env=_outside_of_a_job(), capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"sbatch does not answer ({type(error).__name__}). Is the cluster up?") from None
    if done.returncode:
        raise ConfigError(_refused(done.stderr))
    return done.stdout.strip().split(";")[0]  # behind it the name of another cluster


def _refused(said: str) -> str:
    """Its refusal as one line, with the settings that it may be about."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [re.sub(r"^(sbatch: )?(error|fatal|allocation failure): ", "", line) for line in lines]
    reason = ". ".join(dict.fromkeys(error.rstrip(".") for error in errors)) or "it does not say why"
    return (
        f"sbatch refuses the job: {reason}. Look at hydra.launcher.partition, account, qos, gpus_per_node, "
        "cpus_per_task, memory_gb, time_minutes and sbatch, and at trainer.devices and trainer.num_nodes."
    )


def _outside_of_a_job() -> dict[str, str]:
    """The environment without what a Slurm job leaves there, which sbatch would take for our wishes and hand on."""
    return {key: value for key, value in variables().items() if key in KEPT or not key.startswith(OF_A_JOB)}


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
