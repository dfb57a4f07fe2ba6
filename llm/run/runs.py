"""The runs that are there: one by its folder or its name, all of a stage, and how each of them stands."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm.errors import ConfigError, DamagedError
from llm.run.console import log
from llm.run.files import digest_of, write_json
from llm.run.identity import key_of
from llm.run.owner import is_owned

MODEL_STAGES = ("finetune", "pretrain")  # where a name stands for both, the tuned run is meant
MOST_LISTED = 20  # runs that an error names
STATUSES = ("running", "done", "failed")
OWN_DIGEST = "record_digest"  # of all else that run.json says; what the first versions wrote has none
_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where libyaml is there: 8 times as fast


@dataclass(frozen=True)
class Run:
    """A run's folder and what its run.json says."""

    path: Path
    record: dict[str, Any]

    @property
    def stage(self) -> str:
        return str(self.record["stage"])

    @property
    def key(self) -> str:
        return str(self.record["key"])

    @property
    def is_done(self) -> bool:
        return bool(self.record["status"] == "done")

    @property
    def state(self) -> str:
        """done, failed, running, or unfinished: running by its record, but nobody is at it."""
        status = str(self.record["status"])
        return "unfinished" if status == "running" and not is_owned(self.path) else status

    @property
    def results(self) -> dict[str, Any]:
        return dict(self.record.get("results") or {})

    @property
    def digest(self) -> str:
        return str(self.record["digest"])

    @property
    def objective(self) -> float | None:
        return self.record.get("objective")

    @property
    def config(self) -> dict[str, Any]:
        """The composed config, as nested dicts."""
        return dict(yaml.load((self.path / "config.yaml").read_text(encoding="utf-8"), Loader=_SAFE_LOADER))

    @property
    def places(self) -> dict[str, Path]:
        """What it was made from, by its role (tokenizer, shards, base) -> where that lies now.

        What lay in the outputs folder is looked for in the one that this run lies in.
        """
        outputs = Path(os.path.normpath(self.path / "../.."))
        return {role: _place(Path(of), outputs) for role, of in (self.record.get("folders") or {}).items()}

    def parent(self, role: str) -> "Run":
        """The run that this one was made from, by its role."""
        return load(self.places[role])


def find(outputs: str | Path, stage: str, name_or_folder: str) -> Run:
    """A finished run of `stage`, by its folder, its folder's name, or its name where only one run has it.

    Raises:
        ConfigError: no such run, or several, or one that is not done; the candidates are listed.
    """
    path = Path(name_or_folder)
    if (path / "run.json").is_file():
        matches = [load(path)]
        if matches[0].stage != stage:
            raise ConfigError(
                f"{path} is a {matches[0].stage} run, but a {stage} run is needed. {_listed(outputs, stage)}"
            )
    else:
        runs = candidates(outputs, stage)
        matches = [run for run in runs if run.path.name == name_or_folder]
        matches = matches or [run for run in runs if run.record["name"] == name_or_folder]
    if not matches:
        raise ConfigError(f"there is no {stage} run {name_or_folder}. {_listed(outputs, stage)}")
    done = [run for run in matches if run.is_done]
    if not done:
        raise ConfigError(f"{matches[-1].path} is {matches[-1].state}, not done. Start it again to finish it.")
    if len(done) > 1:
        folders = ", ".join(run.path.name for run in done)
        raise ConfigError(f"{len(done)} {stage} runs are named {name_or_folder}: {folders}. Give one of these.")
    return done[0]


def find_runs(outputs: str, name_or_folder: str) -> list[Run]:
    """Every run that a folder, a folder's name, a name or a glob under outputs (pretrain/*) means.

    Raises:
        ConfigError: there is none.
        DamagedError: there is, but its run.json cannot be trusted.
    """
    if (Path(name_or_folder) / "run.json").is_file():
        return [load(Path(name_or_folder))]
    runs = candidates(outputs)
    found = (
        [run for run in runs if run.path.name == name_or_folder]
        or [run for run in runs if run.record["name"] == name_or_folder]
        or [run for run in runs if run.path.relative_to(outputs).match(name_or_folder)]
    )
    if found:
        return found
    if damaged := damaged_records(outputs, name_or_folder):
        raise damaged[0]
    names = ", ".join(f"{run.stage}/{run.path.name}" for run in runs)
    listed = f"Runs: {names}." if names else "There is none yet: make one with python train.py."
    raise ConfigError(f"there is no run {name_or_folder} under {outputs}/. {listed}")


