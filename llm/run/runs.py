"""The runs that are there: one by its folder or its name, all of a stage, how each stands, and whether it is whole."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from llm.config.stages import MODEL_STAGES
from llm.errors import ConfigError, DamagedError
from llm.run.console import log
from llm.run.files import composed, sha256_of
from llm.run.owner import EARLIER, LOCK, OWNER, is_owned
from llm.run.record import METRICS, Record, read_metrics, read_record

MOST_LISTED = 20  # runs that an error names
WANDB_NOTE = ".wandb.json"  # what W&B was told of the run, which changes where a later start goes on with it
LEFT_OUT = ("run.json", "log.txt", LOCK, OWNER, EARLIER, WANDB_NOTE, "checkpoints")  # which have manifests of their own
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
        return {role: outputs / of for role, of in (self.record.get("folders") or {}).items()}

    def parent(self, role: str) -> "Run":
        """The run that this one was made from, by its role."""
        return load(self.places[role])


def find_run(outputs: str | Path, named: str, *, key: str = "", stages: Sequence[str] = MODEL_STAGES) -> Run:
    """The finished run of one of `stages` that a folder, a folder's name, a name or a glob under outputs means.

    Where there are some of several stages, one of the first is meant. `key` is how the user named it, for messages.

    Raises:
        ConfigError: no such run, several, or one of another stage or that is not done; those that there are are listed.
        DamagedError: there is one, but its run.json cannot be trusted.
    """
    found, said = find_runs(outputs, named, key=key, stages=stages), _said(key, named)
    if not (runs := [run for run in found if run.stage in stages]):
        raise ConfigError(
            f"{said}{found[0].path} is a {found[0].stage} run, but a {_either(stages)} run is needed. "
            f"{_listed(outputs, stages)}"
        )
    if not (done := [run for run in runs if run.is_done]):
        raise ConfigError(f"{said}{runs[-1].path} is {runs[-1].state}, not done. Start it again to finish it.")
    meant, *others = [stage for stage in stages if any(run.stage == stage for run in done)]
    if others:
        log.info("%s is a pretrained and a fine-tuned run; the fine-tuned one is meant", named)
    if len(chosen := [run for run in done if run.stage == meant]) > 1:
        folders = ", ".join(str(run.path) for run in chosen)
        raise ConfigError(f"{said}{named} means {len(chosen)} runs: {folders}. Give one of these.")
    return chosen[0]


def find_runs(outputs: str | Path, named: str, *, key: str = "", stages: Sequence[str] = ()) -> list[Run]:
    """Every run that `find_folders` finds, the oldest first; one that is damaged is warned of, if there are others.

    Raises:
        ConfigError: there is none.
        DamagedError: there is, but its run.json cannot be trusted.
    """
    folders = find_folders(outputs, named, key=key, stages=stages)
    return [load(folders[0])] if len(folders) == 1 else _load_all(folders) or [load(folders[0])]


def find_folders(outputs: str | Path, named: str, *, key: str = "", stages: Sequence[str] = ()) -> list[Path]:
    """The folders of runs that a name means: that folder; else those of its name; of its name and a key; or of a glob.

    Globs are those of paths under outputs, such as pretrain/*. `key` and `stages` are what a message names.

    Raises:
        ConfigError: there is none; those that there are are listed.
    """
    if (Path(named) / "run.json").is_file():
        return [Path(named)]
    folders, asked = [path.parent for path in sorted(Path(outputs).glob("*/*/run.json"))], composed(named)
    found = (
        [folder for folder in folders if composed(folder.name) == asked]
        or [folder for folder in folders if composed(folder.name.rpartition("-")[0]) == asked]
        or [folder for folder in folders if PurePath(composed(str(folder.relative_to(outputs)))).match(asked)]
    )
    if not found:
        raise ConfigError(f"{_said(key, named)}there is no run {named} under {outputs}/. {_listed(outputs, stages)}")
    return found


