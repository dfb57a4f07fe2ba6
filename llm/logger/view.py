"""A run's files -> its W&B run, all at once or as they grow."""

import json
import time
from pathlib import Path
from typing import Any

from llm.logger.described import numbers
from llm.logger.lineage import artifact_of, parents_of
from llm.run.metrics import METRICS, SAMPLES, Record
from llm.run.runs import Run

ANSWER_SECONDS = 5  # for what the server is asked
TABLE_OF = {"tokenizer": "tokenizer report", "shards": "shards", "evaluate": "evaluation"}  # results that are a table


class View:
    """What a W&B run is given of a run's folder; each line of metrics.jsonl is a step there, with `tokens` as x axis.

    Samples are a table beside the record of their validation, which is written after them. All of them are one table
    at the end: a table that grows is uploaded anew each time. Nor is W&B's log_mode="INCREMENTAL" for it, for each part
    of such a table names all that came before.
    """

    def __init__(self, wandb_run: Any, run: Run) -> None:
        self.wandb_run, self._run = wandb_run, run
        self._metrics, self._samples = _Lines(run.path / METRICS), _Lines(run.path / SAMPLES)
        self._all_samples: list[Record] = []
        self._num_tabled = 0  # samples that are in a table
        self._next_step = 0
        self._sent = 0 if wandb_run.offline else wandb_run.step  # steps that W&B has from earlier starts

    def link_parents(self) -> None:
        """Say what the run is made from, as artifacts; its summary has what its tokenizer does to text."""
        for parent in parents_of(self._run):
            measured = numbers(parent.results)
            self._log_artifact(parent, measured, is_input=True)
            if parent.stage == "tokenizer":
                self.wandb_run.summary.update({f"tokenizer/{name}": value for name, value in measured.items()})

    def catch_up(self) -> None:
        """Send what the files have got since the last time, but for what W&B has."""
        records = self._metrics.read()
        self._all_samples += self._samples.read()
        for record in records:
            tables = self._table_beside(record)
            if self._next_step >= self._sent:
                self.wandb_run.log(record | tables, step=self._next_step, commit=True)
            self._next_step += 1

    def _table_beside(self, record: Record) -> dict[str, Any]:
        new = [each for each in self._all_samples[self._num_tabled :] if each["step"] <= record["step"]]
        if "val/loss" not in record or not new:
            return {}
        self._num_tabled += len(new)
        return {"samples": _table(new)}

    def end(self, results: dict[str, Any], *, exit_code: int, alert: str = "") -> None:
        """Set the summary, say what the run has made, and end the W&B run.

        Raises:
            OSError: the server has not got everything.
        """
        measured = numbers(results)
        summary = {key: value for key, value in results.items() if not isinstance(value, dict)} | measured
        if results and (name := TABLE_OF.get(self._run.stage)):
            summary[name] = _table([{"measure": key, "value": value} for key, value in measured.items()])
        if results and self._all_samples:
            summary["samples_over_time"] = _table(self._all_samples)
        self.wandb_run.summary.update(summary)
        if exit_code == 0:
            self._log_artifact(self._run, measured, is_input=False)
        if alert:  # of the people who asked to be told
            self.wandb_run.alert(title="The run diverged", text=alert, level="ERROR")
        self.wandb_run.finish(exit_code=exit_code)
        if not self.wandb_run.offline:
            _require_end(self.wandb_run.path)

    def _log_artifact(self, run: Run, results: dict[str, float], *, is_input: bool) -> None:
        """Not use_artifact: it is for online runs alone, and waits for the server."""
        if artifact := artifact_of(run, results):
            self.wandb_run._log_artifact(artifact, is_user_created=True, use_after_commit=is_input)


class _Lines:
    """The lines of a JSON-lines file that grows, each once, and none before it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[Record]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        return [json.loads(line) for line in whole.split(b"\n") if line]


def _require_end(path: str) -> None:
    """Have the server say that the run has ended: finish() raises nothing where it refused the records (0.31.0)."""
    import wandb

    for _ in range(3):
        if wandb.Api(timeout=ANSWER_SECONDS).run(path).state != "running":
            return
        time.sleep(1)
    raise OSError("the server refused records")


def _table(rows: list[Record]) -> Any:
    import wandb

    columns = list(rows[0])
    return wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])
