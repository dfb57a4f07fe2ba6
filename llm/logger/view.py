"""A run's folder -> what W&B shows of it: group, tags and config; records, tables and artifacts."""

import json
import re
import time
from pathlib import Path
from typing import Any

import yaml

from llm.config.training import LoggerConfig
from llm.credentials import without_secrets
from llm.environment import agents_parameters, agents_run_id, agents_sweep
from llm.run.files import write_json
from llm.run.launch import sweep_job
from llm.run.record import METRICS, SAMPLES, Record
from llm.run.runs import WANDB_NOTE, Run, files_of, load

ANSWER_SECONDS = 5  # for what the server is asked
TAG_CHARACTERS = 64  # W&B takes no longer tag
CHECKED_BYTES = 256_000_000  # larger files are not read through for W&B: run.json has their SHA-256
NOT_MADE = ("config.yaml", METRICS, SAMPLES)  # of a run's files, what W&B has otherwise
BY_CHARACTER = "lost_characters"  # of a tokenizer: a number for each character of its text


def describe(config: LoggerConfig, run: Run) -> dict[str, Any]:
    """id, group, tags and an agent's parameters, of a run that this process makes.

    It may be a job of a sweep, or a trial of `wandb agent`. Kept in the run's folder, for a sync knows of neither.
    """
    trial_id = agents_run_id()
    sweep, varying = (agents_sweep(), _trial_parameters()) if trial_id else sweep_job()
    tags = [*config.tags, *(tag(key, str(value)) for key, value in varying.items())]
    return {
        "id": trial_id or f"{run.stage}-{run.path.name}",
        "group": without_secrets(config.group or sweep or run.stage),
        "tags": list(dict.fromkeys(map(without_secrets, tags))),
        "parameters": list(varying) if trial_id else [],
    }


def keep_description(run: Run, description: dict[str, Any]) -> None:
    write_json(run.path / WANDB_NOTE, description)


def kept_description(run: Run) -> dict[str, Any] | None:
    """What W&B was told of the run; None if it was not."""
    path = run.path / WANDB_NOTE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def arguments(run: Run, description: dict[str, Any]) -> dict[str, Any]:
    """Those of wandb.init that say what the run is.

    The settings of a group that is a parameter of an agent's sweep stand under dotted keys: the group's own name is the
    parameter's in W&B, which keeps it to the choice: gpt2_tiny, not what that is.
    """
    said, config = dict(description), run.config
    for group in said.pop("parameters"):
        if isinstance(config.get(group), dict):
            config |= {f"{group}.{key}": value for key, value in config.pop(group).items()}
    return said | {"name": run.path.name, "job_type": run.stage, "config": config}


def _trial_parameters() -> dict[str, Any]:
    """From the file that wandb reads too; empty where there is none, as under an agent of a function."""
    path = agents_parameters()
    given = yaml.safe_load(path.read_text(encoding="utf-8")) if path and path.exists() else None
    return {key: entry["value"] for key, entry in (given or {}).items() if isinstance(entry, dict) and "value" in entry}


def tag(key: str, value: str) -> str:
    """key=value in the characters that a tag may have: the key gives way first, from its beginning."""
    return f"{key}={value}"[-TAG_CHARACTERS:]


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
        for role, folder in self._run.places.items():
            if (folder / "run.json").is_file():
                measured = numbers((parent := load(folder)).results)
                self._log_artifact(parent, measured, is_input=True)
                if role == "tokenizer":
                    self.wandb_run.summary.update({f"{role}/{name}": value for name, value in measured.items()})

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
        if measured and not self._next_step:  # a run without steps has no curve to look at
            summary["results"] = _table([{"measure": key, "value": value} for key, value in measured.items()])
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
        """The files that a run made by reference, with digests: nothing of them is uploaded.

        Equal content is an equal version: W&B adds none. Not use_artifact: it is for online runs alone, and waits for
        the server.
        """
        import wandb

        facts = {name: run.record[name] for name in ("key", "digest", "commit") if run.record.get(name)}
        metadata = {"folder": str(run.path), **facts, **results}
        artifact = wandb.Artifact(artifact_name(run), type=run.stage, metadata=metadata)
        for path in files_of(run.path):
            if path.name not in NOT_MADE:
                name, is_small = str(path.relative_to(run.path)), path.stat().st_size <= CHECKED_BYTES
                artifact.add_reference(path.absolute().as_uri(), name=name, checksum=is_small)
        if artifact.manifest.entries:
            self.wandb_run._log_artifact(artifact, is_user_created=True, use_after_commit=is_input)


def artifact_name(run: Run) -> str:
    """Stage and folder, in the characters that W&B takes for the name of an artifact."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{run.stage}-{run.path.name}")


def numbers(results: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among a run's results, nested ones under names with slashes: train/documents."""
    found: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, dict) and key != BY_CHARACTER:
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = value
    return found


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
