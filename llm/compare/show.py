"""A comparison -> its sections, each a question and what answers it, in the terminal and as Markdown."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

from rich.console import Console
from rich.text import Text

from llm.compare.entries import Entry, objective_of, once_each, read_sweep
from llm.compare.ranking import ADDED, Estimate, Ranking, flattened, rank
from llm.config.compose import composed
from llm.errors import ConfigError, LaunchError, StoppedError
from llm.run.console import log, output_console
from llm.run.metrics import SAMPLES
from llm.run.runs import check_files
from llm.run.tables import ABSENT, TextTable, markdown_text

PAGE = "compare.html"
MOST_LEVELS = 8  # of a setting whose means are listed


@dataclass(frozen=True)
class Section:
    """A question and what answers it."""

    title: str
    notes: list[str] = field(default_factory=list)
    table: TextTable | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison, whichever way it is shown."""

    title: str
    sweep: Path | None  # that it is of
    ranking: Ranking
    effects: dict[str, dict[str, Estimate]]

    @property
    def entries(self) -> list[Entry]:
        return [entry for choice in self.ranking.choices for entry in choice.entries]

    @property
    def counts(self) -> str:
        """What is ranked, by its state."""
        states = Counter(entry.state for entry in self.entries).most_common()
        return f"{len(self.ranking.choices)} choices: " + ", ".join(f"{count} {state}" for state, count in states)


def report_of(
    entries: Sequence[Entry],
    sweep: Path | None,
    *,
    title: str,
    metric: str | None = None,
    is_highest_best: bool = False,
    keys: Sequence[str] = (),
) -> Report:
    """The comparison of what was found, by default of a search by its first objective.

    Raises:
        ConfigError: a metric that no run has, or a key that does not differ.
        DamagedError: a finished run's config is not what it was.
    """
    for entry in entries:
        if entry.run and entry.is_done:
            check_files(entry.run, under="config.yaml")
    if metric is None:
        metric, is_maximized = objective_of(sweep, entries)
        is_highest_best = is_highest_best or is_maximized
    ranking = rank(entries, metric=metric, is_highest_best=is_highest_best)
    return Report(title=title, sweep=sweep, ranking=ranking, effects=ranking.effects(keys))


# The sections


def sections(report: Report, *, num_samples: int) -> Iterator[Section]:
    """What stands below the ranked table: effects, the best against its base, what the best wrote."""
    found = (_effects(report), _base(report), _samples(report, num_samples))
    yield from (section for section in found if section)


def _effects(report: Report) -> Section | None:
    listed = {key: levels for key, levels in report.effects.items() if len(levels) <= MOST_LEVELS}
    rows = [[key, value, f"{mean} (n={mean.num_values})"] for key, of in listed.items() for value, mean in of.items()]
    if not rows:
        return None
    notes = ["Means over all finished choices with that value: what the other settings do is part of what is seen."]
    return Section(
        f"What each setting does to {report.ranking.metric}", notes, TextTable(["key", "value", "mean"], rows)
    )


def _base(report: Report) -> Section | None:
    """What the best has otherwise than what all jobs of its sweep share, or than its stage's defaults."""
    best = report.ranking.choices[0].best
    if "stage" not in best.config:
        return None
    jobs = [entry.overrides for entry in report.entries]
    shared = [o for o in best.overrides if not o.startswith(ADDED) and all(o in job for job in jobs)]
    words = shared if report.sweep and shared else [f"stage={best.stage}"]
    title = f"The best, {best.name}, against {'the base of the sweep' if report.sweep else 'the defaults'}"
    title += f" ({' '.join(words)})"
    try:
        base, mine = flattened(composed(words)), flattened(best.config)
    except ConfigError as error:
        return Section(title, [f"It cannot be composed any more: {error}"])
    rows = [[key, base.get(key, ABSENT), mine.get(key, ABSENT)] for key in dict.fromkeys([*mine, *base])]
    return Section(title, table=TextTable(["setting", "base", "best"], [row for row in rows if row[1] != row[2]]))


def _samples(report: Report, most: int) -> Section | None:
    """The last text that each of the best made of the prompts that they share, side by side."""
    written: dict[str, dict[str, str]] = {}
    for best in (choice.best for choice in report.ranking.choices):
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


def print_report(report: Report, console: Console) -> None:
    """The ranked table, what there is below it, and the command that makes the best again."""
    best = report.ranking.choices[0].best
    _print(Section("", report.ranking.notes, report.ranking.table), console)
    for section in sections(report, num_samples=2):
        _print(section, console)
    if report.ranking.metric and best.command:
        _print(Section(f"The command that makes {best.name} again", [best.command]), console)


def _print(section: Section, console: Console) -> None:
    if section.title:
        console.print(Text(f"\n{section.title}", style="bold"))
    for drawn in section.table.drawn(console) if section.table else []:
        console.print(drawn)
    for note in section.notes:
        console.print(Text(note))


def print_ranked(entries: Sequence[Entry], *, search: Path | None = None) -> None:
    """Print how the runs of a sweep compare that are done; in a narrow terminal what tells them apart, a line each.

    Those of a search, by its folder, are ranked by what it is for.
    """
    done, console = once_each([entry for entry in entries if entry.is_done]), output_console()
    metric, is_maximized = objective_of(search, done)
    ranking = rank(done, metric=metric, is_highest_best=is_maximized)
    notes = ranking.notes
    if len(ranking.choices) > 1 and all(len(choice.entries) == 1 for choice in ranking.choices):
        notes = [*notes, "One seed each: a small difference can be chance. Sweep seed=0,1,2, too."]
    is_short = ranking.settings and not ranking.table.fits(console) and ranking.short_table.fits(console)
    _print(Section("", notes, ranking.short_table if is_short else ranking.table), console)


# Files


def markdown(report: Report) -> str:
    """All of a report but its figures."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    ranking = report.ranking
    yield f"# {markdown_text(report.title)}"
    yield f"\n{report.counts}. Ranked by {ranking.metric or 'nothing: none is measured'}."
    for section in (Section("", ranking.notes, ranking.table), *sections(report, num_samples=4)):
        yield from [f"\n## {markdown_text(section.title)}"] if section.title else []
        yield from [f"\n{section.table.markdown()}"] if section.table else []
        yield from (f"\n{markdown_text(note)}" for note in section.notes)
    yield "\n## The command that makes each again\n"
    for entry in report.entries:
        yield f"{markdown_text(entry.name)}\n\n{indent(entry.command or 'not recorded', '    ')}\n"


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
        report = report_of(once_each(read_sweep(sweep)), sweep, title=sweep.name)
        size = write_page(report, sweep / PAGE)
        log.info("how its jobs compare: %s (%.1f MB, open it in a browser)", sweep / PAGE, size / 1e6)
    except Exception as error:  # the jobs are done, and a page that cannot be drawn undoes none of them
        log.warning("%s is not written: %s: %s", sweep / PAGE, type(error).__name__, error)
        log.debug("why:", exc_info=True)
