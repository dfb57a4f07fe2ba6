"""A job -> its finished run, found as train.py would find it, without a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from llm.config.stages import Reuse, StageConfig
from llm.errors import UserError
from llm.run.console import console, log, start_logging
from llm.run.making import Plan, find, reuse
from llm.run.runs import Run
from llm.stage import Step, stage_named, step_of


class Finder:
    """Looks for finished runs, each parent once; it makes none."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Run, Plan] | None] = {}

    def find(self, config: StageConfig) -> Run | None:
        """The finished run of a config, which is said; None if there is none, or if it is to be made again."""
        if config.reuse is Reuse.never:
            return None
        start_logging()
        try:
            with _quiet():  # what is said of a run's parents is nothing new here
                found = self._find(step_of(config))
            return reuse(found[1]) if found else None
        except (UserError, OSError):  # the job itself will say what is wrong
            return None

    def _find(self, step: Step) -> tuple[Run, Plan] | None:
        place = repr(step)
        if self._found.get(place) is None:
            self._found[place] = self._look(step)
        return self._found[place]

    def _look(self, step: Step) -> tuple[Run, Plan] | None:
        parents = {role: found[0] for role, parent in step.parents.items() if (found := self._find(parent))}
        if len(parents) < len(step.parents):
            return None  # a stage would begin by making them
        work = stage_named(step.config.stage).plan(step.config, parents)
        run = find(work.plan)
        if run is None:
            return None
        for check in filter(None, (work.check, step.check)):
            check(run)
        return run, work.plan


@contextmanager
def _quiet() -> Iterator[None]:
    log.disabled = console().quiet = True
    try:
        yield
    finally:
        log.disabled = console().quiet = False
