"""Metrics and samples -> Weights & Biases, online when it can log in, else offline; a view of metrics.jsonl."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from llm.config import LoggerConfig, WandbMode
from llm.run import Run, log, process_rank

LOGIN_TIMEOUT_SECONDS = 3
START_TIMEOUT_SECONDS = 6  # a server that took a login and then fails holds up a run no longer
FINISH_TIMEOUT_SECONDS = 60  # for what is still to be uploaded; the rest stays on the disk
READ_TIMEOUT_SECONDS = 60  # for what an earlier attempt left


class RunLogger:
    """One W&B run for one run folder; does nothing where logging is disabled. Nothing that W&B does can stop a run."""

    def __init__(self, wandb_run: Any | None, *, sent: int = 0) -> None:
        self._run, self._sent = wandb_run, sent  # records of metrics.jsonl that W&B has from earlier attempts
        self._next = 0  # the line of metrics.jsonl that comes next, which is W&B's step

    def go_on(self, records: list[dict[str, Any]]) -> None:
        """Begin after these lines of metrics.jsonl; those that W&B did not get, as its process was killed, are sent."""
        for record in records:
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Send the next record of metrics.jsonl, unless W&B has it; `tokens` is the x axis."""
        step = self._next
        self._next += 1
        if self._run is not None and step >= self._sent:
            self._guarded(lambda run: run.log(record, step=step, commit=True))

    def log_samples(self, samples: list[dict[str, Any]]) -> None:
        """Send all samples of the run so far as a table of step, prompt and text, with the record that comes next."""
        if self._run is None or not samples or self._next < self._sent:
            return
        import wandb

        columns = list(samples[0])
        rows = [[sample[column] for column in columns] for sample in samples]
        table = wandb.Table(columns=columns, data=rows)
        self._guarded(lambda run: run.log({"samples": table}, step=self._next, commit=False))

    def summarize(self, results: dict[str, Any]) -> None:
        """Set the run's summary: what a table of runs shows."""
        if self._run is not None:
            self._guarded(lambda run: run.summary.update(results))

    def finish(self, *, failed: bool) -> None:
        """End the W&B run."""
        if self._run is None:
            return
        folder = Path(self._run.dir).parent
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:  # as in _guarded
            log.warning(
                "wandb did not get everything (%s). Upload the rest: wandb sync --include-online %s",
                _first_line(error).rstrip("."),
                folder,
            )
        self._run = None

    def _guarded(self, action: Any) -> None:
        try:
            action(self._run)
        except Exception as error:  # whatever W&B raises, the run goes on; metrics.jsonl has it all
            log.warning("wandb: %s; the run goes on without it, metrics.jsonl has everything", error)
            self._run = None


@contextmanager
def open_logger(config: LoggerConfig, run: Run, *, outputs: Path) -> Iterator[RunLogger]:
    """A logger for as long as the block runs: each run of a sweep gets a W&B run of its own."""
    logger = _start(config, run, outputs=outputs) if process_rank() == 0 else RunLogger(None)
    try:
        yield logger
    except BaseException:
        logger.finish(failed=True)
        raise
    logger.finish(failed=False)


def _start(config: LoggerConfig, run: Run, *, outputs: Path) -> RunLogger:
    """One line says where W&B writes and why."""
    if config.mode is WandbMode.disabled:
        return RunLogger(None)
    import wandb

    logging.getLogger("wandb").setLevel(logging.CRITICAL)  # what it says of itself, we say ourselves
    mode, reason = _mode(config)
    if mode == "online":
        try:
            wandb_run = _init(config, run, outputs, mode="online")
        except Exception as error:  # an unreachable server must not stop a run
            wandb.teardown()  # else its service says that the id is in use
            mode, reason = "offline", f"for it could not start online ({_first_line(error)})"
        else:
            log.info("wandb is online, %s: %s", reason, wandb_run.url)
            return RunLogger(wandb_run, sent=wandb_run.step)
    if mode == "disabled":
        log.info("wandb is disabled, %s", reason)
        return RunLogger(None)
    try:
        sent = _count_sent(run, outputs / "wandb")  # before there is a segment of this attempt
        wandb_run = _init(config, run, outputs, mode="offline")
    except Exception as error:
        log.warning("wandb could not start (%s); the run goes on without it", _first_line(error))
        return RunLogger(None)
    log.info("wandb is offline, %s. Upload: wandb sync %s", reason, Path(wandb_run.dir).parent)
    return RunLogger(wandb_run, sent=sent)


def _init(config: LoggerConfig, run: Run, outputs: Path, *, mode: Literal["online", "offline"]) -> Any:
    """A W&B run whose id is the run's own, so that a resumed run goes on in it."""
    import wandb

    folder = outputs.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    wandb_run = wandb.init(
        project=config.project,
        entity=config.entity,
        id=_id_of(run),
        name=run.path.name,
        group=config.group or run.stage,
        job_type=run.stage,
        tags=config.tags,
        config=run.config,
        mode=mode,
        resume="allow",
        reinit="finish_previous",  # one that failed must not take the next run's records
        dir=folder,
        settings=wandb.Settings(
            x_transaction_log_flush_interval=1,
            init_timeout=START_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            finish_timeout_raises=True,
            silent=True,
            console="off",
        ),
    )
    wandb_run.define_metric("*", step_metric="tokens")
    return wandb_run


def _id_of(run: Run) -> str:
    return f"{run.stage}-{run.path.name}"


def _count_sent(run: Run, folder: Path) -> int:
    """Records that earlier attempts left in `folder`, read by wandb's own reader, which bears a torn end."""
    steps = set()
    for segment in folder.glob(f"*run-*-{_id_of(run)}"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=READ_TIMEOUT_SECONDS)
        records = (json.loads(line) for line in done.stdout.splitlines())
        steps |= {record["history"]["step"].get("num", 0) for record in records if record["type"] == "history"}
    return max(steps) + 1 if steps else 0


def _mode(config: LoggerConfig) -> tuple[Literal["online", "offline", "disabled"], str]:
    """(mode, why)."""
    if config.mode is WandbMode.online:
        return "online", "as logger.mode says"
    if config.mode is WandbMode.offline:
        return "offline", "as logger.mode says"
    import wandb

    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(LOGIN_TIMEOUT_SECONDS))
    try:
        chosen = wandb.setup(wandb.Settings(silent=True)).settings.mode  # WANDB_MODE, or wandb's own settings file
        if chosen == "disabled":
            return "disabled", "as wandb's own settings say"
        if chosen != "online":
            return "offline", "as wandb's own settings say"
        logged_in = wandb.login(prompt=False, verify=True, timeout=LOGIN_TIMEOUT_SECONDS)
    except Exception as error:
        return "offline", f"for logging in failed ({_first_line(error)})"
    if logged_in:
        return "online", "for a login was found"
    return "offline", "for no login was found (wandb login changes that)"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
