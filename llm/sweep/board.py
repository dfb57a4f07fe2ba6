"""How a sweep stands -> a live table in a terminal; elsewhere a line for each job that starts or ends."""

import statistics
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm.run import console, log, start_logging

if TYPE_CHECKING:
    from llm.sweep.driver import Standing
    from llm.sweep.pool import Pool, Running
    from llm.sweep.slurm import Cluster, Submitted


class Progress(Protocol):
    """What a search knows of itself that its jobs do not show."""

    def to_come(self) -> int:
        """The jobs of points that are not chosen yet."""

    def best(self) -> str | None:
        """The best result so far, by what is searched for, and its point."""


STATES = ("running", "queued", "waiting", "done", "failed", "stopped")
REFRESH_SECONDS = 2.0


class Board:
    """What a person sees of a sweep while it runs."""

    def __init__(self, terminal: Console | None = None) -> None:
        self._console = terminal or console()
        self._standings: Collection[Standing] = ()
        self._pool: Pool | Cluster | None = None
        self._live: Live | None = None
        self._search: Progress | None = None
        self._refreshed = 0.0

    @contextmanager
    def shown(
        self, standings: "Collection[Standing]", pool: "Pool | Cluster", search: Progress | None = None
    ) -> Iterator[None]:
        """Keep it on the terminal for as long as the block runs."""
        start_logging()
        self._standings, self._pool, self._search = standings, pool, search
        if not self._console.is_terminal:
            yield
            return
        with Live(self.table(), console=self._console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def say(self, line: str) -> None:
        """A line for what happened just now."""
        log.info("%s", line)
        self._refreshed = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Draw the table anew, if it is old."""
        if self._live and time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._live.update(self.table(), refresh=True)

    def table(self) -> Group:
        """The jobs by state, the best so far, the time left, and a row for each job that runs."""
        assert self._pool is not None
        now = {running.job.number: running.state for running in self._pool.running.values()}
        counts = Counter(now.get(each.job.number, each.state) for each in self._standings)
        head = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        parts = [head, *self._to_come(), *self._best(), *self._time_left()]
        table = Table("job", "step", "loss", "minutes", highlight=False)
        at_work = [each for each in self._pool.running.values() if each.state == "running"]
        for running in at_work:
            table.add_row(*map(Text, self._row(running)))
        return Group(Text("; ".join(parts)), *([table] if at_work else []))

    def _row(self, running: "Running | Submitted") -> tuple[str, str, str, str]:
        metrics = running.last_metrics()
        loss = next((metrics[name] for name in ("train/loss", "val/loss") if name in metrics), None)
        of = max_steps(running)
        return (
            running.job.label,
            f"{metrics.get('step', 0)}/{of}" if of else "",
            "" if loss is None else f"{loss:.3f}",
            f"{(time.monotonic() - running.started) / 60:.1f}",
        )

    def _to_come(self) -> list[str]:
        to_come = self._search.to_come() if self._search else 0
        return [f"{to_come} to come"] if to_come else []

    def _best(self) -> list[str]:
        """Of a search by what it is for; of a grid by its stage's objective, of which the lowest is the best."""
        if self._search:
            found = self._search.best()
            return [f"best {found}"] if found else []
        done = [(run.objective, each) for each in self._standings if (run := each.run) and run.objective is not None]
        if not done:
            return []
        objective, best = min(done, key=lambda pair: pair[0])
        return [f"best {objective:.4f}: {best.job.label}"]

    def _time_left(self) -> list[str]:
        """As many jobs side by side as run now, each as long as the mean of those that are done; unknown before."""
        assert self._pool is not None
        took = [seconds for each in self._standings if each.run and (seconds := each.run.record.get("seconds"))]
        at_work = [each for each in self._pool.running.values() if each.state == "running"]
        if not took or not at_work:
            return []
        mean = statistics.fmean(took)
        jobs = len(self._pool.running) + sum(each.state == "waiting" for each in self._standings)
        jobs += self._search.to_come() if self._search else 0
        done = sum(min(time.monotonic() - each.started, mean) for each in at_work)
        return [f"about {(jobs * mean - done) / len(at_work) / 60:.0f} min left"]


def max_steps(running: "Running | Submitted") -> int | None:
    """The steps of a training in all; None of another stage, or before the run has begun."""
    run = running.job.announced_run()
    if run is None:
        return None
    trainer = run.record["identity"]["settings"].get("trainer")
    return None if trainer is None else int(trainer["max_steps"])
