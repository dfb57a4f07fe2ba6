"""The level of a cleaning config -> the names of its steps, in their order."""

from llm.config.documents import CleaningConfig, CleaningLevel

LIGHT = ("characters", "spaces", "personal_data", "exact_duplicates")
STEPS = (  # in the order in which they go: what is repaired is judged, and what is dropped need not be compared
    "characters",
    "markup",
    "spaces",
    "personal_data",
    "length",
    "hangul",
    "repetition",
    "exact_duplicates",
    "near_duplicates",
)
_OF_LEVEL = {CleaningLevel.off: (), CleaningLevel.light: LIGHT, CleaningLevel.strict: STEPS}


def steps_of(config: CleaningConfig) -> list[str]:
    """The steps that the config turns on, by its level or by themselves."""
    level = _OF_LEVEL[config.level]
    return [name for name in STEPS if (name in level if getattr(config, name) is None else getattr(config, name))]
