"""A W&B run -> whether somebody asks it to stop, and whether the server refuses what it is sent."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.run import log

STOP_TAG = "stop"
LOOK_SECONDS = 30.0  # between two looks at the tags
ASK_TIMEOUT_SECONDS = 5
BUTTON, TAG = "the stop button in W&B", f"the tag {STOP_TAG} in W&B"


class StopWatch:
    """Looks at the tags of an online run now and then, in a thread of its own, and hears its stop button."""

    def __init__(self, look_seconds: float = LOOK_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._has_ended = threading.Event()
        self._lock = threading.Lock()
        self._asked_by: str | None = None
        self._action: Callable[[str], None] | None = None
        self._thread: threading.Thread | None = None

    def start(self, wandb_run: Any, on_refusal: Callable[[str], None]) -> None:
        """Begin to look; `on_refusal` is told of the answer by which the server ended the upload."""
        self._on_refusal = on_refusal
        self._thread = threading.Thread(target=self._look, args=(wandb_run,), name="wandb-stop", daemon=True)
        self._thread.start()

    def on_stop(self, action: Callable[[str], None]) -> None:
        """Call `action` once with who asked; at once, if somebody has."""
        with self._lock:
            self._action = action
            asked_by = self._asked_by
        if asked_by:
            action(asked_by)

    def ask(self, by: str = BUTTON) -> None:
        """Somebody wants the run to stop."""
        with self._lock:
            if self._asked_by or self._has_ended.is_set():
                return
            self._asked_by, action = by, self._action
        log.info("%s asks the run to stop: it saves, and ends", by)
        if action:
            action(by)

    def end(self) -> None:
        """Look no more."""
        self._has_ended.set()
        if self._thread is not None:
            self._thread.join(ASK_TIMEOUT_SECONDS + 1)

    def _look(self, wandb_run: Any) -> None:
        """A tag from before this start has had its effect: it is taken off, and so is one that is heeded."""
        import wandb

        seen, is_first = None, True
        while not self._has_ended.is_set():
            if reason := refusal(wandb_run):
                self._on_refusal(reason)
                return
            try:
                if seen is None:
                    path = f"{wandb_run.entity}/{wandb_run.project}/{wandb_run.id}"
                    seen = wandb.Api(timeout=ASK_TIMEOUT_SECONDS).run(path)
                else:
                    seen.load(force=True)
                tags = list(seen.tags)
            except Exception:  # a server that does not answer: there will be another look
                tags = []
            else:
                if STOP_TAG in tags:
                    wandb_run.tags = tuple(each for each in tags if each != STOP_TAG)
                    if is_first:
                        log.info("%s is from before this start, and was taken off", TAG)
                    else:
                        self.ask(TAG)
                        return
                is_first = False
            self._has_ended.wait(self._look_seconds)


def refusal(wandb_run: Any) -> str | None:
    """The answer by which a server ended the upload for good, a 401 say; None if it did not.

    wandb keeps it from a silent run, and finish() raises nothing (0.31.0): the log of its helper process has it.
    """
    try:
        log_file = Path(wandb_run.dir).parent / "logs" / "debug-internal.log"
        text = log_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.findall(r"filestream: fatal error: .*?failed to upload: (\d+ [A-Za-z ]*?) url", text)
    return found[-1] if found else None
