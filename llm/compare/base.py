"""A choice -> what its config has otherwise than the base: what all jobs of its sweep share, or the bare stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm.compare.differing import ABSENT, NOT_CHOICES, flattened
from llm.compare.entries import Entry
from llm.compare.finding import shared_overrides
from llm.config import composed
from llm.errors import ConfigError


@dataclass(frozen=True)
class Difference:
    """A config against a base."""

    base: str  # what it is, in words
    rows: list[tuple[str, str, str]]  # key, in the base, in the config
    problem: str = ""  # why there is nothing to compare with


def difference(entry: Entry, entries: Sequence[Entry], *, is_sweep: bool) -> Difference | None:
    """How an entry's config differs from the base of its sweep, or else from the stage's defaults.

    None of an entry that has no config.
    """
    if entry.run is None or "stage" not in entry.config:
        return None
    shared = [o for o in shared_overrides(entries) if not o.startswith("hydra")] if is_sweep else []
    overrides = shared or [f"stage={entry.stage}"]
    words = " ".join(overrides)
    try:
        base = flattened({k: v for k, v in composed(overrides).items() if k not in NOT_CHOICES})
    except ConfigError as error:
        return Difference(words, [], f"{words} cannot be composed any more: {error}")
    mine = flattened({k: v for k, v in entry.config.items() if k not in NOT_CHOICES})
    rows = [
        (key, base.get(key, ABSENT), mine.get(key, ABSENT))
        for key in dict.fromkeys([*mine, *base])
        if base.get(key, ABSENT) != mine.get(key, ABSENT)
    ]
    return Difference(words, rows)
