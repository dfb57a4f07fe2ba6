"""How a sweep stands -> a live table in a terminal; elsewhere a line for each job that starts or ends."""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm.run.console import console, log, start_logging
from llm.sweep.jobs import Job, NewMetrics, State

if TYPE_CHECKING:
    from llm.sweep.driver import Source

STATES: tuple[State, ...] = ("running", "queued", "waiting", "done", "failed", "stopped")
REFRESH_SECONDS = 2.0


class Board:
    """What a person sees of a sweep while it runs."""

    def __init__(self, terminal: Console | None = None) -> None:
        self._console = terminal or console()
        self._jobs: Mapping[int, Job] = {}
        self._source: Source | None = None
        self._live: Live | None = None
        self._metrics: defaultdict[int, NewMetrics] = defaultdict(NewMetrics)
        self._refreshed = 0.0

    @contextmanager
    def shown(self, jobs: Mapping[int, Job], source: "Source") -> Iterator[None]:
        """Keep it on the terminal for as long as the block runs."""
        start_logging()
        self._jobs, self._source = jobs, source
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
        assert self._source is not None
        counts = Counter(job.state for job in self._jobs.values())
        head = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        to_come, best = self._source.to_come(), self._source.best()
        parts = [head, f"{to_come} to come" if to_come else "", f"best {best}" if best else "", self.time_left()]
        table = Table("job", "step", "loss", "minutes", highlight=False)
        running = self._in("running")
        for job in running:
            table.add_row(*map(Text, self._row(job)))
        return Group(Text("; ".join(filter(None, parts))), *([table] if running else []))

    def time_left(self) -> str:
        """As many jobs side by side as run now, each as long as the mean of those that are done; unknown before."""
        assert self._source is not None
        took = [seconds for job in self._jobs.values() if job.run and (seconds := job.run.record.get("seconds"))]
        running = self._in("running")
        if not took or not running:
            return ""
        mean = statistics.fmean(took)
        to_do = len(self._in("running", "queued", "waiting")) + self._source.to_come()
        done = sum(min(time.monotonic() - job.started, mean) for job in running)
        return f"about {(to_do * mean - done) / len(running) / 60:.0f} min left"

    def _in(self, *states: str) -> list[Job]:
        return [job for job in self._jobs.values() if job.state in states]

    def _row(self, job: Job) -> tuple[str, str, str, str]:
        metrics = self._metrics[job.number]
        metrics.read(job.announced_folder())
        loss = next((metrics.last[name] for name in ("train/loss", "val/loss") if name in metrics.last), None)
        of = _max_steps(job)
        return (
            job.label,
            f"{metrics.last.get('step', 0)}/{of}" if of else "",
            "" if loss is None else f"{loss:.3f}",
            f"{(time.monotonic() - job.started) / 60:.1f}",
        )


def _max_steps(job: Job) -> int | None:
    """The steps of a training in all; None of another stage, or before the run has begun."""
    run = job.announced_run()
    trainer = run.record["identity"]["settings"].get("trainer") if run else None
    return None if trainer is None else int(trainer["max_steps"])
