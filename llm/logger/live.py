"""A run that is being made -> its W&B run, in a thread of its own: the caller never waits, whatever W&B does."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from llm.config.stages import StageConfig
from llm.config.training import LoggerConfig, WandbMode
from llm.credentials import without_secrets
from llm.environment import agents_run_id, process_rank, set_defaults
from llm.errors import DivergedError, StoppedError, first_line
from llm.logger.view import View, arguments, describe, keep_description
from llm.run.console import log
from llm.run.runs import Run

LOGIN_SECONDS = 3
START_SECONDS = 6  # a server that took a login and then fails holds up a run no longer
FOLLOW_SECONDS = 1.0  # between two looks at the run's files
FINISH_SECONDS = 45  # for what is still to be uploaded; the rest stays on the disk
END_SECONDS = 55  # until a thread that does not end is given up
WANDB = "wandb"  # the folder under outputs
UPLOAD = "python -m llm.sync"


class RunLogger:
    """Shows a run while it is made; does nothing where logging is disabled. Nothing that W&B does can stop a run."""

    def __init__(self, view: View | None = None) -> None:
        self._results: dict[str, Any] = {}
        self._ending: dict[str, Any] = {}
        self._is_followed, self._has_ended, self._has_given_up = False, threading.Event(), False
        self._thread = threading.Thread(target=self._work, args=(view,), name="wandb-view", daemon=True)
        if view:
            self._thread.start()

    def follow(self) -> None:
        """Show metrics.jsonl and samples.jsonl from now on: nothing that they have is cut off again."""
        self._is_followed = True

    def summarize(self, results: dict[str, Any]) -> None:
        """Set the run's summary, which a table of runs shows."""
        self._results = results

    def finish(self, *, exit_code: int, alert: str = "") -> None:
        """Send what is left, and end the W&B run."""
        if not self._thread.is_alive():
            return
        self._ending = {"exit_code": exit_code, "alert": alert}
        self._has_ended.set()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            self._give_up("it does not answer")

    def _work(self, view: View) -> None:
        """What the thread does."""
        try:
            view.link_parents()
            has_ended = False
            while not has_ended:
                has_ended = self._has_ended.wait(FOLLOW_SECONDS)
                if self._is_followed:
                    view.catch_up()
            view.end(self._results, **self._ending)
        except Exception as error:  # whatever W&B raises, the run goes on; metrics.jsonl has it all
            self._give_up(first_line(error).rstrip("."))

    def _give_up(self, reason: str) -> None:
        if not self._has_given_up:  # it is said once
            self._has_given_up = True
            what = "did not get everything" if self._has_ended.is_set() else "is left out from here on"
            log.warning("wandb %s (%s); metrics.jsonl has it all. Upload the rest: %s", what, reason, UPLOAD)
            kill_service()


def kill_service() -> None:
    """End wandb's helper process at once, so that nothing waits for it, the process's own end included.

    What it has written stays. There is no public way: teardown() waits for it, or raises, as it cannot say goodbye.
    """
    import wandb
    from wandb.sdk import wandb_setup

    def tear_down() -> None:
        with suppress(Exception):
            wandb.teardown()

    with suppress(Exception):
        connection: Any = wandb_setup.singleton()._connection
        connection._proc._process.kill()
        connection._proc._process.wait(1)
    teardown = threading.Thread(target=tear_down, daemon=True)
    teardown.start()
    teardown.join(2)


@contextmanager
def open_logger(config: LoggerConfig, run: Run, *, outputs: Path) -> Iterator[RunLogger]:
    """A logger for as long as the block runs: each run of a sweep gets a W&B run of its own."""
    is_wanted = config.mode is not WandbMode.disabled and process_rank() == 0
    logger = RunLogger(_start(config, run, outputs=outputs) if is_wanted else None)
    try:
        yield logger
    except BaseException as error:
        # A trial that is stopped has ended well: of one that failed, a sweep does not use what it measured.
        is_stopped_trial = isinstance(error, StoppedError) and agents_run_id() is not None
        exit_code = 0 if is_stopped_trial else int(getattr(error, "exit_code", 1)) or 1
        logger.finish(exit_code=exit_code, alert=str(error) if isinstance(error, DivergedError) else "")
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


