"""What the cleaning steps counted -> a JSON report and a table for the terminal."""

from dataclasses import asdict
from typing import Any

from llm.data.cleaning.steps import Cleaner

MB = 1e6


def as_json(cleaner: Cleaner) -> dict[str, Any]:
    """The counts of every step in their order, with samples of what was dropped."""
    return {name: asdict(counts) | {"dropped": dict(counts.dropped)} for name, counts in cleaner.counts.items()}


def as_table(report: dict[str, Any], *, width: int = 100) -> str:
    """One line a step, and below it one for each reason, with a sample."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="cleaning", title_justify="left")
    table.add_column("step")
    for column in ("documents in", "changed", "dropped", "out", "MB in", "MB dropped", "MB out"):
        table.add_column(column, justify="right")
    for name, counts in report.items():
        numbers = [
            counts["documents_in"],
            counts["documents_changed"],
            sum(counts["dropped"].values()),
            counts["documents_out"],
        ]
        sizes = [f"{counts[key] / MB:.2f}" for key in ("bytes_in", "bytes_dropped", "bytes_out")]
        table.add_row(name, *map(str, numbers), *sizes)
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get() + "\n".join(_reasons(report))


def _reasons(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, counts in report.items():
        for reason, times in counts["dropped"].items():
            lines.append(f"{name} dropped {times}: {reason}")
            lines += [f"  {sample['origin']}: {_short(sample['text'])}" for sample in counts["samples"][reason]]
    return lines


def _short(text: str) -> str:
    one = " / ".join(text.split("\n"))
    return one if len(one) <= 80 else one[:79] + "…"
