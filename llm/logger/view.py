"""What a run logs -> its W&B run, by way of a queue: the caller never waits, whatever W&B does."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from llm.logger.described import numbers
from llm.logger.lineage import artifact_of, parents_of
from llm.logger.watching import StopWatch, refusal
from llm.run import Run, log

FINISH_TIMEOUT_SECONDS = 45  # for what is still to be uploaded; the rest stays on the disk
MOST_WAITING = 20_000  # records that W&B has not taken: it takes none any more, and memory is not for them
TABLE_OF = {
    "tokenizer": "tokenizer report",
    "shards": "shards",
    "evaluate": "evaluation",
}  # results that are a table too

Action = Callable[[Any], object]


class RunLogger:
    """One W&B run for one run folder; does nothing where logging is disabled. Nothing that W&B does can stop a run."""

    def __init__(self, wandb_run: Any | None, *, run: Run | None = None, sent: int = 0) -> None:
        self._run, self._of, self._sent = wandb_run, run, sent  # `sent` records W&B has from earlier attempts
        self._next = 0  # the line of metrics.jsonl that comes next, which is W&B's step
        self._results: dict[str, float] = {}
        self._samples: list[dict[str, Any]] = []  # so far, those of earlier attempts too
        self._is_refused = False
        self._watch: StopWatch | None = None
        self._queue: SimpleQueue[Action | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb-view", daemon=True)
        if wandb_run is not None:
            self._thread.start()

    def go_on(self, records: list[dict[str, Any]]) -> None:
        """Begin after these lines of metrics.jsonl; those that W&B did not get, as its process was killed, are sent."""
        for record in records:
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Send the next record of metrics.jsonl, unless W&B has it; `tokens` is the x axis."""
        step = self._next
        self._next += 1
        if step >= self._sent:
            self._put(lambda run: run.log(record, step=step, commit=True))

    def log_samples(self, samples: list[dict[str, Any]]) -> None:
        """Send what is new of the run's samples so far, as a table, with the record that comes next.

        All of them are one table at the end: a table that grows is uploaded anew each time. Nor is W&B's
        log_mode="INCREMENTAL" for it, for each part of such a table names all that came before.
        """
        new, self._samples = samples[len(self._samples) :], samples
        step = self._next
        if new and step >= self._sent:
            self._put(lambda run: run.log({"samples": _table_of(new)}, step=step, commit=False))

    def summarize(self, results: dict[str, Any]) -> None:
        """Set the run's summary: what a table of runs shows. Of a tokenizer or an evaluation it is a table too."""
        self._put(lambda run: run.summary.update(results))
        self._results = numbers(results)
        if self._of and (name := TABLE_OF.get(self._of.stage)):
            rows = [{"measure": key, "value": value} for key, value in self._results.items()]
            self._put(lambda run: run.summary.update({name: _table_of(rows)}))
        if samples := self._samples:
            self._put(lambda run: run.summary.update({"samples_over_time": _table_of(samples)}))

    def alert(self, title: str, text: str) -> None:
        """Have W&B tell the people who asked to be told."""
        self._put(lambda run: run.alert(title=title, text=text, level="ERROR"))

    def link_parents(self) -> None:
        """Say what this run is made from, as artifacts; its summary has what its tokenizer does to text."""
        if self._of is None:
            return
        for parent in parents_of(self._of):
            measured = numbers(parent.record.get("results") or {})
            self._put(partial(_log_artifact, parent, measured, is_input=True))
            if parent.stage == "tokenizer":
                self._put(partial(_summarize_parent, measured))

    def link_made(self) -> None:
        """Say what this run has made, as an artifact."""
        if (made := self._of) is not None:
            self._put(partial(_log_artifact, made, self._results, is_input=False))

    def on_stop(self, action: Callable[[str], None]) -> None:
        """Call `action` with who asked, once somebody stops the run in W&B: by its button, or by the tag `stop`."""
        if self._run is not None and self._watch is not None:
            self._watch.on_stop(action)

    def watch(self, watch: StopWatch) -> None:
        """Have this watch tell of a wish to stop."""
        self._watch = watch

    def refuse(self, reason: str) -> None:
        """Take note that the server takes nothing any more."""
        if not self._is_refused:
            self._is_refused = True
            log.warning(
                "wandb: the server takes nothing any more (%s); the run goes on. Upload what it lacks later: "
                "python -m llm.sync",
                reason,
            )

    def finish(self, *, exit_code: int) -> None:
        """End the W&B run, and every thread that it has."""
        if self._watch is not None:
            self._watch.end()
        if not self._thread.is_alive():
            return
        self._put(lambda run: self._finish(run, exit_code))
        self._queue.put(None)
        self._thread.join(FINISH_TIMEOUT_SECONDS + 5)
        if self._thread.is_alive():
            self._run = None
            log.warning("wandb does not answer; it is ended. Upload what it lacks: python -m llm.sync")
            kill_service()
            self._thread.join(1)

    def _put(self, action: Action) -> None:
        if self._run is None:
            return
        if self._queue.qsize() >= MOST_WAITING:
            threading.Thread(target=self._give_up, args=("it does not take what is logged",), daemon=True).start()
            return
        self._queue.put(action)

    def _work(self) -> None:
        """What the thread does: one action after the other."""
        while (action := self._queue.get()) is not None:
            run = self._run
            if run is None:
                continue
            try:
                action(run)
            except Exception as error:  # whatever W&B raises, the run goes on; metrics.jsonl has it all
                self._give_up(first_line(error))

    def _give_up(self, reason: str) -> None:
        if self._run is None:
            return
        self._run = None
        log.warning(
            "wandb: %s; the run goes on without it, metrics.jsonl has everything. Upload it later: python -m llm.sync",
            reason,
        )
        with suppress(Empty):
            while (action := self._queue.get_nowait()) is not None:
                del action
            self._queue.put(None)
        kill_service()

    def _finish(self, run: Any, exit_code: int) -> None:
        folder, run_id, is_online = Path(run.dir).parent, run.id, not run.offline
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:  # as in _work
            if self._run is None:  # ended by finish(), which has said so
                return
            self._run = None
            log.warning(
                "wandb did not get everything (%s). Upload the rest: python -m llm.sync", first_line(error).rstrip(".")
            )
            kill_service()
            return
        self._run = None
        if is_online and (reason := refusal(run)):
            self.refuse(reason)
        if is_online and not self._is_refused:
            (folder / f"run-{run_id}.wandb.synced").touch()  # as wandb sync does it: there is nothing left to upload


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def kill_service() -> None:
    """End wandb's helper process at once, so that nothing waits for it, the process's own end included.

    What it has written stays. There is no public way: teardown() waits for it.
    """
    with suppress(Exception):
        from wandb.sdk import wandb_setup

        connection: Any = wandb_setup.singleton()._connection
        if connection is not None and connection._proc is not None:
            connection._proc._process.kill()
            connection._proc._process.wait(1)
    teardown = threading.Thread(target=_teardown, daemon=True)  # it raises, as it cannot say goodbye; or it waits
    teardown.start()
    teardown.join(2)


def _teardown() -> None:
    import wandb

    with suppress(Exception):
        wandb.teardown()


def _table_of(rows: list[dict[str, Any]]) -> Any:
    import wandb

    columns = list(rows[0])
    return wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])


def _summarize_parent(measured: dict[str, float], wandb_run: Any) -> None:
    wandb_run.summary.update({f"tokenizer/{name}": value for name, value in measured.items()})


def _log_artifact(run: Run, results: dict[str, float], wandb_run: Any, *, is_input: bool) -> None:
    """Not use_artifact: it is for online runs alone, and waits for the server."""
    if artifact := artifact_of(run, results):
        wandb_run._log_artifact(artifact, is_user_created=True, use_after_commit=is_input)


def wait_until_idle(logger: RunLogger, seconds: float) -> bool:
    """Whether W&B has taken all that was logged, within so long."""
    done = threading.Event()
    logger._queue.put(lambda _: done.set())
    deadline = time.monotonic() + seconds
    while not done.wait(0.01):
        if time.monotonic() > deadline or logger._run is None:
            return logger._run is None
    return True
