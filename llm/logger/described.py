"""A run -> what W&B shows of it beside its metrics: group, tags, the order of its config, and how it is named."""

from typing import Any

from llm.config import LoggerConfig
from llm.credentials import without_secrets
from llm.logger.trial import agents_trial
from llm.run import Run, sweep_job

TAG_CHARACTERS = 64  # W&B takes no longer tag
BY_CHARACTER = "lost_characters"  # of a tokenizer: a number for each character of its text


def description(config: LoggerConfig, run: Run) -> dict[str, Any]:
    """The arguments of wandb.init that say what a run is; those of a job of a sweep say what it tries."""
    job, trial = sweep_job(), agents_trial()
    varying: dict[str, Any] = trial.parameters if trial else job.varying if job else {}
    sweep = trial.sweep if trial else job.sweep if job else None
    tags = [*config.tags, *(tag(key, str(value)) for key, value in varying.items())]
    return {
        "name": run.path.name,
        "group": without_secrets(config.group or sweep or run.stage),
        "job_type": run.stage,
        "tags": list(dict.fromkeys(map(without_secrets, tags))),
        "config": first(beside_parameters(run.config, trial.parameters if trial else {}), list(varying)),
    }


def beside_parameters(config: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The config with the settings of each group that is a parameter of an agent's sweep under dotted keys.

    The group's own name is the parameter's in W&B, which keeps it to the choice: gpt2_tiny, not what that is.
    """
    chosen = {group for group in parameters if isinstance(config.get(group), dict)}
    dotted = {f"{group}.{key}": value for group in sorted(chosen) for key, value in config[group].items()}
    return {key: value for key, value in config.items() if key not in chosen} | dotted


def numbers(results: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among a run's results, nested ones under names with slashes: train/documents."""
    found: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, dict) and key != BY_CHARACTER:
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = value
    return found


def tag(key: str, value: str) -> str:
    """key=value in the characters that a tag may have: the key gives way first, from its beginning."""
    for name in (key, key.rpartition(".")[2]):
        if len(text := f"{name}={value}") <= TAG_CHARACTERS:
            return text
    return text[: TAG_CHARACTERS - 1] + "…"


def first(config: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The config with these dotted keys, and the groups that they are in, before the others."""
    nested: dict[str, list[str]] = {}
    for key in keys:
        head, _, rest = key.partition(".")
        if head in config:
            nested.setdefault(head, []).extend([rest] if rest else [])
    ordered = {head: config[head] for head in nested} | config
    inner = {head: first(config[head], rests) for head, rests in nested.items() if isinstance(config[head], dict)}
    return ordered | inner
