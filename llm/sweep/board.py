"""How a sweep stands -> a table in a terminal, which is redrawn as it goes."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llm.sweep.jobs import Job, State

STATES: tuple[State, ...] = ("running", "queued", "waiting", "done", "failed", "stopped")


def board(jobs: Sequence[Job], *, to_come: int, best: str | None) -> Group:
    """The jobs by state, the best so far, the time left, and a row for each job that runs.

    `to_come` are jobs that nobody has chosen yet.
    """
    counts = Counter(job.state for job in jobs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    coming, found = f"{to_come} to come" if to_come else "", f"best {best}" if best else ""
    head = Text("; ".join(filter(None, [states, coming, found, time_left(jobs, to_come)])))
    table = Table("job", "step", "loss", "minutes", highlight=False)
    for job in jobs:
        if job.state == "running":
            table.add_row(*map(Text, _row(job)))
    return Group(head, *([table] if table.row_count else []))


def time_left(jobs: Sequence[Job], to_come: int) -> str:
    """As many jobs side by side as run now, each as long as the mean of those that are done; unknown before."""
    took = [seconds for job in jobs if job.run and (seconds := job.run.record.get("seconds"))]
    running = [job for job in jobs if job.state == "running"]
    if not took or not running:
        return ""
    mean = statistics.fmean(took)
    to_do = sum(job.state in ("running", "queued", "waiting") for job in jobs) + to_come
    done = sum(min(time.monotonic() - job.started, mean) for job in running)
    return f"about {(to_do * mean - done) / len(running) / 60:.0f} min left"


def _row(job: Job) -> tuple[str, str, str, str]:
    loss = next((job.measured[name] for name in ("train/loss", "val/loss") if name in job.measured), None)
    max_steps, run = None, job.announced_run()
    if run and (trainer := run.record["identity"]["settings"].get("trainer")):  # a budget has become steps in there
        max_steps = trainer["max_steps"]
    return (
        job.label,
        f"{job.measured.get('step', 0)}/{max_steps}" if max_steps else "",
        "" if loss is None else f"{loss:.3f}",
        f"{(time.monotonic() - job.started) / 60:.1f}",
    )