def _start(config: LoggerConfig, run: Run, *, outputs: Path) -> View | None:
    """One line says where W&B writes and why."""
    import wandb

    logging.getLogger("wandb").setLevel(logging.CRITICAL)  # what it says of itself, we say ourselves
    chosen, reason = _mode(config)
    if chosen == "disabled":
        log.info("wandb is disabled, %s", reason)
        return None
    keep_description(run, description := describe(config, run))
    modes: list[Literal["online", "offline"]] = ["online", "offline"] if chosen == "online" else ["offline"]
    for mode in modes:
        try:
            wandb_run = begin(config, run, description, outputs=outputs, mode=mode)
        except Exception as error:  # an unreachable server must not stop a run
            failed = first_line(error)
            reason = f"for it could not start {mode} ({failed})"
            with suppress(Exception):
                wandb.teardown()  # else its service says that the id is in use
            continue
        where = wandb_run.url if mode == "online" else f"{Path(wandb_run.dir).parent}. Upload: {UPLOAD}"
        log.info("wandb is %s, %s: %s", mode, reason, where)
        return View(wandb_run, run)
    log.warning("wandb could not start (%s); the run goes on without it", failed)
    return None


def _mode(config: LoggerConfig) -> tuple[Literal["online", "offline", "disabled"], str]:
    """(mode, why)."""
    if config.mode is not WandbMode.auto:
        return ("online" if config.mode is WandbMode.online else "offline"), "as logger.mode says"
    import wandb

    set_defaults({"WANDB_HTTP_TIMEOUT": str(LOGIN_SECONDS)})
    try:
        chosen = wandb.setup(wandb.Settings(silent=True)).settings.mode  # WANDB_MODE, or wandb's own settings file
        if chosen != "online":
            return ("disabled" if chosen == "disabled" else "offline"), "as wandb's own settings say"
        if wandb.login(prompt=False, verify=True, timeout=LOGIN_SECONDS):
            return "online", "for a login was found"
    except Exception as error:
        return "offline", f"for logging in failed ({first_line(error)})"
    return "offline", "for no login was found (wandb login changes that)"


def begin(
    config: LoggerConfig,
    run: Run,
    description: dict[str, Any],
    *,
    outputs: Path,
    mode: Literal["online", "offline"],
    **settings: Any,
) -> Any:
    """A W&B run whose id is the run's own, so that a resumed run goes on in it; `settings` are those of wandb."""
    import wandb

    outputs.mkdir(parents=True, exist_ok=True)
    usual = {
        "init_timeout": START_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "finish_timeout_raises": True,
        "silent": True,
        "console": "off",
        "save_code": False,  # with the code goes a patch of all that is not committed, a key in a YAML too
        "stop_fn": _stop_process,
    }
    with _command_line_without_secrets():
        wandb_run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=mode,
            resume="allow",
            reinit="finish_previous",  # one that failed must not take the next run's records
            dir=outputs.absolute(),
            settings=wandb.Settings(**usual | settings),
            **arguments(run, description),
        )
    wandb_run.define_metric("*", step_metric="tokens")
    return wandb_run


def _stop_process() -> None:
    """Have this process save and end, as by a signal, where the stop button is pressed.

    An agent sends a signal of its own, and a second one would end its trial before it has saved.
    """
    if agents_run_id() is None:
        log.info("the stop button in W&B asks the run to stop: it saves, and ends")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def _command_line_without_secrets() -> Iterator[None]:
    """wandb.init keeps and uploads sys.argv; no setting leaves that out but for all it says of the machine (0.31.0)."""
    typed = sys.argv
    sys.argv = list(map(without_secrets, typed))
    try:
        yield
    finally:
        sys.argv = typed
