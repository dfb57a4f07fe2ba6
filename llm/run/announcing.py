"""Where a run lies, told to the sweep that started it: TTUKTTAK_JOB names the folder to leave the word in."""

import os
from pathlib import Path

from llm.run.environment import process_rank
from llm.run.files import write_text

JOB_FOLDER, ANNOUNCED = "TTUKTTAK_JOB", "run"


def announce(stage: str, folder: Path) -> None:
    """Tell the sweep which run this process is at; outside of a sweep nothing."""
    if (job := os.environ.get(JOB_FOLDER)) and process_rank() == 0:
        write_text(Path(job) / ANNOUNCED, f"{stage}\n{folder}\n")
