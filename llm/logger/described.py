"""A run -> what W&B shows of it beside its metrics: id, group, tags and config."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from llm.config.training import LoggerConfig
from llm.credentials import without_secrets
from llm.environment import agents_parameters, agents_run_id, agents_sweep
from llm.run.announcing import sweep_job
from llm.run.files import write_json
from llm.run.runs import WANDB_NOTE, Run

TAG_CHARACTERS = 64  # W&B takes no longer tag
BY_CHARACTER = "lost_characters"  # of a tokenizer: a number for each character of its text


@dataclass(frozen=True)
class Description:
    """Kept in the run's folder: a sync has not the environment of a sweep's job."""

    id: str
    group: str
    tags: list[str]
    parameters: list[str]  # keys and groups that an agent's sweep tries

    def arguments(self, run: Run) -> dict[str, Any]:
        """Those of wandb.init that say what the run is."""
        return {
            "id": self.id,
            "name": run.path.name,
            "group": self.group,
            "job_type": run.stage,
            "tags": self.tags,
            "config": beside_parameters(run.config, self.parameters),
        }


def describe(config: LoggerConfig, run: Run) -> Description:
    """Of a run that this process makes, which may be a job of a sweep or a trial of `wandb agent`."""
    trial_id, job = agents_run_id(), sweep_job()
    varying: dict[str, Any] = _trial_parameters() if trial_id else job.varying if job else {}
    sweep = agents_sweep() if trial_id else job.sweep if job else None
    tags = [*config.tags, *(tag(key, str(value)) for key, value in varying.items())]
    return Description(
        id=trial_id or f"{run.stage}-{run.path.name}",
        group=without_secrets(config.group or sweep or run.stage),
        tags=list(dict.fromkeys(map(without_secrets, tags))),
        parameters=list(varying) if trial_id else [],
    )


def keep_description(run: Run, description: Description) -> None:
    write_json(run.path / WANDB_NOTE, asdict(description))


def kept_description(run: Run) -> Description | None:
    """What W&B was told of the run; None if it was not, or by another version."""
    try:
        return Description(**json.loads((run.path / WANDB_NOTE).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None


def _trial_parameters() -> dict[str, Any]:
    """From the file that wandb reads too; empty where there is none, as under an agent of a function."""
    path = agents_parameters()
    given = yaml.safe_load(path.read_text(encoding="utf-8")) if path and path.exists() else None
    return {key: entry["value"] for key, entry in (given or {}).items() if isinstance(entry, dict) and "value" in entry}


def beside_parameters(config: dict[str, Any], parameters: list[str]) -> dict[str, Any]:
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
