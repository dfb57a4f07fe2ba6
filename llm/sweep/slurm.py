"""Jobs that are ready -> jobs of a Slurm cluster, as arrays; what became of each, by its ledger and Slurm's queue.

It has the shape of llm.sweep.pool.Pool. The jobs live without it: a later driver finds them by what was kept of their
submission, and never submits one that Slurm still has.
"""

import sys
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm.config import Accelerator, SlurmConfig, StageConfig, TrainerConfig
from llm.errors import ConfigError
from llm.run import log
from llm.run.launch import TRAIN
from llm.run.record import now
from llm.sweep.ending import Ending, close
from llm.sweep.ledger import Attempt, Job, JobRecord
from llm.sweep.pool import last_metrics
from llm.sweep.shares import accelerator_of, devices_of
from llm.sweep.slurm_job import SlurmJob
from llm.sweep.slurm_queue import (
    UNKNOWN,
    QueuedJob,
    accounted_state,
    cancel,
    most_gpus,
    outside_of_a_job,
    queued_jobs,
    refused,
    require_possible,
)
from llm.sweep.slurm_submission import Submission, read_submission, write_submission

FRESH_SECONDS = 1.0  # in which the queue is not asked for a second time
MOST_OF_AN_ARRAY = 1000  # Slurm's default MaxArraySize is 1001
SEARCH_AT_ONCE = 8  # jobs of a search, whose later points learn from the earlier ones


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
    submission: Submission | None
    state: str = "queued"
    cancel_at: float = float("inf")  # on the monotonic clock
    times_unknown: int = 0
    started: float = field(default_factory=time.monotonic)

    def last_metrics(self) -> dict[str, Any]:
        return last_metrics(self.job)


