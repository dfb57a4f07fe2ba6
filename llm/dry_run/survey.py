"""The config of a job -> what it would take, make and reuse: what its stage, and those before it, say of themselves."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm.config.fields import identity_settings
from llm.config.stages import Reuse, StageConfig
from llm.errors import ConfigError
from llm.run.devices import require_devices, with_precision
from llm.run.files import digest_of
from llm.run.making import place_of
from llm.run.models import with_folders_of_runs
from llm.run.record import read_record
from llm.run.runs import Run
from llm.stage import Step, find_step, stage_named, step_of
from llm.stage.estimate import Estimate, estimated_run


@dataclass(kw_only=True)
class Job:
    """What one job would take, make and reuse."""

    label: str
    stage: str
    folder: str = ""
    first_missing: str = ""  # folder of the run that would be made first: jobs that share it share its shards
    reused: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)  # stages
    takes: Estimate = field(default_factory=Estimate)  # the job's own run
    steps_done: int = 0
    # bytes of all that would be made, by what takes them and the run that makes it, which several jobs may share
    disk: dict[tuple[str, str], float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def survey(config: StageConfig, label: str = "") -> Job:
    """What one job would take.

    Raises:
        ConfigError: as the job itself would, of what can be known before any work.
    """
    job = Job(label=label, stage=config.stage)
    if hasattr(config, "trainer"):
        try:
            require_devices(config.trainer)
        except ConfigError as error:  # a cluster's jobs are looked at where there is no GPU
            job.notes.append(f"Not on this machine: {error}")
    step = step_of(config)
    find_step(step)
    run = _look(step, job)
    if run.is_done:
        job.reused, job.folder = [str(run.path)], str(run.path)
        job.notes.append(f"{run.path} is finished: it would be reused as it is.")
    elif job.steps_done:
        left = 1 - job.steps_done / (job.takes.steps or 1)
        job.takes.flops = left * (job.takes.flops or 0)
        job.takes.seconds = job.takes.seconds and left * job.takes.seconds
    return job


def memory_of(config: Any) -> int:
    """Bytes that each process of a training takes on a CPU, by its settings alone: no text is read.

    Raises:
        ConfigError: there is no such base or model.
    """
    from llm.dry_run.training import memory_of_training  # takes seconds

    outline = stage_named(config.stage).outline
    assert outline is not None
    config = with_folders_of_runs(replace(config, trainer=with_precision(config.trainer)))
    return memory_of_training(config, outline(config, {}), is_on_gpu=False).total


def _look(step: Step, job: Job) -> Run:
    """The finished run of a step; else what the job would take to make it, and a run of results that are estimated."""
    parents = {role: _look(parent, job) for role, parent in step.parents.items()}
    if step.run is None:
        step.run = _estimated(step, parents, job)
    elif step.run.is_done and str(step.run.path) not in job.reused:
        job.reused.append(str(step.run.path))
    return step.run


def _estimated(step: Step, parents: dict[str, Run], job: Job) -> Run:
    job.folder = ""
    if step.plan:
        step.config = step.plan.config  # which says more: steps of a budget
        folder = place_of(step.plan)
        job.folder, job.first_missing = str(folder), job.first_missing or str(folder)
        _say_standing(job, step.config, folder)
    if step.config.reuse is Reuse.require:
        raise ConfigError(f"reuse=require, but there is no finished run {job.first_missing}.")
    stage = stage_named(step.config.stage)
    job.takes = stage.estimate(step.config, parents) if stage.estimate else Estimate()
    if stage.outline:
        from llm.dry_run.training import add_training  # takes seconds

        add_training(job.takes, job.takes.config or step.config, stage.outline(step.config, parents))
    job.made = list(dict.fromkeys([*job.made, step.config.stage]))
    maker = job.folder or digest_of([identity_settings(step.config), *(run.key for run in parents.values())])
    job.disk |= {(name, maker): size for name, size in job.takes.disk.items()}
    job.notes += [note for note in job.takes.notes if note not in job.notes]
    return estimated_run(step.config.stage, job.takes.results, key=maker)


def _say_standing(job: Job, config: StageConfig, folder: Path) -> None:
    if read_record(folder) is None or config.reuse is Reuse.never:
        return
    job.steps_done = max((int(p.name.rpartition("-")[2]) for p in (folder / "checkpoints").glob("step-*")), default=0)
    how = f"go on from step {job.steps_done}" if job.steps_done else "go on"
    job.notes.append(f"{folder} {'' if job.steps_done else 'was begun and '}would {how}.")
