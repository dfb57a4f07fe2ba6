"""A comparison -> its sections, each a question and what answers it, in the terminal and as Markdown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

from rich.console import Console
from rich.text import Text

from llm.compare.budgets import NOTE, agreements, as_csv, budget_tables
from llm.compare.entries import Entry, read_sweep
from llm.compare.ranking import ADDED, MOST_LEVELS, Ranking, flattened, rank
from llm.config.compose import composed
from llm.config.stages import MODEL_STAGES
from llm.errors import ConfigError, LaunchError, StoppedError
from llm.run.console import ABSENT, TextTable, log, markdown_text, output_console
from llm.run.files import write_text
from llm.run.record import SAMPLES

PAGE = "compare.html"


@dataclass(frozen=True)
class Section:
    """A question and what answers it."""

    title: str
    notes: list[str] = field(default_factory=list)
    table: TextTable | None = None
    commands: list[str] = field(default_factory=list)  # to copy: never broken into lines


# The sections


def sections(ranking: Ranking, *, num_samples: int) -> Iterator[Section]:
    """What stands below the ranked table: effects, the best against its base, what the best wrote."""
    yield from _budgets(ranking)
    found = (_effects(ranking), _base(ranking), _samples(ranking, num_samples))
    yield from (section for section in found if section)


def _budgets(ranking: Ranking) -> Iterator[Section]:
    """Of several tokenizers: what each comes to at equal bytes and at equal FLOPs."""
    tables = budget_tables(ranking)
    for place, each in enumerate(tables):
        below = [NOTE, *agreements(tables)] if place == len(tables) - 1 else []
        yield Section(each.title, [*each.notes, *below], each.table)


def _effects(ranking: Ranking) -> Section | None:
    listed = {key: levels for key, levels in ranking.effects.items() if len(levels) <= MOST_LEVELS}
    rows = [[key, value, f"{mean} (n={mean.num_values})"] for key, of in listed.items() for value, mean in of.items()]
    if not rows:
        return None
    notes = ["Means over all finished choices with that value: what the other settings do is part of what is seen."]
    return Section(f"What each setting does to {ranking.metric}", notes, TextTable(["key", "value", "mean"], rows))


def _base(ranking: Ranking) -> Section | None:
    """What the best has otherwise than what all jobs of its sweep share, or than its stage's defaults."""
    best = ranking.choices[0].best
    if "stage" not in best.config:
        return None
    jobs = [entry.overrides for entry in ranking.entries]
    shared = [o for o in best.overrides if not o.startswith(ADDED) and all(o in job for job in jobs)]
    words = shared if ranking.sweep and shared else [f"stage={best.stage}"]
    title = f"The best, {best.name}, against {'the base of the sweep' if ranking.sweep else 'the defaults'}"
    title += f" ({' '.join(words)})"
    try:
        base, mine = flattened(composed(words)), flattened(best.config)
    except ConfigError as error:
        return Section(title, [f"It cannot be composed any more: {error}"])
    rows = [[key, base.get(key, ABSENT), mine.get(key, ABSENT)] for key in dict.fromkeys([*mine, *base])]
    other = [row for row in rows if row[1] not in (row[2], "auto")]  # what auto was found to be is no other choice
    return Section(title, table=TextTable(["setting", "base", "best"], other))


def _samples(ranking: Ranking, most: int) -> Section | None:
    """The last text that each of the best made of the prompts that they share, side by side."""
    written: dict[str, dict[str, str]] = {}
    for best in (choice.best for choice in ranking.choices):
        if len(written) < most and (records := best.lines(SAMPLES)):
            step = records[-1]["step"]
            head = f"{best.name} (step {step:,})"
            written[head] = {str(r["prompt"]): str(r["text"]) for r in records if r["step"] == step}
    if not written:
        return None
    prompts = dict.fromkeys(prompt for texts in written.values() for prompt in texts)
    rows = [[prompt, *(texts.get(prompt) or ABSENT for texts in written.values())] for prompt in prompts]
    return Section("What the best wrote last", table=TextTable(["prompt", *written], rows))


# The terminal


