"""A run that is being made -> its W&B run, in a thread of its own: the caller never waits, whatever W&B does."""

import threading
from contextlib import suppress
from typing import Any

from llm.errors import first_line
from llm.logger.stopping import StopTag
from llm.logger.view import View
from llm.run.console import log

FOLLOW_SECONDS = 1.0  # between two looks at the run's files
FINISH_SECONDS = 45  # for what is still to be uploaded; the rest stays on the disk


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
        """Set the run's summary, which a table of runs shows. Of a tokenizer or an evaluation it is a table too."""
        self._results = results

    def finish(self, *, exit_code: int, alert: str = "") -> None:
        """Send what is left, and end the W&B run."""
        if not self._thread.is_alive():
            return
        self._ending = {"exit_code": exit_code, "alert": alert}
        self._has_ended.set()
        self._thread.join(FINISH_SECONDS + 10)
        if self._thread.is_alive():
            self._give_up("it does not answer")

    def _work(self, view: View) -> None:
        """What the thread does."""
        tag = None if view.wandb_run.offline else StopTag(view.wandb_run)
        try:
            view.link_parents()
            while not self._has_ended.wait(FOLLOW_SECONDS):
                if self._is_followed:
                    view.catch_up()
                if tag:
                    tag.look()
            if self._is_followed:
                view.catch_up()
            view.end(self._results, **self._ending)
        except Exception as error:  # whatever W&B raises, the run goes on; metrics.jsonl has it all
            self._give_up(first_line(error).rstrip("."))

    def _give_up(self, reason: str) -> None:
        if self._has_given_up:  # it is said once
            return
        self._has_given_up = True
        if self._has_ended.is_set():
            log.warning("wandb did not get everything (%s). Upload the rest: python -m llm.sync", reason)
        else:
            log.warning(
                "wandb: %s; the run goes on without it, metrics.jsonl has everything. Upload it later: "
                "python -m llm.sync",
                reason,
            )
        kill_service()


def kill_service() -> None:
    """End wandb's helper process at once, so that nothing waits for it, the process's own end included.

    What it has written stays. There is no public way: teardown() waits for it.
    """
    with suppress(Exception):
        from wandb.sdk import wandb_setup

        connection: Any = wandb_setup.singleton()._connection
        connection._proc._process.kill()
        connection._proc._process.wait(1)
    teardown = threading.Thread(target=_teardown, daemon=True)  # it raises, as it cannot say goodbye; or it waits
    teardown.start()
    teardown.join(2)


def _teardown() -> None:
    import wandb

    with suppress(Exception):
        wandb.teardown()
