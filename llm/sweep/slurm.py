"""Jobs that are ready -> jobs of a Slurm cluster, as arrays; what became of each, by its file and Slurm's queue.

The jobs live without it: a later driver finds them in the queue, by the sweep's folder and their numbers, and never
submits one that Slurm still has.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm.config.stages import StageConfig
from llm.config.sweeping import SlurmConfig
from llm.config.training import Accelerator
from llm.environment import variables
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.files import digest_of, write_json, write_text
from llm.run.launch import TRAIN, Result
from llm.run.owner import is_owned
from llm.sweep.jobs import Job
from llm.sweep.shares import accelerator_of, devices_of

SEARCH_AT_ONCE = 8  # jobs of a search, whose later points learn from the earlier ones
# How a Slurm job ends that will never run again; all others wait, run, or are on their way from one to the other.
FINAL = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"),
    *("REVOKED", "UNKNOWN"),
)
COMMAND_SECONDS = 60  # that one of Slurm's may take
# What a Slurm job leaves in the environment, which sbatch would take for our wishes; but not which cluster it is
OF_A_JOB = re.compile(r"(SLURMD|SBATCH|SRUN|SALLOC)_|SLURM_(?!CONF$|CLUSTERS$)")

SCRIPT = """#!/bin/bash
{setup}
exec {python} -m llm.sweep.slurm_job {tasks}
"""


class Request(NamedTuple):
    """What a job asks the cluster for; jobs that ask for the same go into one array."""

    nodes: int
    devices: int  # of each node
    gpus: int  # of each node


class Queued(NamedTuple):
    """What Slurm's queue says of a job."""

    state: str
    comment: str = ""  # of its submission
    nodes: str = ""


@dataclass
class Submitted:
    """A job that Slurm has, or is about to get."""

    job: Job
    id: str | None  # Slurm's: 12_3; None: it is to be submitted
    cancel_at: float = float("inf")  # on the monotonic clock
    times_unknown: int = 0


