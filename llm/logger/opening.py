"""A run and its logger's settings -> its W&B run, opened, and one line that says where W&B writes and why."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from llm.config.stages import StageConfig
from llm.config.training import LoggerConfig, WandbMode
from llm.credentials import without_secrets
from llm.environment import agents_run_id, process_rank, set_defaults
from llm.errors import DivergedError, StoppedError, first_line
from llm.logger import live
from llm.logger.described import Description, describe, keep_description
from llm.logger.live import RunLogger
from llm.logger.stopping import stop_process
from llm.logger.view import View
from llm.run.console import log
from llm.run.runs import Run

LOGIN_SECONDS = 3
START_SECONDS = 6  # a server that took a login and then fails holds up a run no longer
WANDB = "wandb"  # the folder under outputs


@contextmanager
def open_logger(config: LoggerConfig, run: Run, *, outputs: Path) -> Iterator[RunLogger]:
    """A logger for as long as the block runs: each run of a sweep gets a W&B run of its own."""
    is_wanted = config.mode is not WandbMode.disabled and process_rank() == 0
    logger = _start(config, run, outputs=outputs) if is_wanted else RunLogger()
    try:
        yield logger
    except BaseException as error:
        logger.finish(exit_code=_exit_code(error), alert=str(error) if isinstance(error, DivergedError) else "")
        raise
    else:
        logger.finish(exit_code=0)


def show_trial(stage: StageConfig, run: Run) -> None:
    """Give an agent's trial the metrics of a run that was made before, or by another trial: a sweep waits for them.

    Does nothing where this process made the run, or is no agent's.
    """
    trial_id, config, outputs = agents_run_id(), getattr(stage, "logger", None), Path(stage.outputs)
    if trial_id is None or config is None or process_rank() > 0:
        return
    if config.mode is not WandbMode.disabled and not any((outputs / WANDB).glob(f"*run-*-{trial_id}")):
        log.info("the trial %s of wandb's agent is this finished run: its metrics are logged anew", trial_id)
        with open_logger(config, run, outputs=outputs) as logger:
            logger.follow()
            logger.summarize(run.results)


def begin(
    config: LoggerConfig,
    run: Run,
    description: Description,
    *,
    outputs: Path,
    mode: Literal["online", "offline"],
    **settings: Any,
) -> Any:
    """A W&B run whose id is the run's own, so that a resumed run goes on in it; `settings` are those of wandb."""
    import wandb

    folder = outputs.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    usual = {
        "x_transaction_log_flush_interval": 1,  # so that `wandb leet` shows a run as it goes
        "init_timeout": START_SECONDS,
        "finish_timeout": live.FINISH_SECONDS,
        "finish_timeout_raises": True,
        "silent": True,
        "console": "off",
        "save_code": False,  # with the code goes a patch of all that is not committed, a key in a YAML too
        "stop_fn": _leave_it_to_the_agent if agents_run_id() else stop_process,
    }
    with _command_line_without_secrets():
        wandb_run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=mode,
            resume="allow",
            reinit="finish_previous",  # one that failed must not take the next run's records
            dir=folder,
            settings=wandb.Settings(**usual | settings),
            **description.arguments(run),
        )
    wandb_run.define_metric("*", step_metric="tokens")
    return wandb_run


def _leave_it_to_the_agent() -> None:
    """It sends a signal of its own, and a second one would end the process before it has saved."""


def _exit_code(error: BaseException) -> int:
    """A trial that is stopped has ended well: of one that failed, a sweep does not use what it measured."""
    if isinstance(error, StoppedError) and agents_run_id():
        return 0
    return int(getattr(error, "exit_code", 1)) or 1


def _start(config: LoggerConfig, run: Run, *, outputs: Path) -> RunLogger:
    """One line says where W&B writes and why."""
    import wandb

    logging.getLogger("wandb").setLevel(logging.CRITICAL)  # what it says of itself, we say ourselves
    mode, reason = _mode(config)
    if mode == "disabled":
        log.info("wandb is disabled, %s", reason)
        return RunLogger()
    description = describe(config, run)
    keep_description(run, description)
    if mode == "online":
        try:
            wandb_run = begin(config, run, description, outputs=outputs, mode="online")
        except Exception as error:  # an unreachable server must not stop a run
            with suppress(Exception):
                wandb.teardown()  # else its service says that the id is in use
            reason = f"for it could not start online ({first_line(error)})"
        else:
            log.info("wandb is online, %s: %s", reason, wandb_run.url)
            return RunLogger(View(wandb_run, run))
    try:
        wandb_run = begin(config, run, description, outputs=outputs, mode="offline")
    except Exception as error:
        log.warning("wandb could not start (%s); the run goes on without it", first_line(error))
        return RunLogger()
    log.info("wandb is offline, %s: %s. Upload: python -m llm.sync", reason, Path(wandb_run.dir).parent)
    return RunLogger(View(wandb_run, run))


@contextmanager
def _command_line_without_secrets() -> Iterator[None]:
    """wandb.init keeps and uploads sys.argv; no setting leaves that out but for all it says of the machine (0.31.0)."""
    typed = sys.argv
    sys.argv = list(map(without_secrets, typed))
    try:
        yield
    finally:
        sys.argv = typed


def _mode(config: LoggerConfig) -> tuple[Literal["online", "offline", "disabled"], str]:
    """(mode, why)."""
    if config.mode is WandbMode.online:
        return "online", "as logger.mode says"
    if config.mode is WandbMode.offline:
        return "offline", "as logger.mode says"
    import wandb

    set_defaults({"WANDB_HTTP_TIMEOUT": str(LOGIN_SECONDS)})
    try:
        chosen = wandb.setup(wandb.Settings(silent=True)).settings.mode  # WANDB_MODE, or wandb's own settings file
        if chosen == "disabled":
            return "disabled", "as wandb's own settings say"
        if chosen != "online":
            return "offline", "as wandb's own settings say"
        logged_in = wandb.login(prompt=False, verify=True, timeout=LOGIN_SECONDS)
    except Exception as error:
        return "offline", f"for logging in failed ({first_line(error)})"
    if logged_in:
        return "online", "for a login was found"
    return "offline", "for no login was found (wandb login changes that)"
