"""What a job and the sweep that started it tell each other, by files in the folder that TTUKTTAK_JOB names.

And what the processes of launch_ranks tell the one that started them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.environment import LAUNCH_FOLDER, MADE, process_rank
from llm.run.files import write_json, write_text

JOB_FOLDER, ANNOUNCED, VARYING = "TTUKTTAK_JOB", "run", "varying.json"


@dataclass(frozen=True)
class SweepJob:
    """What a process knows of the sweep that it is a job of."""

    sweep: str  # the name of the sweep's folder
    varying: dict[str, str]  # key -> value, of the overrides that tell this job from the others


def announce(stage: str, folder: Path) -> None:
    """Tell who started this process which run it is at: a sweep, launch_ranks, both or neither."""
    if process_rank() > 0:
        return
    if job := os.environ.get(JOB_FOLDER):
        write_text(Path(job) / ANNOUNCED, f"{stage}\n{folder}\n")
    if launch := os.environ.get(LAUNCH_FOLDER):
        write_text(Path(launch) / MADE, str(folder))


def tell_job(folder: Path, varying: Sequence[str]) -> None:
    """Tell a job, before it starts, which of its overrides the others do not have."""
    write_json(folder / VARYING, list(varying))


def sweep_job() -> SweepJob | None:
    """The job of a sweep that this process is; None outside of one."""
    if not (job := os.environ.get(JOB_FOLDER)):
        return None
    folder = Path(job)
    try:
        overrides = json.loads((folder / VARYING).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of a sweep that an earlier version began
        overrides = []
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return SweepJob(folder.parents[1].name, {key: value for key, _, value in pairs if key != "name"})
