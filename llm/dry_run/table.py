"""What jobs would take -> a table: one job in detail, of several a row each."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from llm.compare import output_console
from llm.config import StageConfig
from llm.dry_run.survey import PARTS, Job, survey
from llm.run import log


def show(configs: Sequence[StageConfig], labels: Sequence[str] | None = None) -> None:
    """Print what the jobs would take: one in detail, of several a row each, and their totals."""
    with _said_once():
        jobs = [survey(config, label) for config, label in zip(configs, labels or [""] * len(configs), strict=True)]
    console = output_console()
    console.print(_details(jobs[0]) if len(jobs) == 1 else _rows(jobs))
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        console.print(Text(note))


@contextmanager
def _said_once() -> Iterator[None]:
    """What the stages say of one job after another, as how precision was chosen, is said once."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        is_first = record.getMessage() not in seen
        seen.add(record.getMessage())
        return is_first

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def _cells(job: Job) -> dict[str, str]:
    """What is known of a job, in words, by what it is."""
    cells = {"reused": "\n".join(job.reused) or "nothing", "made": ", ".join(job.made) or "nothing"}
    if job.steps is not None:
        total = job.parts.total()
        cells["parameters"] = _count(total)
        if job.trainable != total:
            cells["trainable"] = f"{_count(job.trainable)} ({(job.trainable or 0) / total:.2%})"
        done = f" ({job.steps_done:,} done)" if job.steps_done else ""
        cells["steps"] = f"{job.steps:,}{done}"
    if job.tokens is not None:
        cells["tokens"] = _count(job.tokens)
    if job.epochs is not None:
        cells["epochs"] = f"{'' if job.is_whole else 'at most '}{job.epochs:.2f}"
    if job.flops is not None:
        cells["FLOPs"] = f"{job.flops:.2e}"
    if job.memory is not None:
        cells["memory"] = _size(job.memory.total)
    if job.seconds is not None:
        cells["time"] = _time(job.seconds)
    if job.disk:
        cells["disk"] = _size(sum(job.disk.values()))
    return cells


def _details(job: Job) -> Table:
    table = Table(title=f"dry run of stage={job.stage}", highlight=False, show_header=False)
    cells = _cells(job)
    if job.parts:
        cells["parameters"] += ": " + ", ".join(f"{p} {_count(job.parts[p])}" for p in PARTS if job.parts[p])
    if job.memory is not None:
        parts = {name: value for name, value in asdict(job.memory).items() if value}
        cells["memory"] += " a device: " + ", ".join(f"{name} {_size(value)}" for name, value in parts.items())
        cells["micro-batch"] = job.micro_batch
    if job.disk:
        cells["disk"] += ": " + ", ".join(f"{name} {_size(value)}" for name, value in job.disk.items())
    if job.folder and job.made:
        cells["folder"] = job.folder
    for key, value in cells.items():
        table.add_row(Text(key), Text(value))
    return table


def _rows(jobs: list[Job]) -> Table:
    """A row a job, and the totals; a tokenizer and shards that several would make are made once."""
    everything = [_cells(job) for job in jobs]
    columns = list(dict.fromkeys(key for cells in everything for key in cells if key != "reused"))
    table = Table("job", *columns, title=f"dry run of {len(jobs)} jobs", highlight=False)
    for job, cells in zip(jobs, everything, strict=True):
        table.add_row(*map(Text, [job.label or job.stage, *(cells.get(key, "-") for key in columns)]))
    shards = {job.first_missing: job.disk["shards"] for job in jobs if "shards" in job.disk}
    others = sum(size for job in jobs for name, size in job.disk.items() if name != "shards")
    totals = {
        "tokens": _count(sum(job.tokens or 0 for job in jobs)),
        "FLOPs": f"{sum(job.flops or 0 for job in jobs):.2e}",
        "memory": f"most: {_size(max((job.memory.total for job in jobs if job.memory), default=0))}",
        "time": _time(sum(job.seconds or 0 for job in jobs)),
        "disk": _size(others + sum(shards.values())),
        "steps": f"{sum(job.steps or 0 for job in jobs):,}",
    }
    table.add_section()
    table.add_row(*map(Text, ["all", *(totals.get(key, "") for key in columns)]))
    return table


def _count(number: float | None) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number is not None and number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number or 0:.0f}"


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
