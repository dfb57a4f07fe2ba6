"""A ranking and what was found out about it -> what a terminal shows of it, and Markdown with all of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from llm.compare.differing import flattened, shared_overrides
from llm.compare.effects import Effect, Estimate
from llm.compare.entries import Entry, Found
from llm.compare.ranking import Ranking, rank
from llm.config.compose import composed
from llm.errors import ConfigError
from llm.run.metrics import SAMPLES
from llm.run.runs import check_files
from llm.run.tables import ABSENT, TextTable, markdown_text, shown

MOST_SAMPLES = {"terminal": 2, "markdown": 4, "page": 8}  # runs whose texts stand side by side


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
    found: Found
    ranking: Ranking
    effects: list[Effect]

    @property
    def best(self) -> Entry:
        return self.ranking.choices[0].best

    @property
    def counts(self) -> str:
        """Runs by their state."""
        states = Counter(entry.state for choice in self.ranking.choices for entry in choice.entries)
        return ", ".join(f"{count} {state}" for state, count in states.most_common())


def report_of(
    found: Found, *, title: str, metric: str | None = None, is_highest_best: bool = False, keys: Sequence[str] = ()
) -> Report:
    """The comparison of what was found, by default of a search by its objective.

    Raises:
        ConfigError: a metric that no run has, or a key that does not differ.
        DamagedError: a finished run's config is not what it was.
    """
    for entry in found.entries:
        if entry.run and entry.is_done:
            check_files(entry.run, under="config.yaml")
    ranking = ranking_of(found, metric=metric, is_highest_best=is_highest_best)
    return Report(title=title, found=found, ranking=ranking, effects=ranking.effects(keys))


def ranking_of(found: Found, *, metric: str | None = None, is_highest_best: bool = False) -> Ranking:
    """What was found, ranked: by default, where it is a search, by its first objective."""
    if metric is None and (objective := found.objective()):
        metric, is_highest_best = objective[0], is_highest_best or objective[1]
    ranking = rank(found.entries, metric=metric, is_highest_best=is_highest_best)
    if found.num_repeated:
        ranking.notes.append(f"{found.num_repeated} stand for runs that are shown already.")
    return ranking


# The sections


def effects_section(report: Report) -> Section:
    """What each setting does to the metric."""
    title = f"What each setting does to {report.ranking.metric or 'what is measured'}"
    if not report.effects:
        return Section(title, ["No effects: they need at least two finished choices that differ."])
    notes = [
        "Mean: over all choices with that value. Effect: against the mean of all values, within blocks of choices that "
        "are alike in every other setting; ± is half of the 95 % interval over the blocks (Student's t)."
    ]
    if left_out := sum(not choice.is_done for choice in report.ranking.choices):
        notes.append(f"{left_out} choices that are not done are left out.")
    rows = [
        [effect.key, level.value, shown_mean(level.mean), shown_effect(level.effect)]
        for effect in report.effects
        for level in effect.levels
    ]
    return Section(title, notes, TextTable(["key", "value", "mean", "effect"], rows))


def base_section(report: Report) -> Section | None:
    """What the best has otherwise than what all jobs of its sweep share, or than its stage's defaults."""
    best, is_sweep = report.best, report.found.sweep is not None
    if best.run is None or "stage" not in best.config:
        return None
    overrides = (shared_overrides(report.found.entries) if is_sweep else []) or [f"stage={best.stage}"]
    words = " ".join(overrides)
    title = f"The best, {best.name}, against {'the base of the sweep' if is_sweep else 'the defaults'} ({words})"
    try:
        base = flattened(composed(overrides))
    except ConfigError as error:
        return Section(title, [f"{words} cannot be composed any more: {error}"])
    mine = flattened(best.config)
    rows = [[key, base.get(key, ABSENT), mine.get(key, ABSENT)] for key in dict.fromkeys([*mine, *base])]
    rows = [row for row in rows if row[1] != row[2]]
    if not rows:
        return Section(title, ["Nothing differs."])
    return Section(title, table=TextTable(["setting", "base", "best"], rows))


def samples_section(report: Report, most: int) -> Section | None:
    """The last text that each of the best made of the prompts that they share, side by side."""
    written = []
    for choice in report.ranking.choices:
        if records := choice.best.lines(SAMPLES):
            step = records[-1]["step"]
            texts = {str(r["prompt"]): str(r["text"]) for r in records if r["step"] == step}
            written.append((choice.best.name, step, texts))
    if not written:
        return None
    names, steps, texts_of = zip(*written[:most], strict=True)
    more = f"; {len(written) - most} more have samples, too" if len(written) > most else ""
    at = ", ".join(dict.fromkeys(f"{step:,}" for step in steps))
    prompts = dict.fromkeys(prompt for texts in texts_of for prompt in texts)
    rows = [[prompt, *(texts.get(prompt) or ABSENT for texts in texts_of)] for prompt in prompts]
    return Section(f"What the best wrote last (at step {at}{more})", table=TextTable(["prompt", *names], rows))


def shown_mean(value: Estimate | None) -> str:
    """A mean or an effect, its interval, and how many it is of."""
    if value is None:
        return ABSENT
    half = "" if value.half_width is None else f" ± {shown(value.half_width)}"
    return f"{shown(value.mean)}{half} (n={value.num_values})"


def shown_effect(value: Estimate | None) -> str:
    """An effect with its sign; of one block, or of none, nothing is known about chance."""
    return ("+" if value and value.mean > 0 else "") + shown_mean(value)


# The terminal


def print_report(report: Report, console: Console) -> None:
    """The ranked table and, where there is any of it, effects, the best against its base, and what the best wrote."""
    print_section(Section("", report.ranking.notes, report.ranking.table), console)
    effects = effects_section(report) if report.effects else None
    for section in (effects, base_section(report), samples_section(report, MOST_SAMPLES["terminal"])):
        if section:
            print_section(section, console)
    if report.ranking.metric and report.best.command:
        print_section(Section(f"The command that makes {report.best.name} again", [report.best.command]), console)


def print_section(section: Section, console: Console) -> None:
    if section.title:
        console.print(Text(f"\n{section.title}", style="bold"))
    for drawn in section.table.drawn(console) if section.table else []:
        console.print(drawn)
    for note in section.notes:
        console.print(Text(note))


# Markdown


def markdown(report: Report) -> str:
    """All of a report but its figures."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    ranking = report.ranking
    yield f"# {markdown_text(report.title)}"
    by = ranking.metric or "nothing: none is measured"
    yield f"\n{len(ranking.choices)} choices; {report.counts}. Ranked by {by}."
    yield from _parts(ranking.table, ranking.notes)
    samples = samples_section(report, MOST_SAMPLES["markdown"])
    for section in filter(None, (effects_section(report), base_section(report), samples)):
        yield f"\n## {markdown_text(section.title)}"
        yield from _parts(section.table, section.notes)
    yield "\n## The command that makes each again\n"
    for entry in [entry for choice in ranking.choices for entry in choice.entries]:
        yield f"- {markdown_text(entry.name)}\n\n{_fenced(entry.command or 'not recorded')}\n"


def _parts(table: TextTable | None, notes: Sequence[str]) -> Iterator[str]:
    yield from [f"\n{table.markdown()}"] if table else []
    yield from (f"\n{markdown_text(note)}" for note in notes)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return "\n".join(f"  {line}" for line in [f"{fence}bash", *text.splitlines(), fence])
