"""Runs under outputs that W&B has not got whole -> shown there as they would have been live, from their own files.

python -m llm.sync [--outputs outputs] [--project P] [--entity E] [--dry-run]

W&B is asked how many lines of each run's metrics.jsonl it has; the rest, the samples, the summary and the artifacts
are logged. Interrupted, the same command goes on; typed again, it uploads nothing.
"""

import argparse
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.config.training import LoggerConfig
from llm.environment import set_defaults
from llm.errors import ConfigError, DamagedError, StoppedError, UserError, first_line, one_line_errors
from llm.logger.live import begin, kill_service
from llm.logger.view import View, describe, kept_description
from llm.run.console import log, start_logging
from llm.run.owner import is_owned
from llm.run.record import SAMPLES
from llm.run.runs import Run, candidates, check_metrics, metrics_of

ANSWER_SECONDS = 10
START_SECONDS, UPLOAD_SECONDS = 60, 600  # of one run


class UploadError(UserError):
    """W&B does not take what it is sent."""

    exit_code = 74


@dataclass(frozen=True)
class Shown:
    """A run that W&B is to show, and how."""

    run: Run
    config: LoggerConfig
    description: dict[str, Any]
    num_records: int

    def is_whole(self, there: Any | None) -> bool:
        """Whether W&B has everything, by what it says of the run of this id."""
        if there is None or there.historyLineCount < self.num_records:
            return False
        return there.state == "finished" or not self.run.is_done


def find(outputs: Path, *, project: str | None = None, entity: str | None = None) -> tuple[list[Shown], int]:
    """(what W&B is to have, the number of runs that are being made), in its own project or the one that is given.

    A run that was made without W&B, or on the way of another stage, is none of them.
    """
    given = {key: value for key, value in (("project", project), ("entity", entity)) if value}
    found, num_running = [], 0
    for run in candidates(outputs):
        try:
            settings, kept = run.config.get("logger") or {"mode": "disabled"}, kept_description(run)
            if settings["mode"] == "disabled" or not (kept or run.is_done):
                continue
            if is_owned(run.path):
                num_running += 1
                continue
            named = {key: settings[key] for key in ("project", "entity", "group", "tags") & settings.keys()}
            config = LoggerConfig(**named | given)
            check_metrics(run, SAMPLES)
            found.append(Shown(run, config, kept or describe(config, run), len(metrics_of(run))))
        except (DamagedError, OSError, ValueError) as error:
            log.warning("left out: %s: %s", run.path, first_line(error))
    return found, num_running


def missing(found: list[Shown]) -> list[Shown]:
    """Those that W&B has not got whole.

    Raises:
        UploadError: there is no login, or W&B does not say what it has.
    """
    import wandb

    logging.getLogger("wandb").setLevel(logging.CRITICAL)  # what it says of itself, we say ourselves
    set_defaults({"WANDB_HTTP_TIMEOUT": str(ANSWER_SECONDS)})
    wandb.setup(wandb.Settings(silent=True))
    by_project = defaultdict[str, list[Shown]](list)
    for each in found:
        by_project["/".join(filter(None, (each.config.entity, each.config.project)))].append(each)
    try:
        if not wandb.login(prompt=False, verify=True, timeout=ANSWER_SECONDS):
            raise ConnectionError("there is no login: wandb login")
        api, waiting = wandb.Api(timeout=ANSWER_SECONDS), list[Shown]()
        for project, runs in by_project.items():
            there = {run.id: run for run in _runs(api, project, [each.description["id"] for each in runs])}
            waiting += [each for each in runs if not each.is_whole(there.get(each.description["id"]))]
    except Exception as error:
        reason = first_line(error).rstrip(".")
        raise UploadError(f"W&B does not say what it has ({reason}). Nothing was uploaded.") from None
    return waiting


def _runs(api: Any, project: str, ids: list[str]) -> list[Any]:
    """What W&B has of these ids; nothing where nothing was ever logged to the project."""
    try:
        return list(api.runs(project, {"name": {"$in": ids}}, per_page=200))  # an id is a name there
    except ValueError as error:
        if "Could not find project" in str(error):
            return []
        raise


def upload(shown: Shown, outputs: Path) -> None:
    """Show a run in W&B, or complete what that has of it; this machine's load and command line are no part of it."""
    run = shown.run
    wandb_run = begin(
        *(shown.config, run, shown.description),
        outputs=outputs,
        mode="online",
        x_disable_stats=True,
        x_disable_meta=True,
        init_timeout=START_SECONDS,
        finish_timeout=UPLOAD_SECONDS,
    )
    view = View(wandb_run, run)
    view.link_parents()
    view.catch_up()
    failed = 1 if run.state == "failed" else StoppedError.exit_code
    view.end(run.results, exit_code=0 if run.is_done else failed)


def sync(waiting: list[Shown], outputs: Path) -> None:
    """Upload what waits, the oldest first.

    Raises:
        UploadError: the server does not take one; those after it are not tried.
    """
    for number, each in enumerate(waiting, 1):
        try:
            upload(each, outputs)
        except Exception as error:
            kill_service()
            raise UploadError(
                f"{each.run.path} could not be uploaded ({first_line(error).rstrip('.')}), nor those after it. It was "
                f"{number} of {len(waiting)}; the same command goes on from there."
            ) from None
        log.info("uploaded %d of %d: %s, %d records", number, len(waiting), each.run.path, each.num_records)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.sync", description=__doc__.partition("\n")[0])
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the runs are (default: outputs)")
    parser.add_argument("--project", help="upload to this project, not to the one of each run")
    parser.add_argument("--entity", help="upload to this user or team")
    parser.add_argument("--dry-run", action="store_true", help="say what W&B lacks, and upload nothing")
    chosen = parser.parse_args(arguments)
    start_logging()
    with one_line_errors():
        if not chosen.outputs.is_dir():
            raise ConfigError(f"--outputs={chosen.outputs} is no folder. Give the one that the runs are in.")
        found, num_running = find(chosen.outputs, project=chosen.project, entity=chosen.entity)
        waiting = missing(found) if found else []
        if chosen.dry_run:
            for each in waiting:
                log.info("waits: %s (%d records)", each.run.path, each.num_records)
        else:
            sync(waiting, chosen.outputs)
        log.info(
            "%d runs %s; W&B had %d whole, %d are being made",
            *(len(waiting), "wait" if chosen.dry_run else "uploaded", len(found) - len(waiting), num_running),
        )


if __name__ == "__main__":
    main()
