"""Somebody who stops an online run in W&B, by the tag `stop` or the button -> a signal to this process."""

import signal
import threading
import time
from typing import Any

from llm.logger.view import ANSWER_SECONDS
from llm.run.console import log

STOP_TAG, LOOK_SECONDS = "stop", 30.0  # and between two looks at the tags


class StopTag:
    """Looks now and then at the tags of a W&B run."""

    def __init__(self, wandb_run: Any) -> None:
        self._wandb_run, self._next_look = wandb_run, 0.0
        self._seen: Any = None  # the run, as W&B last told of it

    def look(self) -> None:
        """Stop this process if the tag came since the first look: one from before has had its effect."""
        import wandb

        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        is_first = self._seen is None
        try:
            self._seen = self._seen or wandb.Api(timeout=ANSWER_SECONDS).run(self._wandb_run.path)
            self._seen.load(force=True)
        except Exception:  # a server that does not answer: there will be another look
            return
        if STOP_TAG in self._seen.tags:
            self._wandb_run.tags = tuple(each for each in self._seen.tags if each != STOP_TAG)
            if is_first:
                log.info("the tag %s in W&B is from before this start, and was taken off", STOP_TAG)
            else:
                self._next_look = float("inf")
                stop_process(f"the tag {STOP_TAG} in W&B")


def stop_process(by: str = "the stop button in W&B") -> None:
    """Have this process save and end, as by a signal."""
    log.info("%s asks the run to stop: it saves, and ends", by)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
