"""Rows of text -> a table in the terminal, or as Markdown; the same for every command that shows one."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

ABSENT = "-"  # what a row has nothing of
MOST_COLUMNS = 6  # with more, and where they do not fit, a row becomes a column
TURNED_WIDTH = 24  # characters for a row that is a column


@dataclass(frozen=True)
class TextTable:
    """Cells of text by row and column; the first column says what a row is of."""

    columns: list[str]
    rows: list[list[str]]
    heads_may_fold: bool = False  # where a terminal is too narrow for them beside each other

    def drawn(self, console: Console) -> list[Table]:
        """For a terminal: a line for each row where they fit, else a column for each, as many in a table as fit.

        A pipe has no width: with many columns it gets one table with a column for each row.
        """
        if len(self.columns) <= MOST_COLUMNS or self.fits(console):
            return [_table(self.columns, self.rows)]
        names, *others = self.columns
        room = len(self.rows)
        if console.is_terminal:
            room = max(1, (console.width - max(map(cell_len, others))) // TURNED_WIDTH)
        blocks = [self.rows[start : start + room] for start in range(0, len(self.rows), room)]
        return [
            _table(
                [names, *(row[0] for row in block)], [[key, *(r[i] for r in block)] for i, key in enumerate(others, 1)]
            )
            for block in blocks
        ]

    def fits(self, console: Console) -> bool:
        """Whether a terminal is wide enough for a line for each row."""
        columns = zip(*([] if self.heads_may_fold else [self.columns]), *self.rows, strict=True)
        widths = [max(map(cell_len, column)) for column in columns]
        return console.is_terminal and sum(widths) + 3 * len(widths) + 1 <= console.width

    def markdown(self) -> str:
        """As Markdown has it."""
        columns, *rows = [[markdown_text(cell) for cell in row] for row in [self.columns, *self.rows]]
        return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    drawn = Table(highlight=False)
    for index, column in enumerate(columns):
        # The first column is what is looked up: it keeps its width, and the others fold.
        drawn.add_column(Text(column), overflow="fold", no_wrap=index == 0)
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def markdown_text(text: str) -> str:
    """Text that Markdown and the HTML in it leave alone, in one line."""
    for special in "\\`*_[]#|":
        text = text.replace(special, f"\\{special}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")


def shown(value: float) -> str:
    """A number as a person reads it: whole ones whole, others with about 5 digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.1f}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"