def print_ranking(ranking: Ranking, console: Console) -> None:
    """The ranked table, what there is below it, and the command that makes the best again."""
    best = ranking.choices[0].best
    _print(Section("", ranking.notes, ranking.table), console)
    for section in sections(ranking, num_samples=2):
        _print(section, console)
    if ranking.metric and best.command:
        _print(Section(f"The command that makes {best.name} again", [best.command]), console)


def _print(section: Section, console: Console) -> None:
    if section.title:
        console.print(Text(f"\n{section.title}", style="bold"))
    for drawn in section.table.drawn(console) if section.table else []:
        console.print(drawn)
    for note in section.notes:
        console.print(Text(note), soft_wrap=True)  # it may be a command, to copy: never broken into lines


def print_ranked(entries: Sequence[Entry], *, search: Path | None = None) -> None:
    """Print how the runs of a sweep compare that are done; in a narrow terminal what tells them apart, a line each.

    Those of a search, by its folder, are ranked by what it is for.
    """
    ranking = rank([entry for entry in entries if entry.is_done], sweep=search)
    notes, console = ranking.notes, output_console()
    is_of_training = all(entry.stage in MODEL_STAGES for entry in entries)  # what else is made has no chance in it
    if is_of_training and len(ranking.choices) > 1 and all(len(choice.entries) == 1 for choice in ranking.choices):
        notes = [*notes, "One seed each: a small difference can be chance. Sweep seed=0,1,2, too."]
    is_short = ranking.settings and not ranking.table.fits(console) and ranking.short_table.fits(console)
    _print(Section("", notes, ranking.short_table if is_short else ranking.table), console)
    for section in _budgets(ranking):
        _print(section, console)


# Files


def markdown(ranking: Ranking) -> str:
    """All of a comparison but its figures."""
    return "\n".join(_markdown(ranking)) + "\n"


def _markdown(ranking: Ranking) -> Iterator[str]:
    yield f"# {markdown_text(ranking.title)}"
    yield f"\n{ranking.counts}. Ranked by {ranking.metric or 'nothing: none is measured'}."
    for section in (Section("", ranking.notes, ranking.table), *sections(ranking, num_samples=4)):
        yield from _markdown_section(section)
    yield "\n## The command that makes each again\n"
    for entry in ranking.entries:
        yield f"{markdown_text(entry.name)}\n\n{indent(entry.command or 'not recorded', '    ')}\n"


def _markdown_section(section: Section) -> Iterator[str]:
    yield from [f"\n## {markdown_text(section.title)}"] if section.title else []
    yield from [f"\n{section.table.markdown()}"] if section.table else []
    yield from (f"\n{markdown_text(note)}" for note in section.notes)
    yield from [f"\n{indent(chr(10).join(section.commands), '    ')}"] if section.commands else []


def markdown_sections(title: str, sections: Sequence[Section]) -> str:
    """Sections under a title, as Markdown."""
    lines = [line for section in sections for line in _markdown_section(section)]
    return "\n".join([f"# {markdown_text(title)}", *lines]) + "\n"


@contextmanager
def page_at_end(sweep: Path) -> Iterator[None]:
    """Write the page of a sweep once the block ends: also where a signal stopped it, or all of it failed."""
    try:
        yield
    except (StoppedError, LaunchError):
        _write_page(sweep)
        raise
    _write_page(sweep)


def _write_page(sweep: Path) -> None:
    from llm.compare.page import write_page  # imports plotly

    try:
        ranking = rank(read_sweep(sweep), title=sweep.name, sweep=sweep)
        size = write_page(ranking, sweep / PAGE)
        log.info("how its jobs compare: %s (%.1f MB, open it in a browser)", sweep / PAGE, size / 1e6)
        if tables := budget_tables(ranking):
            write_text(sweep / "compare.md", markdown(ranking))
            write_text(sweep / "compare.csv", as_csv(tables))
            log.info("the same at equal bytes and at equal FLOPs: compare.md and compare.csv beside it")
    except Exception as error:  # the jobs are done, and a page that cannot be drawn undoes none of them
        log.warning("%s is not written: %s: %s", sweep / PAGE, type(error).__name__, error)
        log.debug("why:", exc_info=True)
