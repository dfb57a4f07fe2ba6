"""A study -> rows of cells, the best first, and the tables that a terminal shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm.compare.choices import Choice, Study, study
from llm.compare.differing import ABSENT
from llm.compare.entries import RANKED_BY, Entry
from llm.compare.statistics import Estimate
from llm.run import Run

MOST_COLUMNS = 6  # with more, a run is a column
RUN_WIDTH = 24  # characters for a run's column in a terminal


@dataclass(frozen=True)
class Comparison:
    """A row of cells for each choice, the best first."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def compare(runs: Sequence[Run], *, metric: str | None = None) -> Comparison:
    """What differs between runs and what came out, ranked by bits per byte, else by loss; seeds are averaged."""
    return comparison(study([Entry(run) for run in runs], metric=metric))


def comparison(made: Study) -> Comparison:
    """A study as text."""
    choices = made.choices
    cells = {
        "run": [choice.name for choice in choices],
        "stage": [choice.best.stage for choice in choices],
        "state": [choice.state for choice in choices],
        **{
            "run=" if key == "run" else key: values for key, values in made.columns.items()
        },  # of an evaluation's config
    }
    if any(len(choice.entries) > 1 for choice in choices):
        cells["seeds"] = [str(len(choice.measured)) for choice in choices]
    for key in outcome_names(choices, made.metric):
        cells[key] = [shown_estimate(choice.outcome.get(key)) for choice in choices]
    if any(errors := [choice.error for choice in choices]):
        cells["error"] = [error or ABSENT for error in errors]
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    return Comparison(list(cells), rows, [*made.notes, *follows_notes(made)])


def outcome_names(choices: Sequence[Choice], metric: str | None) -> list[str]:
    """What any of them measured; what they are ranked by comes first."""
    names = list(dict.fromkeys(key for choice in choices for key in choice.outcome))
    is_usual = metric is None or metric in RANKED_BY
    return names if is_usual else sorted(names, key=lambda name: name != metric)


def follows_notes(made: Study) -> list[str]:
    """Which keys differ without being shown."""
    if not made.follows:
        return []
    listed = ", ".join(made.follows[:8]) + (f" and {len(made.follows) - 8} more" if len(made.follows) > 8 else "")
    return [f"What was swept decides, and so is not shown: {listed}."]


def shown_estimate(value: Estimate | None) -> str:
    """A mean, and where it is of several values that differ, how far off it may be."""
    if value is None:
        return ABSENT
    return shown(value.mean) + (f" ± {shown(value.half_width)}" if value.half_width else "")


def shown(value: float) -> str:
    """A number as a person reads it: whole ones whole, others with about 5 digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.1f}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"


def tables(comparison: Comparison, *, width: int | None) -> list[Table]:
    """A row for each run, or with many columns a column for each, as many in a table as `width` holds."""
    if len(comparison.columns) <= MOST_COLUMNS:
        return [table(comparison.columns, comparison.rows)]
    names, *others = comparison.columns
    room = len(comparison.rows) if width is None else max(1, (width - max(map(len, others))) // RUN_WIDTH)
    blocks = [comparison.rows[start : start + room] for start in range(0, len(comparison.rows), room)]
    return [
        table(
            [names, *(row[0] for row in block)], [[key, *(row[i] for row in block)] for i, key in enumerate(others, 1)]
        )
        for block in blocks
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    drawn = Table(highlight=False)
    for index, column in enumerate(columns):
        # The first column is what is looked up: it keeps its width, and the others fold.
        drawn.add_column(Text(column), overflow="fold", no_wrap=index == 0)
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def output_console() -> Console:
    """The terminal, or a pipe, which has no width: nothing is folded."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000)