def as_typed(key: str, value: object) -> str:
    """A value with the key that it was given by; of a command that takes it without one, alone."""
    return f"{key}={value}" if key else str(value)


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
    return _load_all([path.parent for path in Path(outputs).glob(f"{stage}/*/run.json")])


def _load_all(folders: list[Path]) -> list[Run]:
    runs = []
    for folder in folders:
        try:
            runs.append(load(folder))
        except DamagedError as error:
            log.warning("left out: %s", error)
    return sorted(runs, key=lambda run: (str(run.record.get("first_started_at")), run.path.name))


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Path in the folder -> bytes and sha256; of a folder that has a manifest.json of its own, that alone."""
    return {str(path.relative_to(folder)): _facts(path) for path in files_of(folder)}


def files_of(folder: Path) -> list[Path]:
    """What run.json lists of a run's folder; of a folder in it that has a manifest.json of its own, that alone."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name not in LEFT_OUT:
            manifest = path / "manifest.json"
            found += [manifest] if manifest.is_file() else [path, *sorted(path.rglob("*"))]
    return [path for path in found if path.is_file()]


def check_files(run: Run, *, under: str = "") -> int:
    """The number of files that are what run.json says, of those whose path begins with `under`.

    Raises:
        DamagedError: one is not, or is missing.
    """
    listed = {name: facts for name, facts in (run.record.get("files") or {}).items() if name.startswith(under)}
    if not listed:
        raise DamagedError(f"{run.path / 'run.json'} lists no file under {under or '.'}. Make the run again.")
    for path, fault in ((run.path / name, _fault(run.path / name, facts)) for name, facts in listed.items()):
        if fault:
            raise DamagedError(f"{path}{fault}. Make the {run.stage} run again with reuse=never, or put the file back.")
    return len(listed)


def metrics_of(run: Run, name: str = METRICS) -> list[Record]:
    """What a run wrote line by line, its metrics or its samples.

    Raises:
        DamagedError: as check_metrics; or of an unfinished run, a line before the last is no JSON.
    """
    check_metrics(run, name)
    return read_metrics(run.path / name)


def check_metrics(run: Run, name: str = METRICS) -> None:
    """Have the lines of a finished run be what run.json says; those of an unfinished one may end anywhere.

    Raises:
        DamagedError: they are not.
    """
    if name in (run.record.get("files") or {}):
        check_files(run, under=name)


def _listed(outputs: str | Path, stages: Sequence[str] = ()) -> str:
    """What there is: of the stages that are asked for the finished runs, else all."""
    runs = [run for run in candidates(outputs) if not stages or (run.stage in stages and run.is_done)]
    if not runs:
        asked, way = (f"no finished {_either(stages)} run", f" stage={stages[-1]}") if stages else ("none", "")
        return f"There is {asked} yet: make one with python train.py{way}."
    names = ", ".join(f"{run.stage}/{run.path.name}" for run in runs[-MOST_LISTED:])
    more = f", and {len(runs) - MOST_LISTED} older ones" if len(runs) > MOST_LISTED else ""
    return f"Runs: {names}{more}."


def _said(key: str, named: str) -> str:
    return f"{as_typed(key, named)}: " if key else ""


def _either(stages: Sequence[str]) -> str:
    return " or ".join(reversed(stages))


def _fault(path: Path, listed: dict[str, Any]) -> str | None:
    """What is wrong with a file by what run.json lists of it; of lines of JSON it names the line, where it can.

    Raises:
        DamagedError: one of these is no JSON any more.
    """
    if not path.is_file():
        return " is missing"
    if _facts(path) == listed:
        return None
    if path.suffix == ".jsonl":
        if path.stat().st_size < listed["bytes"]:
            number = path.read_bytes().count(b"\n") + 1
            return f":{number}: the rest is cut off, of {listed['bytes']} bytes"
        read_metrics(path)
    return " is not what run.json says"


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
