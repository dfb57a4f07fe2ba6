"""A job -> its finished run, found as train.py would find it, without a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from logging import LogRecord
from typing import Any

from llm.config import Reuse, ShardsStage, StageConfig, TokenizerStage
from llm.errors import UserError
from llm.run import Run, console, log, start_logging


class Finder:
    """Looks for finished runs, each parent once; it makes none."""

    def __init__(self) -> None:
        self._found: dict[str, Run | None] = {}
        self.said: dict[str, list[str]] = {}  # by the run's folder: that it is reused, and what is not applied

    def find(self, config: StageConfig) -> Run | None:
        """The finished run of a config; None if there is none, or if the config wants it made again."""
        if config.reuse is Reuse.never:
            return None
        place = repr(config)
        if place not in self._found or self._found[place] is None:
            self._found[place] = self._look(config)
        return self._found[place]

    def _look(self, config: StageConfig) -> Run | None:
        if not all(self.find(parent) for parent in _parents(config)):
            return None  # a stage would begin by making them
        with _log_kept() as said:
            try:
                run: Run = _stage(config.stage).run(replace(config, reuse=Reuse.require))
            except (UserError, OSError):  # the job itself will say what is wrong
                return None
        self.said[str(run.path)] = said[max(n for n, line in enumerate(said) if line.startswith("reused ")) :]
        return run


def _parents(config: StageConfig) -> list[StageConfig]:
    """What a stage makes on the way where it is missing, as it would ask for it."""
    settings: Any = config
    tokenizer = getattr(config, "tokenizer", None)
    if tokenizer is None or config.stage == "tokenizer":
        return []
    shared = {"outputs": config.outputs, "tokenizer": tokenizer, "data": settings.data}
    if config.stage == "shards":
        return [TokenizerStage(stage="tokenizer", **shared)]
    return [ShardsStage(stage="shards", **shared)]


@cache
def _stage(name: str) -> Any:
    return import_module(f"llm.stage.{name}")


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
