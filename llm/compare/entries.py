"""A run, or a job of a sweep that may have left none yet -> what it is, how it stands, and what came out."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.errors import DamagedError
from llm.run import Run, check_files, check_metrics, history, log, metrics_of
from llm.run.owner import is_owned
from llm.sweep.ledger import JobRecord

RANKED_BY = ("val/bits_per_byte", "val/loss")  # lower is better
METRICS = (*RANKED_BY, "train/loss", "tokens", "seconds")  # what a run that is not done has to show
NOT_RESULTS = ("bos_id", "eos_id")


@dataclass(frozen=True, eq=False)
class Entry:
    """What is compared: a run, a job of a sweep, or a job with its run."""

    run: Run | None
    job: JobRecord | None = None
    job_folder: Path | None = None

    @property
    def name(self) -> str:
        """The run's folder, by its name; of a job without one its number."""
        return self.run.path.name if self.run else f"job {self.job.number if self.job else '?'}"

    @property
    def path(self) -> Path:
        found = self.run.path if self.run else self.job_folder
        assert found is not None
        return found

    @property
    def stage(self) -> str:
        """Of the run; of a job without one as it was typed."""
        typed = [o.partition("=")[2] for o in (self.job.overrides if self.job else []) if o.startswith("stage=")]
        return self.run.stage if self.run else (typed or ["-"])[-1]

    @property
    def is_done(self) -> bool:
        return self.run is not None and self.run.is_done

    @cached_property
    def state(self) -> str:
        """done, running, failed, stopped (it can go on), unfinished (nobody is at it), or waiting."""
        if self.run is not None and (self.job is None or self.run.is_done or self.job.state in ("done", "waiting")):
            state = self.run.state
            return "stopped" if state == "unfinished" and "stopped" in self.run.record else state
        assert self.job is not None
        if self.job.state == "running" and not (self.job_folder and is_owned(self.job_folder)):
            return "unfinished"
        return self.job.state

    @property
    def error(self) -> str:
        """Why it failed: the kind, and one line; empty if it did not."""
        last = self.job.attempts[-1] if self.job and self.job.attempts else None
        if self.state == "failed" and last is not None and last.kind not in (None, "done"):
            return f"{last.kind}: {last.message}" if last.message else str(last.kind)
        return str(self.run.record.get("error", "")) if self.run else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config; empty before there is one."""
        if self.run is None:
            return {}
        try:
            return self.run.config
        except (OSError, ValueError, TypeError):
            log.warning("%s/config.yaml is missing or cannot be read: its settings are not compared", self.run.path)
            return {}

    @cached_property
    def outcome(self) -> dict[str, float]:
        """What came out, in numbers; empty before anything did."""
        try:
            return outcome(self.run) if self.run else {}
        except DamagedError as error:
            log.warning("left out what it measured: %s", error)
            return {}

    @property
    def command(self) -> str:
        """What makes it again: the overrides of its job, else the command that it was started by."""
        if self.job is not None:
            # A recorded sweep (sweep=...) among the overrides would start all of it.
            return f"python train.py {shlex.join([*self.job.overrides, 'hydra.mode=RUN'])}"
        recorded = str(self.run.record.get("command", "")) if self.run else ""
        words = shlex.split(recorded) if recorded else []
        if words and Path(words[0]).name == "train.py":
            return f"python {shlex.join(['train.py', *words[1:]])}"
        return recorded

    def verify(self) -> None:
        """Refuse a finished run whose config is not what its record says; of metrics that are not, say so.

        Raises:
            DamagedError: its config is not.
        """
        if self.run is None or not self.run.is_done:
            return
        check_files(self.run, under="config.yaml")
        try:
            check_metrics(self.run)
        except DamagedError as error:  # the figures of the tables are those of its record, which is whole
            log.warning("%s", error)

    def parent_result(self, parent: str, name: str) -> float | None:
        """A number among the results of the run that this one was made from; None if that is gone."""
        try:
            value = self.run.parent(parent).results.get(name) if self.run else None
        except (KeyError, OSError, ValueError):
            return None
        return value if isinstance(value, int | float) else None


def outcome(run: Run) -> dict[str, float]:
    """What came out, in numbers: the results of a finished run, else the last that it measured."""
    if not run.is_done:
        metrics = metrics_of(run)
        by_part = sorted({n for record in metrics for n in record if n.startswith(tuple(f"{m}/" for m in RANKED_BY))})
        return {name: values[-1][1] for name in (*METRICS, *by_part) if (values := history(metrics, name))}
    numbers = {key: value for key, value in run.results.items() if isinstance(value, int | float)}
    ranking = {name: numbers[name] for name in RANKED_BY if name in numbers}
    return ranking | {k: v for k, v in numbers.items() if k not in NOT_RESULTS} | {"seconds": run.record["seconds"]}
