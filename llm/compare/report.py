"""What was found -> everything that a comparison shows, whichever way it is shown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.compare.base import Difference, difference
from llm.compare.choices import Study, study
from llm.compare.effects import Effect, effects_of
from llm.compare.finding import Found
from llm.compare.tables import Comparison, comparison

NO_EFFECT = "No marginal effects: they need at least two finished choices that differ."


@dataclass(frozen=True, kw_only=True)
class Report:
    """A comparison."""

    title: str
    study: Study
    ranking: Comparison
    effects: list[Effect]
    base: Difference | None  # of the best choice
    sweep: Path | None

    @property
    def counts(self) -> str:
        """Runs by their state."""
        states = Counter(entry.state for choice in self.study.choices for entry in choice.entries)
        return ", ".join(f"{count} {state}" for state, count in states.most_common())

    @property
    def effect_notes(self) -> list[str]:
        """What to know about the marginal effects."""
        if not self.effects:
            return [NO_EFFECT]
        left_out = sum(not choice.is_done for choice in self.study.choices)
        notes = [
            "Mean: over all choices with that value. Effect: against the mean of all values, within blocks of choices "
            "that are alike in every other key; ± is half of the 95 % interval over the blocks (Student's t)."
        ]
        if left_out:
            notes.append(f"{left_out} choices that are not done are left out.")
        return notes


def report_of(
    found: Found, *, title: str, metric: str | None = None, is_highest_best: bool = False, keys: Sequence[str] = ()
) -> Report:
    """The comparison of what was found, by default of a search by its objective.

    Raises:
        ConfigError: a metric that no run has, or a key that does not differ.
        DamagedError: a finished run's config is not what it was.
    """
    for entry in found.entries:
        entry.verify()
    if metric is None and (objective := found.objective):
        metric, is_highest_best = objective.metric, is_highest_best or objective.is_highest_best
    made = study(found.entries, metric=metric, is_highest_best=is_highest_best)
    if found.num_repeated:
        made.notes.append(f"{found.num_repeated} stand for runs that are shown already.")
    effects = effects_of(made, only=keys)
    best = made.choices[0].best
    base = difference(best, found.entries, is_sweep=found.sweep is not None)
    return Report(title=title, study=made, ranking=comparison(made), effects=effects, base=base, sweep=found.sweep)