def find_model_run(outputs: str, name_or_folder: str, *, done_to_it: str, key: str = "run=") -> Run:
    """A finished run with a model, tuned or pretrained, by folder, name or glob; `done_to_it` is for the log.

    `key` is how the user named it; it begins the messages.

    Raises:
        ConfigError: no such run, several, or one that is not done or has no model.
    """
    found = find_runs(outputs, name_or_folder)
    runs = [run for run in found if run.stage in MODEL_STAGES]
    if not runs:
        raise ConfigError(
            f"{key}{name_or_folder}: {found[0].path} is a {found[0].stage} run, which has no model. Name a pretrain or "
            "finetune run."
        )
    done = [run for run in runs if run.is_done]
    if not done:
        raise ConfigError(
            f"{key}{name_or_folder}: {runs[-1].path} is {runs[-1].state}, not done. Start it again first."
        )
    if {run.stage for run in done} == set(MODEL_STAGES):
        done = [run for run in done if run.stage == MODEL_STAGES[0]]
        log.info("%s is a pretrained and a fine-tuned run; the fine-tuned one is %s", name_or_folder, done_to_it)
    if len(done) > 1:
        folders = ", ".join(str(run.path) for run in done)
        raise ConfigError(f"{key}{name_or_folder} means {len(done)} runs: {folders}. Give one of these.")
    return done[0]


def load(path: Path) -> Run:
    """The run in a folder.

    Raises:
        ConfigError: the folder has no run.json.
        DamagedError: its run.json cannot be read.
    """
    record = read_record(path)
    if record is None:
        raise ConfigError(f"{path} is no run: it has no run.json.")
    return Run(path, record)


def candidates(outputs: str | Path, stage: str = "*") -> list[Run]:
    """Every run of a stage under `outputs`, the oldest first; one whose run.json cannot be read is warned of."""
    runs = []
    for path in Path(outputs).glob(f"{stage}/*/run.json"):
        try:
            runs.append(load(path.parent))
        except DamagedError as error:
            log.warning("left out: %s", error)
    return sorted(runs, key=lambda run: (str(run.record.get("first_started_at")), run.path.name))


def damaged_records(outputs: str, name_or_folder: str) -> list[DamagedError]:
    """What is wrong with those runs that a name or a glob may mean, as their folders go, whose run.json is damaged."""
    found = []
    for path in sorted(Path(outputs).glob("*/*/run.json")):
        folder = path.parent
        names = (folder.name, folder.name.rpartition("-")[0])
        if name_or_folder in names or folder.relative_to(outputs).match(name_or_folder):
            try:
                read_record(folder)
            except DamagedError as error:
                found.append(error)
    return found


def read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None if there is none.

    Raises:
        DamagedError: it cannot be read, or is not what was written.
    """
    path = folder / "run.json"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        record = json.loads(content)
        fault = _fault(record)
    except (ValueError, RecursionError) as error:
        fault = f"it cannot be read ({error})"
    if fault:
        raise DamagedError(f"{path}: {fault}. Put it back as it was, or remove the folder to make the run again.")
    return dict(record)


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write run.json with a digest of all that it says; gives what is then on the disk."""
    said = json.loads(json.dumps(record, allow_nan=False))
    said.pop(OWN_DIGEST, None)
    said[OWN_DIGEST] = digest_of(said)
    write_json(folder / "run.json", said)
    return dict(said)


def recorded_place(folder: Path, outputs: str | Path) -> str:
    """A folder as run.json names it: from the outputs folder if it lies in there, so that both can be moved."""
    absolute, root = folder.absolute(), Path(outputs).resolve()
    inside = next((path for path in absolute.parents if path.resolve() == root), None)
    return str(absolute.relative_to(inside) if inside else absolute)


def _place(recorded: Path, outputs: Path) -> Path:
    """Where a recorded folder lies; the first versions wrote it as it was seen from where the command was typed."""
    places = (outputs / recorded, outputs / Path(*recorded.parts[-2:]), recorded)
    return next((place for place in places if place.exists()), outputs / recorded)


def _fault(record: Any) -> str | None:
    """What shows that a record is not what was written; None if nothing does."""
    if not isinstance(record, dict) or not {"stage", "name", "key", "status"} <= record.keys():
        return "it does not say what run it is of"
    if record["status"] not in STATUSES:
        return f"its status is {record['status']!r}, which is none of {', '.join(STATUSES)}"
    if OWN_DIGEST in record and record[OWN_DIGEST] != digest_of({k: v for k, v in record.items() if k != OWN_DIGEST}):
        return f"what it says is not what was written, by its own {OWN_DIGEST}"
    if "identity" in record and record["key"] != key_of(record["identity"], digits=len(str(record["key"]))):
        return f"its key {record['key']} is not that of its identity"
    return None


def _listed(outputs: str | Path, stage: str) -> str:
    names = [run.path.name for run in candidates(outputs, stage) if run.is_done]
    if not names:
        return f"There is no finished {stage} run under {outputs}/ yet: make one with python train.py stage={stage}."
    more = f", and {len(names) - MOST_LISTED} older ones" if len(names) > MOST_LISTED else ""
    return f"Finished ones: {', '.join(names[-MOST_LISTED:])}{more}."
