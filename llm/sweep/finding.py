"""A job -> its finished run, found as train.py would find it, without a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from logging import LogRecord

from llm.config import Reuse, StageConfig
from llm.errors import UserError
from llm.run import Run, console, log, start_logging
from llm.stage import Step, run_step, step_of


class Finder:
    """Looks for finished runs, each parent once; it makes none."""

    def __init__(self) -> None:
        self._found: dict[str, Run | None] = {}
        self.said: dict[str, list[str]] = {}  # by the run's folder: that it is reused, and what is not applied

    def find(self, config: StageConfig) -> Run | None:
        """The finished run of a config; None if there is none, or if the config wants it made again."""
        if config.reuse is Reuse.never:
            return None
        try:
            return self._find(step_of(config))
        except (UserError, OSError):  # the job itself will say what is wrong
            return None

    def _find(self, step: Step) -> Run | None:
        place = repr(step)
        if self._found.get(place) is None:
            self._found[place] = self._look(step)
        return self._found[place]

    def _look(self, step: Step) -> Run | None:
        if not all(self._find(parent) for parent in step.parents.values()):
            return None  # a stage would begin by making them
        with _log_kept() as said:
            try:
                run = run_step(replace(step, config=replace(step.config, reuse=Reuse.require)))
            except (UserError, OSError):
                return None
        self.said[str(run.path)] = said[max(n for n, line in enumerate(said) if line.startswith("reused ")) :]
        return run


@contextmanager
def _log_kept() -> Iterator[list[str]]:
    """The log's lines of the block, in place of showing them: those of a run's parents say nothing new here.

    An evaluation's table is not shown either: the sweep's end compares them.
    """
    start_logging()  # before, for it adds filters
    said: list[str] = []
    was_quiet, console().quiet = console().quiet, True

    def keep(record: LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    log.addFilter(keep)
    try:
        yield said
    finally:
        log.removeFilter(keep)
        console().quiet = was_quiet
