"""The environment that `wandb agent` gives a process -> the trial of a W&B sweep that it is."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm.environment import AGENTS_SWEEP


@dataclass(frozen=True)
class Trial:
    """What W&B's agent says of the process that it started."""

    sweep: str
    run_id: str  # by which the sweep finds the trial's metric
    parameters: dict[str, Any]  # dotted key, or group -> the value that was given


def agents_trial() -> Trial | None:
    """None of a process that no agent started."""
    sweep, run_id = os.environ.get(AGENTS_SWEEP), os.environ.get("WANDB_RUN_ID")
    if not sweep or not run_id:
        return None
    return Trial(sweep, run_id, _parameters(os.environ.get("WANDB_SWEEP_PARAM_PATH")))


def _parameters(path: str | None) -> dict[str, Any]:
    """Of the file that wandb reads too; empty where there is none, as under an agent of a function."""
    if not path or not Path(path).is_file():
        return {}
    given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return {key: entry["value"] for key, entry in given.items() if isinstance(entry, dict) and "value" in entry}
