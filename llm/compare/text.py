"""A report -> what a terminal shows of it, and Markdown with all of it."""

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llm.compare.effects import Effect
from llm.compare.report import Report
from llm.compare.samples import Samples, samples_of
from llm.compare.statistics import Estimate
from llm.compare.tables import shown, table, tables

MOST_SAMPLES = {"terminal": 2, "markdown": 4}  # runs whose texts are shown


def print_report(report: Report, console: Console) -> None:
    """The ranked table and, where there is any of it, effects, the best against its base, and what the best wrote."""
    for each in tables(report.ranking, width=console.width if console.is_terminal else None):
        console.print(each)
    for note in report.ranking.notes:
        console.print(Text(note))
    if report.effects:
        _print(console, f"What each key does to {report.study.metric}", [_effect_table(report.effects)])
        for note in report.effect_notes:
            console.print(Text(note))
    if report.base:
        rows = [list(row) for row in report.base.rows]
        drawn: RenderableType = Text(report.base.problem or "Nothing differs.")
        _print(console, base_title(report), [table(["setting", "base", "best"], rows) if rows else drawn])
    samples = samples_of(report.study.choices, most=MOST_SAMPLES["terminal"])
    if samples.names:
        _print(console, samples_title(samples), [_sample_table(samples)])
    best = report.study.choices[0].best
    if report.study.metric and best.command:
        _print(console, f"The command that makes {best.name} again", [Text(best.command)])


def base_title(report: Report) -> str:
    assert report.base is not None
    whose = "the base of the sweep" if report.sweep else "the defaults"
    return f"The best, {report.study.choices[0].best.name}, against {whose} ({report.base.base})"


def samples_title(samples: Samples) -> str:
    steps = ", ".join(dict.fromkeys(f"{step:,}" for step in samples.steps))
    more = f"; {samples.num_left_out} more have samples, too" if samples.num_left_out else ""
    return f"What the best wrote last (at step {steps}{more})"


def shown_mean(value: Estimate | None) -> str:
    """A mean or an effect, its interval, and how many it is of."""
    if value is None:
        return "-"
    half = "" if value.half_width is None else f" ± {shown(value.half_width)}"
    return f"{shown(value.mean)}{half} (n={value.num_values})"


def shown_effect(value: Estimate | None) -> str:
    """An effect with its sign; of one block, or of none, nothing is known about chance."""
    return ("+" if value and value.mean > 0 else "") + shown_mean(value)


def effect_rows(effects: Sequence[Effect]) -> list[list[str]]:
    """A row for each level of each key."""
    return [
        [effect.key, level.value, shown_mean(level.mean), shown_effect(level.effect)]
        for effect in effects
        for level in effect.levels
    ]


def markdown(report: Report) -> str:
    """All of a report but its figures, as Markdown."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    study = report.study
    yield f"# {_cell(report.title)}"
    yield f"\n{len(study.choices)} choices; {report.counts}. Ranked by {study.metric or 'nothing: none is measured'}.\n"
    yield from _markdown_table(report.ranking.columns, report.ranking.rows)
    yield from (f"\n{_cell(note)}" for note in report.ranking.notes)
    yield f"\n## What each key does{f' to {study.metric}' if study.metric else ''}\n"
    if report.effects:
        yield from _markdown_table(["key", "value", "mean", "effect"], effect_rows(report.effects))
    yield from (f"\n{note}" for note in report.effect_notes)
    if report.base:
        yield f"\n## {_cell(base_title(report))}\n"
        if report.base.rows:
            yield from _markdown_table(["setting", "base", "best"], report.base.rows)
        else:
            yield _cell(report.base.problem or "Nothing differs.")
    samples = samples_of(study.choices, most=MOST_SAMPLES["markdown"])
    if samples.names:
        yield f"\n## {samples_title(samples)}\n"
        rows = [[prompt, *(text or "-" for text in texts)] for prompt, texts in samples.texts.items()]
        yield from _markdown_table(["prompt", *samples.names], rows)
    yield "\n## The command that makes each again\n"
    for choice in study.choices:
        for entry in choice.entries:
            yield f"- {_cell(entry.name)}\n\n{_fenced(entry.command or 'not recorded')}\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_cell, columns))} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    """Text that Markdown and the HTML in it leave alone, in one line."""
    for special in "\\`*_[]#|":
        text = text.replace(special, f"\\{special}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return "\n".join(f"  {line}" for line in [f"{fence}bash", *text.splitlines(), fence])


def _print(console: Console, title: str, parts: Sequence[RenderableType]) -> None:
    console.print(f"\n[bold]{escape(title)}[/bold]")
    for part in parts:
        console.print(part)


def _effect_table(effects: Sequence[Effect]) -> Table:
    return table(["key", "value", "mean", "effect"], effect_rows(effects))


def _sample_table(samples: Samples) -> Table:
    drawn = Table("prompt", highlight=False, show_lines=True)
    for name in samples.names:
        drawn.add_column(Text(name))
    for prompt, texts in samples.texts.items():
        drawn.add_row(Text(prompt), *(Text(text or "-") for text in texts))
    return drawn