class Cluster:
    """The jobs of one sweep that Slurm has."""

    begun = "queued"

    def __init__(self, settings: SlurmConfig, folder: Path, *, at_once: int | None = None) -> None:
        self._settings, self._folder, self._at_once = settings, folder, at_once
        self._most_gpus = most_gpus(settings.partition)
        self._looked_at = -float("inf")
        self._queue: tuple[float, dict[str, QueuedJob] | None] = (-float("inf"), None)
        self._has_said_unreachable = False
        self.running: dict[int, Submitted] = {}

    def check(self, configs: Iterable[StageConfig]) -> None:
        """Refuse what the cluster can never run.

        Raises:
            ConfigError: sbatch says so.
        """
        for request in sorted({self.request(config) for config in configs}, key=repr):
            require_possible(
                {
                    **{key.replace("_", "-"): value for key, value in self._places().items()},
                    **self._settings.further,
                    **{"nodes": request.nodes, "ntasks-per-node": request.devices, "time": self._settings.time_minutes},
                    "cpus-per-task": self._settings.cpus_per_task,
                    **({"gpus-per-node": request.gpus} if request.gpus else {}),
                }
            )

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
        self.running[job.number] = Submitted(job, self._alive(job))
        return True

    def is_taken(self, job: Job) -> bool:
        """No other driver is at this sweep: see llm.sweep.grid."""
        return False

    def ended(self, seconds: float) -> list[tuple[Job, Ending]]:
        """Wait so long; the jobs that have ended meanwhile, their records written."""
        self.submit()
        time.sleep(seconds)
        if not self.running or time.monotonic() < self._looked_at + self._settings.poll_seconds:
            return []
        self._looked_at = time.monotonic()
        known = queued_jobs(self.name)
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
        ready: dict[Request, list[Submitted]] = defaultdict(list)
        for each in self.running.values():
            if each.submission is None:
                ready[self.request(each.job.config)].append(each)
        for request, jobs in ready.items():
            for first in range(0, len(jobs), MOST_OF_AN_ARRAY):
                self._submit_array(request, jobs[first : first + MOST_OF_AN_ARRAY])

    def stop(self, number: int) -> None:
        """Ask a job to save, end, and not come back; it is cancelled once its grace is over."""
        each = self.running.get(number)
        if each is None or each.cancel_at < float("inf"):
            return
        each.cancel_at = time.monotonic() + self._settings.grace_seconds
        if each.submission is None:
            return
        self._keep(each, replace(each.submission, is_to_stop=True))
        if each.submission.id is not None:
            cancel(each.submission.id, signal="USR1" if each.state == "running" else None)

    def stop_all(self) -> None:
        for number in self.running:
            self.stop(number)

    def leave(self, signal_name: str) -> None:
        """The jobs go on; this driver does not."""
        queued = sum(each.state == "queued" for each in self.running.values())
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

    def _places(self) -> dict[str, Any]:
        settings = self._settings
        memory = None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}M"
        given = {"partition": settings.partition, "account": settings.account, "qos": settings.qos, "mem": memory}
        return {key: value for key, value in given.items() if value is not None}

    def _alive(self, job: Job) -> Submission | None:
        """The submission of a job that Slurm still has; None where it is to be submitted."""
        kept = read_submission(job.folder)
        if kept is None:
            return None
        known = self._queue_of_now()
        if known is None:
            raise ConfigError("Slurm does not say what it has of this sweep (squeue fails). Try again when it does.")
        if kept.id is None:  # its driver was killed around sbatch
            numbers = [each.id.split("_")[0] for each in known.values() if each.token == kept.token]
            if not numbers:
                return None
            kept = replace(kept, id=kept.with_index(numbers[0]))
            write_submission(job.folder, kept)
        found = known.get(str(kept.id))
        if found is None or found.is_over or kept.is_to_stop:
            return None
        return kept

    def _queue_of_now(self) -> dict[str, QueuedJob] | None:
        """Asked for once, where many jobs are looked up in a row."""
        asked_at, known = self._queue
        if time.monotonic() - asked_at > FRESH_SECONDS or known is None:
            self._queue = (time.monotonic(), queued_jobs(self.name))
        return self._queue[1]

    def _submit_array(self, request: Request, jobs: Sequence[Submitted]) -> None:
        from submitit import SlurmExecutor  # takes a moment to load
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        token = uuid.uuid4().hex[:12]
        for index, each in enumerate(jobs):
            attempts = len(each.job.read().attempts)
            of_array = index if len(jobs) > 1 else None
            self._keep(each, Submission(token=token, index=of_array, attempts=attempts, submitted_at=now()))
        try:
            with outside_of_a_job(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                executor = SlurmExecutor(_private(self._folder / "slurm"), python=f"exec {sys.executable}")
                executor.update_parameters(**self._parameters(request, token))
                made = executor.submit_array([self._submitted_job(request, token, each.job) for each in jobs])
        except (FailedJobError, FailedSubmissionError) as error:
            for each in jobs:
                (each.job.folder / "slurm.json").unlink(missing_ok=True)
            raise ConfigError(refused(str(error))) from None
        for each, slurm_job in zip(jobs, made, strict=True):
            assert each.submission is not None
            self._keep(each, replace(each.submission, id=slurm_job.job_id))
        log.info("submitted %d jobs to Slurm, as %s", len(jobs), str(made[0].job_id).split("_")[0])

    def _parameters(self, request: Request, token: str) -> dict[str, Any]:
        """What submitit is to put into the batch script."""
        settings = self._settings
        return {
            **self._places(),
            "job_name": self.name,
            "comment": token,
            "time": settings.time_minutes,
            "nodes": request.nodes,
            "ntasks_per_node": request.devices,
            "cpus_per_task": settings.cpus_per_task,
            **({"gpus_per_node": request.gpus} if request.gpus else {}),
            "array_parallelism": settings.array_parallelism or MOST_OF_AN_ARRAY,
            "setup": [f"export PYTHONPATH={TRAIN.parent}${{PYTHONPATH:+:$PYTHONPATH}}", *settings.setup],
            "use_srun": False,  # its one process is SlurmJob, which starts srun; exec has Slurm's signals come to it
            "stderr_to_stdout": True,
            "additional_parameters": {
                **settings.further,
                "signal": f"USR1@{settings.signal_seconds}",
                "requeue": True,
            },
        }

    def _submitted_job(self, request: Request, token: str, job: Job) -> SlurmJob:
        return SlurmJob(
            job=replace(job, folder=job.folder.absolute()),
            token=token,
            nodes=request.nodes,
            devices=request.devices,
            cpus_per_task=self._settings.cpus_per_task,
            srun=list(self._settings.srun),
            retries=self._settings.retries,
            max_attempts=self._settings.max_attempts,
        )

    def _keep(self, each: Submitted, submission: Submission) -> None:
        each.submission = submission
        write_submission(each.job.folder, submission)

    def _look(self, each: Submitted, known: dict[str, QueuedJob]) -> Ending | None:
        """How a job has ended; None while it has not."""
        assert each.submission is not None and each.submission.id is not None
        found = known.get(each.submission.id) or QueuedJob(each.submission.id, accounted_state(each.submission.id))
        if not found.is_over:
            self._follow(each, found)
            return None
        if found.state == UNKNOWN:  # perhaps for this moment; or it has ended, and is forgotten
            each.times_unknown += 1
            if each.times_unknown < 2 or each.job.is_taken():
                return None
        ended = self._ending(each, found)
        if ended.kind == "stopped" and found.state == "TIMEOUT" and not each.submission.is_to_stop:
            log.info("%s: at the end of its time; submitted again", each.job.label)
            each.submission, each.state = None, "queued"
            return None
        return ended

    def _follow(self, each: Submitted, found: QueuedJob) -> None:
        each.times_unknown = 0
        state = "queued" if found.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED") else "running"
        if state == "running" and each.state == "queued":
            log.info("%s: running, as Slurm's %s on %s", each.job.label, found.id, found.nodes)
            each.started = time.monotonic()
        elif state == "queued" and each.state == "running":
            log.info("%s: queued again, as Slurm's %s", each.job.label, found.id)
        each.state = state
        if time.monotonic() >= each.cancel_at:
            cancel(found.id)

    def _ending(self, each: Submitted, found: QueuedJob) -> Ending:
        """By the job's own record; where nobody lived to write it, by Slurm's word."""
        assert each.submission is not None
        record = each.job.read()
        new = record.attempts[each.submission.attempts :]
        if record.state == "done":
            return Ending("done")
        if new and new[-1].ended_at is not None and found.state != "CANCELLED":
            last = new[-1]
            return Ending(last.kind or "failed", last.message or "")
        ended = _by_state(found)
        if new and new[-1].ended_at is not None:
            return ended
        if not new:
            record.attempts.append(Attempt(each.submission.submitted_at, found.nodes or "Slurm", 0))
        close(each.job, record, ended, exit_code=None)
        return ended

    def _say_unreachable(self) -> None:
        if not self._has_said_unreachable:
            log.warning("Slurm's controller does not answer; the jobs go on, and this waits for it")
            self._has_said_unreachable = True


def _private(folder: Path) -> Path:
    """The folder, which nobody else may look into or write to: what submitit pickles has the jobs as they are typed."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _by_state(found: QueuedJob) -> Ending:
    """How a job ended that said nothing itself."""
    said = f"Slurm's {found.id} ended without a word, as {found.state}"
    if found.state == "CANCELLED":
        return Ending("stopped", f"Slurm's {found.id} was cancelled")
    if found.state == "OUT_OF_MEMORY":
        return Ending("out_of_memory", f"{said}. Raise hydra.launcher.memory_gb")
    if found.state == "TIMEOUT":
        return Ending("killed", f"{said}. Raise hydra.launcher.signal_seconds, in which it is to save")
    return Ending("killed", said)