class Cluster:
    """The jobs of one sweep that Slurm has."""

    begun = "queued"

    def __init__(self, settings: SlurmConfig, folder: Path, *, at_once: int) -> None:
        self._settings, self._folder, self._at_once = settings, folder, at_once
        self._token = digest_of(str(folder.absolute()))[:12]  # by which the queue tells sweeps of one name apart
        self._most_gpus = most_gpus(settings.partition)
        self._left: dict[int, str] = {}  # by the job's number, what Slurm has of an earlier driver's
        self._looked_at = 0.0
        self._has_said_unreachable = False
        self.running: dict[int, Submitted] = {}

    @property
    def name(self) -> str:
        """Of the jobs in Slurm's queue: the sweep's folder's."""
        return self._folder.name

    def check(self, configs: Iterable[StageConfig]) -> None:
        """Refuse what the cluster can never run.

        Raises:
            ConfigError: sbatch says so.
        """
        for request in sorted({self.request(config) for config in configs}):
            sbatch(*self._asked(request), "--test-only", "--wrap=true")

    def find_left(self) -> None:
        """Find what Slurm still has of this sweep.

        Raises:
            ConfigError: it does not say.
        """
        queue = queued_jobs(self.name)
        if queue is None:
            raise ConfigError("Slurm does not say what it has of this sweep (squeue fails). Try again when it does.")
        for id_, found in queue.items():
            if found.comment == self._token and found.state not in FINAL:
                self._left[int(id_.partition("_")[2])] = id_

    def request(self, config: StageConfig) -> Request:
        """What a job asks for: with accelerator=auto GPUs, where the nodes have some."""
        accelerator, devices, gpus = accelerator_of(config), devices_of(config), self._settings.gpus_per_node
        if gpus is None:
            wants = accelerator is Accelerator.gpu or (accelerator is Accelerator.auto and self._most_gpus > 0)
            gpus = devices if wants else 0
        return Request(getattr(getattr(config, "trainer", None), "num_nodes", 1), devices, gpus)

    def start(self, job: Job) -> bool:
        """Have a job submitted at the next look, or take up one that Slurm has; whether there is room for it."""
        if len(self.running) >= self._at_once:
            return False
        self.running[job.number] = Submitted(job, self._left.pop(job.number, None))
        job.state = "queued"
        return True

    def is_taken(self, job: Job) -> bool:
        """No other driver is at this sweep: see llm.sweep.driver."""
        return False

    def ended(self, seconds: float) -> list[Job]:
        """Wait so long; the jobs that have ended meanwhile, with their results."""
        self._submit()
        time.sleep(seconds)
        if not self.running or time.monotonic() < self._looked_at + self._settings.poll_seconds:
            return []
        self._looked_at = time.monotonic()
        queue = queued_jobs(self.name)
        if queue is None:
            if not self._has_said_unreachable:
                log.warning("Slurm's controller does not answer; the jobs go on, and this waits for it")
            self._has_said_unreachable = True
            return []
        done = [each.job for each in [*self.running.values()] if self._has_ended(each, queue)]
        for job in done:
            del self.running[job.number]
        return done

    def stop(self, job: Job) -> None:
        """Ask a job that is outdone to save and end; it is cancelled once its grace is over."""
        each = self.running.get(job.number)
        if each is None or each.cancel_at < float("inf"):
            return
        each.cancel_at = time.monotonic() + self._settings.grace_seconds
        if each.id is not None:
            _run("scancel", *(["--signal=USR1"] if job.state == "running" else []), each.id)

    def leave(self, signal_name: str) -> None:
        """The jobs go on; this driver does not."""
        self._submit()
        queued = sum(each.job.state == "queued" for each in self.running.values())
        log.info(
            "%s: %d jobs run and %d are queued in Slurm, and stay there. The same command follows them again; "
            "scancel --name=%s ends them",
            *(signal_name, len(self.running) - queued, queued, self.name),
        )
        self.running.clear()

    def kill_all(self) -> None:
        """Nothing: the jobs are Slurm's."""

    def _asked(self, request: Request) -> list[str]:
        """What sbatch is given of what a job asks for; the user's own arguments come last, and count."""
        settings = self._settings
        memory = None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}M"
        given: dict[str, Any] = {"partition": settings.partition, "account": settings.account, "qos": settings.qos}
        given |= {"mem": memory, "time": settings.time_minutes, "cpus-per-task": settings.cpus_per_task}
        given |= {"nodes": request.nodes, "ntasks-per-node": request.devices, "gpus-per-node": request.gpus or None}
        return [*(f"--{key}={value}" for key, value in given.items() if value is not None), *settings.sbatch]

    def _submit(self) -> None:
        """Submit what is ready, as few arrays.

        Raises:
            ConfigError: sbatch refuses it.
        """
        ready: dict[Request, list[Submitted]] = defaultdict(list)
        for each in self.running.values():
            if each.id is None:
                ready[self.request(each.job.config)].append(each)
        for request, jobs in ready.items():
            self._submit_array(request, jobs)

    def _submit_array(self, request: Request, jobs: Sequence[Submitted]) -> None:
        settings, folder = self._settings, (self._folder / "slurm").absolute()
        indices = ",".join(str(each.job.number) for each in jobs)
        at_once = f"%{settings.array_parallelism}" if settings.array_parallelism else ""
        number = sbatch(
            *(f"--job-name={self.name}", f"--comment={self._token}", f"--array={indices}{at_once}"),
            *(f"--output={folder / '%A_%a.log'}", "--open-mode=append"),
            *(f"--signal=USR1@{settings.signal_seconds}", "--requeue", *self._asked(request)),
            str(self._write_script(folder, request, [each.job for each in jobs])),
        )
        for each in jobs:
            each.id = f"{number}_{each.job.number}"
        log.info("submitted %d jobs to Slurm, as %s", len(jobs), number)

    def _write_script(self, folder: Path, request: Request, jobs: Sequence[Job]) -> Path:
        """The script that each job of an array runs, and beside it what llm.sweep.slurm_job is to know of each."""
        settings, name = self._settings, uuid.uuid4().hex[:12]
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # the jobs are in there as they are typed
        launch = {
            **{"nodes": request.nodes, "devices": request.devices, "cpus_per_task": settings.cpus_per_task},
            **{"srun": settings.srun, "retries": asdict(settings.retries)},
        }
        tasks = {job.number: _as_task(job) for job in jobs}
        write_json(folder / f"{name}.json", {"launch": launch, "jobs": tasks})
        setup = [f"export PYTHONPATH={shlex.quote(str(TRAIN.parent))}${{PYTHONPATH:+:$PYTHONPATH}}", *settings.setup]
        words = {"python": shlex.quote(sys.executable), "tasks": shlex.quote(str(folder / f"{name}.json"))}
        write_text(folder / f"{name}.sh", SCRIPT.format(setup="\n".join(setup), **words))
        return folder / f"{name}.sh"

    def _has_ended(self, each: Submitted, queue: dict[str, Queued]) -> bool:
        """Whether a job has ended, which has its result then."""
        assert each.id is not None
        found = queue.get(each.id, Queued("UNKNOWN"))
        if found.state not in FINAL:
            self._follow(each, found)
            return False
        if found.state == "UNKNOWN":  # perhaps for this moment; or it has ended, and is forgotten
            each.times_unknown += 1
            if each.times_unknown < 2 or is_owned(each.job.folder):
                return False
        _end(each.job, each.id, found.state)
        return True

    def _follow(self, each: Submitted, found: Queued) -> None:
        each.times_unknown, job = 0, each.job
        is_queued = found.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
        if is_queued and job.state == "running":
            log.info("%s: queued again, as Slurm's %s", job.label, each.id)
        elif not is_queued and job.state == "queued":
            log.info("%s: running, as Slurm's %s on %s", job.label, each.id, found.nodes)
            job.started = time.monotonic()
        job.state = "queued" if is_queued else "running"
        if time.monotonic() >= each.cancel_at:
            _run("scancel", str(each.id))


