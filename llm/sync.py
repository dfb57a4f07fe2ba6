"""Segments under outputs/wandb that W&B has not got -> uploaded, the oldest first, each once.

python -m llm.sync [--outputs outputs] [--project P] [--entity E] [--dry-run]

A torn file is uploaded as far as it is whole; what no segment has, as wandb's helper process was killed, is taken from
the run's metrics.jsonl. Interrupted, the same command goes on.
"""

import argparse
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from llm.config import LoggerConfig, WandbMode
from llm.errors import ConfigError, DamagedError, UserError, one_line_errors
from llm.logger import WANDB, Segment, cut_torn, id_of, read_segment, replay, run_folders
from llm.run import Run, candidates, log, metrics_of, start_logging
from llm.run.owner import is_owned

LOGIN_TIMEOUT_SECONDS = 10


class UploadError(UserError):
    """W&B does not take what it is sent."""

    exit_code = 74


@dataclass
class Waiting:
    """What there is to be done, and what was left alone."""

    segments: list[Segment] = field(default_factory=list)  # to be uploaded, the oldest first
    superseded: list[Segment] = field(default_factory=list)  # a later start of the run has sent what they have
    incomplete: list[Run] = field(default_factory=list)  # metrics.jsonl has records that no segment has
    num_synced: int = 0
    num_running: int = 0


def look(outputs: Path) -> Waiting:
    """What waits under outputs/wandb."""
    runs = {id_of(run): run for run in candidates(outputs)}
    running = {run_id for run_id, run in runs.items() if is_owned(run.path)}
    every = [read_segment(path) for folder in run_folders(outputs) for path in folder.glob("run-*.wandb")]
    waiting, of_run = Waiting(), defaultdict[str, list[Segment]](list)
    for segment in every:
        of_run[segment.run_id].append(segment)
    for segment in every:
        if segment.folder_id in running:
            waiting.num_running += 1
        elif segment.is_synced:
            waiting.num_synced += 1
        elif _is_superseded(segment, of_run[segment.run_id]):
            waiting.superseded.append(segment)
        else:
            waiting.segments.append(segment)
    waiting.incomplete = [
        runs[run_id]
        for run_id, segments in of_run.items()
        if run_id in runs and run_id not in running and _lacks_records(runs[run_id], segments)
    ]
    return waiting


def sync(outputs: Path, *, project: str | None, entity: str | None) -> int:
    """Upload what waits; the number of segments.

    Raises:
        UploadError: there is no login, or the server does not take it.
    """
    with _service(outputs.absolute()) as upload:
        before = look(outputs)
        for segment in before.superseded:
            segment.marker.touch()
        for segment in (each for each in before.segments if each.is_torn):
            cut_torn(segment)
            log.info("%s was torn: its whole records are kept, the file as it was is *.torn", segment.path)
        for run in before.incomplete:
            _complete(run, outputs)
        segments = look(outputs).segments
        for number, segment in enumerate(segments):
            _upload_one(segment, upload, project=project, entity=entity, place=f"{number + 1} of {len(segments)}")
    return len(segments)


def _is_superseded(segment: Segment, of_run: list[Segment]) -> bool:
    """Whether a later start was online and ended well: it has sent every record that the server lacked."""
    return any(each.is_online and each.is_synced for each in of_run[of_run.index(segment) + 1 :])


def _lacks_records(run: Run, segments: list[Segment]) -> bool:
    """Whether metrics.jsonl has records that no segment has."""
    steps = {step for segment in segments for step in segment.steps}
    try:
        return len(metrics_of(run)) > max(steps, default=-1) + 1
    except DamagedError as error:
        log.warning("what W&B's files may lack of it is not added: %s", error)
        return False


def _complete(run: Run, outputs: Path) -> None:
    """Write a segment of what the others lack, as a start that goes on with the run would."""
    settings = dict(run.config.get("logger") or {})
    known = {key: settings[key] for key in ("project", "entity", "group", "tags") if key in settings}
    replay(LoggerConfig(**known, mode=WandbMode.offline), run, outputs=outputs)
    log.info("%s: what W&B's files lacked of its metrics.jsonl was added", run.path)


def _upload_one(segment: Segment, upload: "Upload", *, project: str | None, entity: str | None, place: str) -> None:
    troubles = upload(segment.path, project or "", entity or "")
    if troubles or not segment.is_synced:
        segment.marker.unlink(missing_ok=True)
        raise UploadError(
            f"{segment.path.parent} could not be uploaded ({troubles or 'no reason is known'}), nor those after it. "
            f"It was {place}; the same command goes on from there."
        )
    log.info("uploaded %s: %s, %d records", place, segment.run_id, len(segment.steps))


