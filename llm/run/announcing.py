"""What a process and who started it, a sweep or launch_ranks, tell each other: files in the folder of TTUKTTAK_JOB."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llm.credentials import without_secrets
from llm.environment import is_launched, job_folder, process_rank
from llm.errors import LaunchError, is_out_of_memory, named_line
from llm.run.files import write_json
from llm.run.runs import Run

JOB, RESULT = "job.json", "result.json"


@dataclass(frozen=True)
class Result:
    """What a job says of itself: first which run it is at, and in the end what became of it."""

    kind: str | None = None  # done, stopped, busy, or a failure: killed, out_of_memory, diverged, config, data, failed
    message: str = ""
    stage: str | None = None
    run: str | None = None  # its folder

    @property
    def is_failure(self) -> bool:
        return self.kind not in ("done", "stopped", "busy")


def announce(stage: str, folder: Path) -> None:
    """Tell who started this process which run it is at."""
    if (job := job_folder()) and process_rank() == 0:
        write_result(job, Result(stage=stage, run=str(folder)))


@contextmanager
def reporting() -> Iterator[Callable[[Run], None]]:
    """Tell who started this process how the block ends; the function takes the run that is done."""

    def done(run: Run) -> None:
        if (job := job_folder()) and process_rank() == 0:
            write_result(job, Result("done", stage=run.stage, run=str(run.path)))

    try:
        yield done
    except BaseException as error:
        if job := job_folder():
            _tell_error(job, error)
        raise


def _tell_error(job: Path, error: BaseException) -> None:
    """Of several processes the first that failed by itself is right, or rank zero: others may only have lost it."""
    told = read_result(job) or Result()
    is_of_another = isinstance(error, LaunchError) or process_rank() > 0
    if (isinstance(error, LaunchError) and is_launched()) or (is_of_another and told.kind):
        return
    kind = getattr(error, "kind", None) or ("out_of_memory" if is_out_of_memory(error) else "failed")
    is_bug = not (hasattr(error, "exit_code") and str(error))
    message = named_line(error) if is_bug else " ".join(str(error).split())  # of what is no bug, as the user is told
    write_result(job, replace(told, kind=kind, message=without_secrets(message)))


def read_result(job: Path) -> Result | None:
    """What a job has said; None before it has."""
    try:
        return Result(**json.loads((job / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_result(job: Path, result: Result) -> None:
    write_json(job / RESULT, asdict(result))


def sweep_job() -> tuple[str | None, dict[str, str]]:
    """(the sweep that this process is a job of, the overrides that tell it from the others); outside of one nothing."""
    if not (folder := job_folder()) or not (folder / JOB).exists():
        return None, {}
    overrides = json.loads((folder / JOB).read_text(encoding="utf-8")).get("varying", [])
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return folder.parents[1].name, {key: value for key, _, value in pairs if key != "name"}