def _as_task(job: Job) -> dict[str, Any]:
    return {
        **{"number": job.number, "overrides": job.overrides, "label": job.label, "varying": job.varying},
        **{"stage": job.config.stage, "folder": str(job.folder.absolute()), "attempts_before": len(job.attempts)},
    }


def _end(job: Job, slurm_id: str, state: str) -> None:
    """Give a job its result: by its own record; where nobody lived to write it, by Slurm's word."""
    job.reload()
    last = job.attempts[-1] if job.attempts and job.attempts[-1].driver == slurm_id else None
    if last and last.kind and (last.kind == "done" or state != "CANCELLED"):
        job.result = Result(last.kind, last.message or "")
        if last.kind == "stopped" and state == "TIMEOUT":
            job.result = Result("busy")  # it saved, and Slurm ended it before it was back in the queue
    elif state == "CANCELLED":
        job.result = Result("stopped", f"Slurm's {slurm_id} was cancelled")
    else:
        kind = "out_of_memory" if state == "OUT_OF_MEMORY" else "killed"
        job.result = Result(kind, f"Slurm's {slurm_id} ended without a word, as {state}")
    if last is None:
        job.begin(slurm_id)
    if not job.attempts[-1].kind:
        job.end(job.result)


# Slurm's commands


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


def queued_jobs(name: str) -> dict[str, Queued] | None:
    """The array's jobs of that name that Slurm's controller knows, by their ids; None if it does not answer."""
    said = _run("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%F_%K|%T|%k|%N")
    if said is None:
        return None
    found = [line.split("|") for line in said.splitlines()]
    return {words[0]: Queued(*words[1:]) for words in found if len(words) == 4 and re.fullmatch(r"\d+_\d+", words[0])}


def job_state(job_id: str) -> str:
    """The state of one job, by the controller; UNKNOWN where it does not say."""
    found = re.search(r"\bJobState=(\S+)", _run("scontrol", "--oneliner", "show", "job", job_id) or "")
    return found[1] if found else "UNKNOWN"


def node_address(name: str) -> str:
    """Where a node is reached: as Slurm itself reaches it, for its name may mean nothing elsewhere."""
    found = re.search(r"\bNodeAddr=(\S+)", _run("scontrol", "--oneliner", "show", "node", name) or "")
    return found[1] if found else name


def requeue(job_id: str) -> bool:
    """Have Slurm put a job back into its queue; whether it did. Where it ends the job for that, this never returns."""
    return _run("scontrol", "requeue", job_id) is not None


def most_gpus(partition: str | None) -> int:
    """The most GPUs that a node of the partition has, by default of any."""
    said = _run("sinfo", "--noheader", *([f"--partition={partition}"] if partition else []), "--format=%G") or ""
    return max((int(number) for number in re.findall(r"gpu(?::[^:,\s(]+)?:(\d+)", said)), default=0)


def sbatch(*arguments: str) -> str:
    """What sbatch says to these arguments: with --test-only nothing, else the number of the job.

    Raises:
        ConfigError: it refuses them; in its own words.
    """
    environment = {key: value for key, value in variables().items() if not OF_A_JOB.match(key)}
    done = _ask("sbatch", "--parsable", *arguments, environment=environment)
    if done is None:
        raise ConfigError("sbatch does not answer. Is the cluster up?")
    if done.returncode:
        said = [re.sub(r"^(sbatch: )?(error|fatal|allocation failure): ", "", line) for line in done.stderr.split("\n")]
        reason = ". ".join(dict.fromkeys(line.strip().rstrip(".") for line in said if line.strip()))
        raise ConfigError(
            f"sbatch refuses the job: {reason}. Look at hydra.launcher.partition, account, qos, gpus_per_node, "
            "cpus_per_task, memory_gb, time_minutes and sbatch, and at trainer.devices and trainer.num_nodes."
        )
    return done.stdout.strip().split(";")[0]  # behind it the name of another cluster


def _run(*command: str) -> str | None:
    """What a command says; None if it fails."""
    done = _ask(*command)
    return done.stdout if done and done.returncode == 0 else None


def _ask(*command: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
