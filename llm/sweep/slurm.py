"""Jobs that are ready -> jobs of a Slurm cluster, as arrays; what became of each, by its file and Slurm's queue.

The jobs live without it: a later driver finds them in the queue, by the sweep's folder and their numbers, and never
submits one that Slurm still has.
"""

import shlex
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.config.slurm import SlurmConfig
from llm.config.stages import StageConfig
from llm.config.training import Accelerator, TrainerConfig
from llm.errors import ConfigError
from llm.run.announcing import Result
from llm.run.console import log
from llm.run.files import write_json, write_text
from llm.run.launch import TRAIN
from llm.run.record import now
from llm.sweep.jobs import Attempt, Job, JobRecord
from llm.sweep.shares import accelerator_of, devices_of
from llm.sweep.slurm_job import STOP
from llm.sweep.slurm_queue import UNKNOWN, QueuedJob, accounted_state, cancel, most_gpus, queued_jobs, sbatch

FRESH_SECONDS = 1.0  # in which the queue is not asked for a second time
MAX_ARRAY = 1000  # Slurm's default MaxArraySize is 1001, and an index is less than that
SEARCH_AT_ONCE = 8  # jobs of a search, whose later points learn from the earlier ones

SCRIPT = """#!/bin/bash
{setup}
exec {python} -m llm.sweep.slurm_job {tasks}
"""


@dataclass(frozen=True)
class Request:
    """What a job asks the cluster for; jobs that ask for the same go into one array."""

    nodes: int
    devices: int  # of each node
    gpus: int  # of each node


@dataclass
class Submitted:
    """A job that Slurm has, or is about to get."""

    job: Job
    id: str | None  # Slurm's; None: it is to be submitted
    seen: int  # attempts that had ended before
    cancel_at: float = float("inf")  # on the monotonic clock
    times_unknown: int = 0