Upload = Callable[[Path, str, str], str]  # (file, project, entity) -> what went wrong, or nothing


class _Troubles(logging.Handler):
    """Keeps the first thing that wandb complains of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage().strip().partition("\n")[0]


@contextmanager
def _service(outputs: Path) -> Iterator[Upload]:
    """wandb's own uploader, after a login that the server took.

    Raises:
        UploadError: there is none.
    """
    import wandb
    from wandb.cli import beta_sync  # what `wandb sync` calls; a process for each segment would take seconds each

    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(LOGIN_TIMEOUT_SECONDS))
    troubles, wandb_log = _Troubles(), logging.getLogger("wandb")
    wandb_log.propagate = False
    wandb_log.addHandler(troubles)
    try:
        _log_in(outputs)

        def upload(path: Path, project: str, entity: str) -> str:
            troubles.first, before = "", _log_sizes(outputs)
            beta_sync.sync(
                [path],
                live=False,
                entity=entity,
                project=project,
                run_id="",
                job_type="",
                replace_tags="",
                dry_run=False,
                skip_confirmation=True,
                skip_synced=False,
                skip_online=False,
                verbose=False,
                parallelism=1,
            )
            return troubles.first or _logged_error(outputs, path, before)

        yield upload
    finally:
        wandb_log.removeHandler(troubles)
        with suppress(Exception):
            wandb.teardown()


def _log_sizes(outputs: Path) -> dict[Path, int]:
    """The logs that wandb's uploader writes, and how long they are."""
    return {path: path.stat().st_size for path in (outputs / WANDB / "logs").glob("debug-sync*.log")}


def _logged_error(outputs: Path, path: Path, before: dict[Path, int]) -> str:
    """What ended the upload of a file, by what the logs have got since; empty if nothing did.

    wandb marks a file as synced and says nothing where the server refuses its records (seen with 0.31.0).
    """
    for log_file in _log_sizes(outputs):
        with log_file.open("rb") as file:
            file.seek(before.get(log_file, 0))
            lines = file.read().splitlines()
        for line in lines:
            with suppress(ValueError):
                said: dict[str, str] = json.loads(line)
                is_of_file = Path(said.get("sync_path", "")).absolute() == path.absolute()
                if is_of_file and said["level"].startswith("ERROR") and "fatal error" in said["msg"]:
                    return said["msg"].rpartition("failed to upload: ")[2].partition(" url=")[0]
    return ""


def _log_in(outputs: Path) -> None:
    import wandb

    try:
        settings = wandb.setup(wandb.Settings(silent=True, root_dir=str(outputs))).settings
        is_in = wandb.login(prompt=False, verify=True, timeout=LOGIN_TIMEOUT_SECONDS)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UploadError(f"{settings.base_url} takes no login ({reason.rstrip('.')}). Nothing was uploaded.") from None
    if not is_in:
        raise UploadError("there is no login to W&B. Nothing was uploaded. Log in: wandb login")


def _say(waiting: Waiting) -> None:
    for segment in waiting.segments:
        note = ", torn" if segment.is_torn else ""
        log.info("waits: %s (%d records%s)", segment.path.parent, len(segment.steps), note)
    for run in waiting.incomplete:
        log.info("waits: records of %s that are in its metrics.jsonl alone", run.path)


def _counts(waiting: Waiting) -> str:
    return (
        f"{waiting.num_synced} were uploaded before, {len(waiting.superseded)} have nothing that a later start did not "
        f"send, {waiting.num_running} are of runs that are being made"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.sync", description=__doc__.partition("\n")[0])
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the runs are (default: outputs)")
    parser.add_argument("--project", help="upload to this project, not to the one of each run")
    parser.add_argument("--entity", help="upload to this user or team")
    parser.add_argument("--dry-run", action="store_true", help="say what waits, and upload nothing")
    chosen = parser.parse_args(arguments)
    start_logging()
    with one_line_errors():
        if not chosen.outputs.is_dir():
            raise ConfigError(f"--outputs={chosen.outputs} is no folder. Give the one that the runs are in.")
        waiting = look(chosen.outputs)
        if chosen.dry_run:
            _say(waiting)
            log.info("%d segments wait; %s", len(waiting.segments), _counts(waiting))
            return
        num_uploaded = 0
        if waiting.segments or waiting.incomplete:
            num_uploaded = sync(chosen.outputs, project=chosen.project, entity=chosen.entity)
        log.info("%d segments uploaded; %s", num_uploaded, _counts(waiting))


if __name__ == "__main__":
    main()
