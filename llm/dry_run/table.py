"""What jobs would take -> a table: one job in detail, of several a row each."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from llm.config.stages import StageConfig
from llm.dry_run.survey import Job, survey
from llm.run.console import log, output_console


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
    seen: list[str] = []

    def is_new(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        return seen.count(seen[-1]) == 1

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def _cells(job: Job) -> dict[str, str]:
    """What is known of a job, in words, by what it is."""
    takes, share = job.takes, (job.takes.trainable or 0) / (job.takes.parameters or 1)
    at_most = "" if takes.is_whole else "at most "
    cells = {
        "reused": "\n".join(job.reused) or "nothing",
        "made": ", ".join(job.made) or "nothing",
        "parameters": takes.parameters and _count(takes.parameters),
        "trainable": takes.trainable and share < 1 and f"{_count(takes.trainable)} ({share:.2%})",
        "steps": takes.steps and f"{takes.steps:,}" + (f" ({job.steps_done:,} done)" if job.steps_done else ""),
        "tokens": takes.tokens is not None and _count(takes.tokens),
        "epochs": takes.epochs is not None and f"{at_most}{takes.epochs:.2f}",
        "FLOPs": takes.flops is not None and f"{takes.flops:.2e}",
        "memory": takes.memory and _size(takes.memory.total),
        "time": takes.seconds is not None and _time(takes.seconds),
        "disk": job.disk and _size(sum(job.disk.values())),
    }
    return {name: text for name, text in cells.items() if text}


def _details(job: Job) -> Table:
    table = Table(title=f"dry run of stage={job.stage}", highlight=False, show_header=False)
    cells, takes = _cells(job), job.takes
    if takes.memory is not None:
        cells["memory"] += f" a device: {_sizes(asdict(takes.memory))}; {takes.micro_batch}"
    if job.disk:
        sizes: Counter[str] = Counter()
        for (name, _), size in job.disk.items():
            sizes[name] += round(size)
        cells["disk"] += f": {_sizes(sizes)}"
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
    takes = [job.takes for job in jobs]
    disk = {made: size for job in jobs for made, size in job.disk.items()}
    totals = {
        "tokens": _count(sum(each.tokens or 0 for each in takes)),
        "FLOPs": f"{sum(each.flops or 0 for each in takes):.2e}",
        "memory": f"most: {_size(max((each.memory.total for each in takes if each.memory), default=0))}",
        "time": _time(sum(each.seconds or 0 for each in takes)),
        "disk": _size(sum(disk.values())),
        "steps": f"{sum(each.steps or 0 for each in takes):,}",
    }
    table.add_section()
    table.add_row(*map(Text, ["all", *(totals.get(key, "") for key in columns)]))
    return table


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def _sizes(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in sizes.items() if size)


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