class Cluster:
    """The jobs of one sweep that Slurm has."""

    begun = "queued"

    def __init__(self, settings: SlurmConfig, folder: Path, *, at_once: int | None = None) -> None:
        self._settings, self._folder, self._at_once = settings, folder, at_once
        self._most_gpus = most_gpus(settings.partition)
        self._looked_at = -float("inf")
        self._queue: dict[str, QueuedJob] | None = None  # as it was when it was looked at last
        self._has_said_unreachable = False
        self.running: dict[int, Submitted] = {}

    def check(self, configs: Iterable[StageConfig]) -> None:
        """Refuse what the cluster can never run.

        Raises:
            ConfigError: sbatch says so.
        """
        for request in sorted({self.request(config) for config in configs}, key=repr):
            sbatch({**self._asked(request), "test-only": True, "wrap": "true"})

    def request(self, config: StageConfig) -> Request:
        """What a job asks for: with accelerator=auto GPUs, where the nodes have some."""
        trainer: TrainerConfig | None = getattr(config, "trainer", None)
        accelerator, devices, gpus = accelerator_of(config), devices_of(config), self._settings.gpus_per_node
        if gpus is None:
            wants = accelerator is Accelerator.gpu or (accelerator is Accelerator.auto and self._most_gpus > 0)
            gpus = devices if wants else 0
        return Request(1 if trainer is None else trainer.num_nodes, devices, gpus)

    def start(self, job: Job, seen: JobRecord) -> bool:
        """Have a job submitted with the others at the next look, or take up one that Slurm has."""
        if self._at_once is not None and len(self.running) >= self._at_once:
            return False
        alive, begun = self._alive(job), len(seen.attempts)
        is_under_way = alive is not None and begun > 0 and seen.attempts[-1].ended_at is None
        self.running[job.number] = Submitted(job, alive, begun - is_under_way)
        job.state = "queued"
        (job.folder / STOP).unlink(missing_ok=True)
        return True

    def is_taken(self, job: Job) -> bool:
        """No other driver is at this sweep: see llm.sweep.driver."""
        return False

    def is_idle(self) -> bool:
        return not self.running

    def ended(self, seconds: float) -> list[tuple[Job, Result]]:
        """Wait so long; the jobs that have ended meanwhile, their records written."""
        self.submit()
        time.sleep(seconds)
        if not self.running or time.monotonic() < self._looked_at + self._settings.poll_seconds:
            return []
        known = self._look_at_queue()
        if known is None:
            self._say_unreachable()
            return []
        found = [(each.job, self._look(each, known)) for each in [*self.running.values()]]
        done = [(job, ended) for job, ended in found if ended is not None]
        for job, _ in done:
            del self.running[job.number]
        return done

    def submit(self) -> None:
        """Submit what is ready, as few arrays.

        Raises:
            ConfigError: sbatch refuses it.
        """
        ready: dict[tuple[Request, int], list[Submitted]] = defaultdict(list)
        for each in self.running.values():
            if each.id is None:
                ready[self.request(each.job.config), each.job.number // MAX_ARRAY].append(each)
        for (request, block), jobs in ready.items():
            self._submit_array(request, block, jobs)

    def stop(self, job: Job) -> None:
        """Ask a job to save, end, and not come back; it is cancelled once its grace is over."""
        each = self.running.get(job.number)
        if each is None or each.cancel_at < float("inf"):
            return
        each.cancel_at = time.monotonic() + self._settings.grace_seconds
        (job.folder / STOP).touch()
        if each.id is not None:
            cancel(each.id, signal="USR1" if job.state == "running" else None)

    def leave(self, signal_name: str) -> None:
        """The jobs go on; this driver does not."""
        queued = sum(each.job.state == "queued" for each in self.running.values())
        log.info(
            "%s: %d jobs run and %d are queued in Slurm, and stay there. The same command follows them again; "
            "scancel --name=%s ends them",
            signal_name,
            len(self.running) - queued,
            queued,
            self.name,
        )
        self.running.clear()

    def kill_all(self) -> None:
        """Nothing: the jobs are Slurm's."""
        self.running.clear()

    @property
    def name(self) -> str:
        """Of the jobs in Slurm's queue: the sweep's folder's."""
        return self._folder.name

    def _asked(self, request: Request) -> dict[str, Any]:
        """What sbatch is given of what a job asks for."""
        settings = self._settings
        memory = None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}M"
        given = {"partition": settings.partition, "account": settings.account, "qos": settings.qos, "mem": memory}
        return {
            **{key: value for key, value in given.items() if value is not None},
            **settings.further,
            **{"nodes": request.nodes, "ntasks-per-node": request.devices, "time": settings.time_minutes},
            "cpus-per-task": settings.cpus_per_task,
            **({"gpus-per-node": request.gpus} if request.gpus else {}),
        }

    def _alive(self, job: Job) -> str | None:
        """The id of a job that Slurm still has; None where it is to be submitted."""
        is_fresh = time.monotonic() < self._looked_at + FRESH_SECONDS  # where many jobs are looked up in a row
        known = self._queue if is_fresh else self._look_at_queue()
        if known is None:
            raise ConfigError("Slurm does not say what it has of this sweep (squeue fails). Try again when it does.")
        block, index = divmod(job.number, MAX_ARRAY)
        mine = (each for each in known.values() if each.comment == self._comment(block) and each.index == index)
        return next((each.id for each in mine if not each.is_over), None)

    def _look_at_queue(self) -> dict[str, QueuedJob] | None:
        self._looked_at, self._queue = time.monotonic(), queued_jobs(self.name)
        return self._queue

    def _comment(self, block: int) -> str:
        """By which the queue tells the jobs of this sweep from those of another one of its name."""
        path = _private(self._folder / "slurm") / "token"
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:12])
        return f"{path.read_text(encoding='utf-8')}-{block}"

    def _submit_array(self, request: Request, block: int, jobs: Sequence[Submitted]) -> None:
        settings, folder = self._settings, _private(self._folder / "slurm").absolute()
        indices = ",".join(str(each.job.number % MAX_ARRAY) for each in jobs)
        arguments = {
            **self._asked(request),
            **{"job-name": self.name, "comment": self._comment(block)},
            "array": f"{indices}%{settings.array_parallelism or MAX_ARRAY}",
            **{"output": folder / "%A_%a.log", "open-mode": "append"},
            **{"signal": f"USR1@{settings.signal_seconds}", "requeue": True},
        }
        number = sbatch(arguments, self._write_script(folder, request, [each.job for each in jobs]))
        for each in jobs:
            each.id = f"{number}_{each.job.number % MAX_ARRAY}"
        log.info("submitted %d jobs to Slurm, as %s", len(jobs), number)

    def _write_script(self, folder: Path, request: Request, jobs: Sequence[Job]) -> Path:
        """The script that each job of an array runs, and beside it what llm.sweep.slurm_job is to know of each."""
        settings, name = self._settings, uuid.uuid4().hex[:12]
        launch = {
            **asdict(request),
            **{"cpus_per_task": settings.cpus_per_task, "srun": settings.srun},
            **{"retries": asdict(settings.retries), "max_attempts": settings.max_attempts},
        }
        tasks = {
            job.number % MAX_ARRAY: {
                **{"number": job.number, "overrides": job.overrides, "label": job.label, "varying": job.varying},
                **{"stage": job.config.stage, "folder": str(job.folder.absolute())},
                "attempts_before": len(job.read().attempts),
            }
            for job in jobs
        }
        write_json(folder / f"{name}.json", {"launch": launch, "jobs": tasks})
        setup = [f"export PYTHONPATH={shlex.quote(str(TRAIN.parent))}${{PYTHONPATH:+:$PYTHONPATH}}", *settings.setup]
        words = {"python": shlex.quote(sys.executable), "tasks": shlex.quote(str(folder / f"{name}.json"))}
        write_text(folder / f"{name}.sh", SCRIPT.format(setup="\n".join(setup), **words))
        return folder / f"{name}.sh"

    def _look(self, each: Submitted, known: dict[str, QueuedJob]) -> Result | None:
        """How a job has ended; None while it has not."""
        assert each.id is not None
        found = known.get(each.id) or QueuedJob(each.id, accounted_state(each.id))
        if not found.is_over:
            self._follow(each, found)
            return None
        if found.state == UNKNOWN:  # perhaps for this moment; or it has ended, and is forgotten
            each.times_unknown += 1
            if each.times_unknown < 2 or each.job.is_taken():
                return None
        ended = self._ending(each, found)
        if ended.kind == "stopped" and found.state == "TIMEOUT" and each.cancel_at == float("inf"):
            log.info("%s: at the end of its time; submitted again", each.job.label)
            self.running[each.job.number] = Submitted(each.job, None, len(each.job.read().attempts))
            each.job.state = "queued"
            return None
        return ended

    def _follow(self, each: Submitted, found: QueuedJob) -> None:
        each.times_unknown, job = 0, each.job
        if found.is_queued and job.state == "running":
            log.info("%s: queued again, as Slurm's %s", job.label, found.id)
        elif not found.is_queued and job.state == "queued":
            log.info("%s: running, as Slurm's %s on %s", job.label, found.id, found.nodes)
            job.started = time.monotonic()
        job.state = "queued" if found.is_queued else "running"
        if time.monotonic() >= each.cancel_at:
            cancel(found.id)

    def _ending(self, each: Submitted, found: QueuedJob) -> Result:
        """By the job's own record; where nobody lived to write it, by Slurm's word."""
        record = each.job.read()
        new = record.attempts[each.seen :]
        if record.state == "done":
            return Result("done")
        if new and new[-1].ended_at is not None and found.state != "CANCELLED":
            last = new[-1]
            return Result(last.kind or "failed", last.message or "")
        ended = _by_state(found)
        if new and new[-1].ended_at is not None:
            return ended
        if not new:
            record.attempts.append(Attempt(now(), found.nodes or "Slurm", 0))
        each.job.end(record, ended, exit_code=None)
        return ended

    def _say_unreachable(self) -> None:
        if not self._has_said_unreachable:
            log.warning("Slurm's controller does not answer; the jobs go on, and this waits for it")
            self._has_said_unreachable = True


def _private(folder: Path) -> Path:
    """The folder, which nobody else may look into or write to: the jobs are in there as they are typed."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _by_state(found: QueuedJob) -> Result:
    """How a job ended that said nothing itself."""
    said = f"Slurm's {found.id} ended without a word, as {found.state}"
    if found.state == "CANCELLED":
        return Result("stopped", f"Slurm's {found.id} was cancelled")
    if found.state == "OUT_OF_MEMORY":
        return Result("out_of_memory", f"{said}. Raise hydra.launcher.memory_gb")
    if found.state == "TIMEOUT":
        return Result("killed", f"{said}. Raise hydra.launcher.signal_seconds, in which it is to save")
    return Result("killed", said)
