"""A stage's config -> its finished run: first what it is made from, then a plan, then the work.

A stage is a schema (llm/config/stages.py) and a module here of its name, with STAGE in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.stages import Reuse, StageConfig
from llm.environment import process_rank
from llm.run.console import log
from llm.run.making import Outcome, Plan, find, make
from llm.run.models import with_folders_of_runs
from llm.run.owner import OwnedError
from llm.run.runs import Run

if TYPE_CHECKING:
    from llm.stage.estimate import Estimate

Runs = Mapping[str, Run]  # what a stage is made from, by its role


@dataclass(kw_only=True)
class Step:
    """A run on the way to another one: its config, and what it is made from, by its role."""

    config: StageConfig
    parents: dict[str, "Step"]
    check: Callable[[Run], None] | None = None  # by what goes on from it: may refuse the run
    plan: Plan | None = None  # once its parents are there
    run: Run | None = None  # once it is there: a step may be on the way to several


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a module of llm.stage says of its stage; configs are of the stage's schema."""

    plan: Callable[[Any, Runs], Plan]  # of its parents, which are there by now
    result_names: Callable[[Any], list[str]]  # numbers that a run has to show at its end; `*` stands for any name
    parents: Callable[[Any], dict[str, Step]] = lambda _config: {}  # made on the way where they are missing
    estimate: "Callable[[Any, Runs], Estimate] | None" = None  # what it takes; a parent may be an estimate, too
    outline: Callable[[Any, Runs], Any] | None = None  # the model that it would train, on the meta device
    loads: tuple[str, ...] = ()  # modules that its work needs, and that take seconds


def stage_named(name: str) -> Stage:
    """What is known of a stage."""
    stage: Stage = import_module(f"{__name__}.{name}").STAGE
    return stage


def step_of(config: StageConfig) -> Step:
    """The run of a config, with all that it is made from on the way.

    Raises:
        ConfigError: what can be known before any work is wrong.
    """
    config = with_folders_of_runs(config)
    return Step(config=config, parents=stage_named(config.stage).parents(config))


def run_stage(config: StageConfig) -> Run:
    """The finished run of a config: one that is there, or one that is made now.

    Raises:
        ConfigError: it cannot be made, or another process is at it.
    """
    return run_step(step_of(config))


def run_step(step: Step, *, wait: bool = False) -> Run:
    """The finished run of a step; `wait` for another process that makes it, or do as its stage says."""
    if step.run is None:
        plan = _plan(step, _parents(step))
        step.run = _checked(step, make(replace(plan, work=partial(_do_and_log, plan)), wait=wait))
    return step.run


def find_step(step: Step) -> Run | None:
    """The finished run of a step, if there is one; what it is made from is looked for too, and nothing is made."""
    if step.plan is None:
        parents = {role: run for role, parent in step.parents.items() if (run := find_step(parent))}
        if len(parents) == len(step.parents) and (run := find(_plan(step, parents))):
            step.run = _checked(step, run)
    return step.run


def _plan(step: Step, parents: Runs) -> Plan:
    step.plan = stage_named(step.config.stage).plan(step.config, parents)
    return step.plan


def _checked(step: Step, run: Run) -> Run:
    assert step.plan
    for check in filter(None, (step.plan.check, step.check)):
        check(run)
    return run


def _parents(step: Step) -> dict[str, Run]:
    """Of several, one that another process makes is left to it while there is another to make."""
    only_waits = process_rank() > 0 or step.config.reuse is Reuse.never  # what another one made would be made again
    for role, parent in () if only_waits or len(step.parents) == 1 else step.parents.items():
        try:
            run_step(parent)
        except OwnedError as taken:
            log.info("%s: left to %s", role, taken.maker)
    return {role: run_step(parent, wait=True) for role, parent in step.parents.items()}


def _do_and_log(plan: Plan, run: Run) -> Outcome | None:
    """Do the work, and log what came of it where the command asks for this very stage.

    What is made on the way of another run has no logger: it is an artifact of that one's. So a sweep over tokenizers
    shows its models, and not each of their tokenizers and shards among them.
    """
    outcome = plan.work(run)
    logger = getattr(plan.config, "logger", None)
    if outcome is not None and logger is not None and not plan.logs:
        from llm.logger.live import open_logger

        with open_logger(logger, run, outputs=Path(plan.config.outputs)) as opened:
            opened.summarize(outcome.results)
    return outcome
