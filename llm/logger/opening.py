"""A run and its logger's settings -> its W&B run, opened, and one line that says where W&B writes and why."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from llm.config import LoggerConfig, WandbMode
from llm.credentials import without_secrets
from llm.errors import DivergedError, StoppedError
from llm.logger import view
from llm.logger.described import description
from llm.logger.segments import segments_of
from llm.logger.trial import agents_trial
from llm.logger.view import RunLogger, first_line
from llm.logger.watching import StopWatch
from llm.run import Run, log, process_rank

LOGIN_TIMEOUT_SECONDS = 3
START_TIMEOUT_SECONDS = 6  # a server that took a login and then fails holds up a run no longer


@contextmanager
def open_logger(config: LoggerConfig, run: Run, *, outputs: Path) -> Iterator[RunLogger]:
    """A logger for as long as the block runs: each run of a sweep gets a W&B run of its own."""
    if config.mode is WandbMode.disabled or process_rank() > 0:
        yield RunLogger(None)
        return
    logger = _start(config, run, outputs=outputs)
    try:
        logger.link_parents()
        yield logger
    except BaseException as error:
        if isinstance(error, DivergedError):
            logger.alert("The run diverged", str(error))
        logger.finish(exit_code=_exit_code(error))
        raise
    else:
        logger.link_made()
        logger.finish(exit_code=0)


def _exit_code(error: BaseException) -> int:
    """A trial that is stopped has ended well: of one that failed, a sweep does not use what it measured."""
    if isinstance(error, StoppedError) and agents_trial():
        return 0
    return int(getattr(error, "exit_code", 1)) or 1


def _start(config: LoggerConfig, run: Run, *, outputs: Path) -> RunLogger:
    """One line says where W&B writes and why."""
    import wandb

    wandb_log = logging.getLogger("wandb")
    wandb_log.setLevel(logging.CRITICAL)  # what it says of itself, we say ourselves
    mode, reason = _mode(config)
    if mode == "online":
        watch = StopWatch()
        try:
            wandb_run = _init(config, run, outputs, mode="online", watch=watch)
        except Exception as error:  # an unreachable server must not stop a run
            with suppress(Exception):
                wandb.teardown()  # else its service says that the id is in use
            mode, reason = "offline", f"for it could not start online ({first_line(error)})"
        else:
            log.info("wandb is online, %s: %s", reason, wandb_run.url)
            logger = RunLogger(wandb_run, run=run, sent=wandb_run.step)
            logger.watch(watch)
            watch.start(wandb_run, logger.refuse)
            return logger
    if mode == "disabled":
        log.info("wandb is disabled, %s", reason)
        return RunLogger(None)
    try:
        sent = _count_sent(run, outputs)  # before there is a segment of this attempt
        wandb_run = _init(config, run, outputs, mode="offline", watch=None)
    except Exception as error:
        log.warning("wandb could not start (%s); the run goes on without it", first_line(error))
        return RunLogger(None)
    log.info("wandb is offline, %s: %s. Upload: python -m llm.sync", reason, Path(wandb_run.dir).parent)
    return RunLogger(wandb_run, run=run, sent=sent)


def _init(
    config: LoggerConfig, run: Run, outputs: Path, *, mode: Literal["online", "offline"], watch: StopWatch | None
) -> Any:
    """A W&B run whose id is the run's own, so that a resumed run goes on in it."""
    import wandb

    folder = outputs.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _command_line_without_secrets():
        wandb_run = wandb.init(
            project=config.project,
            entity=config.entity,
            id=id_of(run),
            mode=mode,
            resume="allow",
            reinit="finish_previous",  # one that failed must not take the next run's records
            dir=folder,
            settings=wandb.Settings(
                x_transaction_log_flush_interval=1,
                init_timeout=START_TIMEOUT_SECONDS,
                finish_timeout=view.FINISH_TIMEOUT_SECONDS,
                finish_timeout_raises=True,
                silent=True,
                console="off",
                save_code=False,  # with the code goes a patch of all that is not committed, a key in a YAML too
                stop_fn=(lambda: watch.ask()) if watch else None,  # no bound method: wandb copies its settings deeply
            ),
            **description(config, run),
        )
    wandb_run.define_metric("*", step_metric="tokens")
    return wandb_run


@contextmanager
def _command_line_without_secrets() -> Iterator[None]:
    """wandb.init keeps and uploads sys.argv; no setting leaves that out but for all it says of the machine (0.31.0)."""
    typed = sys.argv
    sys.argv = list(map(without_secrets, typed))
    try:
        yield
    finally:
        sys.argv = typed


def id_of(run: Run) -> str:
    """W&B's id of a run; under `wandb agent` the one that it gave, by which a sweep finds its trial."""
    trial = agents_trial()
    return trial.run_id if trial else f"{run.stage}-{run.path.name}"


def _count_sent(run: Run, outputs: Path) -> int:
    """Records that earlier attempts left under outputs/wandb."""
    steps = {step for segment in segments_of(outputs, id_of(run)) for step in segment.steps}
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
        return "offline", f"for logging in failed ({first_line(error)})"
    if logged_in:
        return "online", "for a login was found"
    return "offline", "for no login was found (wandb login changes that)"
