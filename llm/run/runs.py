"""Make a run, or find it: finished ones are reused, unfinished ones go on, and two processes never write one run."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from llm.config import Reuse
from llm.errors import ConfigError, DamagedError, StoppedError
from llm.run.console import log, log_to, start_logging
from llm.run.environment import launch_id, process_rank
from llm.run.files import clear_temporaries, digest_of, write_json, write_text
from llm.run.identity import Plan, differences
from llm.run.record import commit, now, provenance

WAIT_SECONDS = 0.5  # between two looks at a run that another process makes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage says of a run that it finished."""

    results: dict[str, Any]
    digest: str  # of what it made: what is downstream keys on it
    notes: dict[str, Any] = field(default_factory=dict)  # rights, counts of dropped records, and the like
    objective: float | None = None  # what a search minimises


NOT_MINE = Outcome(results={}, digest="")  # from ranks above zero: rank zero saves, and says what came of the run


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
        return self.record["status"] == "done"

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
        return dict(yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8")))

    def parent(self, name: str) -> "Run":
        """The run that this one was made from, by its role (tokenizer, shards, base)."""
        return load(Path(self.record["folders"][name]))


def make(plan: Plan, work: Callable[[Run], Outcome], *, wait: bool = False) -> Run:
    """The finished run of `plan`: an existing one, or the one that `work` makes of a new or an unfinished folder.

    `wait` says what to do while another process makes this very run: wait for it, or refuse.

    Raises:
        ConfigError: another process is at it, or reuse=require and there is no finished run.
    """
    start_logging()
    folder = _folder_of(plan)
    if process_rank() > 0:
        return _join(plan, folder, work, wait=wait)
    finished = _finished(folder)
    if finished and plan.config.reuse is not Reuse.never:
        _say_reused(finished, plan)
        return finished
    if plan.config.reuse is Reuse.require:
        raise ConfigError(f"reuse=require, but there is no finished run {folder}. Set reuse=auto to make it.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ConfigError(f"{folder} is being made by {_owner(folder)}. Wait for it, or end it first.") from None
        log.info("waiting for %s, which %s makes", folder, _owner(folder))
        lock.acquire()
    try:
        if wait and (finished := _finished(folder)):  # by the process that was waited for
            return finished
        return _carry_out(plan, folder, work)
    finally:
        lock.release()


def _carry_out(plan: Plan, folder: Path, work: Callable[[Run], Outcome]) -> Run:
    if plan.config.reuse is Reuse.never:
        _clear(folder)
    clear_temporaries(folder)
    earlier = _read_record(folder) or {}
    record = {
        "stage": plan.stage,
        "name": plan.name,
        "key": plan.key,
        "status": "running",
        **provenance(),
        "first_started_at": earlier.get("first_started_at", now()),
        "launch": launch_id(),
        "identity": plan.identity,
        "folders": plan.folders,
    }
    _say_started(plan, folder, resumed=bool(earlier))
    write_text(folder / "config.yaml", yaml.safe_dump(plain(asdict(plan.config)), allow_unicode=True, sort_keys=False))
    write_json(folder / "run.json", record)
    run = Run(folder, record)
    started = time.monotonic()
    with log_to(folder / "log.txt"):
        try:
            outcome = work(run)
        except StoppedError as stop:
            write_json(folder / "run.json", record | {"ended_at": now(), "stopped": str(stop)})
            raise
        except BaseException as error:
            write_json(folder / "run.json", record | {"status": "failed", "ended_at": now(), "error": _one_line(error)})
            raise
        record |= {"status": "done", "ended_at": now(), "seconds": round(time.monotonic() - started, 1)}
        record |= asdict(outcome)
        write_json(folder / "run.json", record)
        log.info("%s done in %.0f s: %s", plan.stage, record["seconds"], folder)
    return Run(folder, record)


def _join(plan: Plan, folder: Path, work: Callable[[Run], Outcome], *, wait: bool) -> Run:
    """What ranks above zero do: wait for rank zero to make the run, or to start it, and then work beside it."""
    while True:
        record = _read_record(folder)
        if record and record["status"] == "done":
            return Run(folder, record)
        if record and record.get("launch") == launch_id():
            if record["status"] == "failed":
                raise DamagedError(f"{folder}: rank 0 failed: {record['error']}")
            if not wait:  # a run that all ranks make; the others are made by rank zero alone
                work(Run(folder, record))
                return Run(folder, record)
        time.sleep(WAIT_SECONDS)


def find(outputs: str | Path, stage: str, name_or_folder: str) -> Run:
    """A finished run of `stage`, by its folder, its folder's name, or its name where only one run has it.

    Raises:
        ConfigError: no such run, or several; the candidates are listed.
    """
    path = Path(name_or_folder)
    if (path / "run.json").is_file():
        run = load(path)
        if run.stage != stage:
            raise ConfigError(f"{path} is a {run.stage} run, but a {stage} run is needed. {_listed(outputs, stage)}")
        matches = [run]
    else:
        runs = candidates(outputs, stage)
        matches = [r for r in runs if r.path.name == name_or_folder] or [
            r for r in runs if r.record["name"] == name_or_folder
        ]
    if not matches:
        raise ConfigError(f"there is no {stage} run {name_or_folder}. {_listed(outputs, stage)}")
    if len(matches) > 1:
        folders = ", ".join(run.path.name for run in matches)
        raise ConfigError(f"{len(matches)} {stage} runs are named {name_or_folder}: {folders}. Give one of these.")
    if not matches[0].is_done:
        raise ConfigError(f"{matches[0].path} is {matches[0].state}, not done. Start it again to finish it.")
    return matches[0]


def load(path: Path) -> Run:
    """The run in a folder.

    Raises:
        ConfigError: the folder has no run.json that can be read.
    """
    record = _read_record(path)
    if record is None:
        raise ConfigError(f"{path} is no run: it has no run.json.")
    return Run(path, record)


def candidates(outputs: str | Path, stage: str = "*") -> list[Run]:
    """Every run of a stage under `outputs`, the oldest first."""
    folders = [path.parent for path in Path(outputs).glob(f"{stage}/*/run.json")]
    runs = [Run(folder, record) for folder in folders if (record := _read_record(folder))]
    return sorted(runs, key=lambda run: (run.record["first_started_at"], run.path.name))


def is_owned(folder: Path) -> bool:
    """Whether a living process makes this run."""
    if not (folder / ".lock").exists():
        return False
    try:
        with _lock(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True


def plain(value: Any) -> Any:
    """Nested config values with enums as their names: what JSON and YAML can hold."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _folder_of(plan: Plan) -> Path:
    """The run's folder; where the user gave no name, a finished run with the same key serves whatever its name."""
    stage_folder = Path(plan.config.outputs) / plan.stage
    folder = stage_folder / f"{plan.name}-{plan.key}"
    if plan.config.name is None and not folder.exists():
        return next((path for path in sorted(stage_folder.glob(f"*-{plan.key}")) if _finished(path)), folder)
    return folder


def _finished(folder: Path) -> Run | None:
    record = _read_record(folder)
    return Run(folder, record) if record and record["status"] == "done" else None


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise DamagedError(
            f"{folder / 'run.json'} cannot be read ({error}). Remove the folder to make it again."
        ) from None
    return dict(record)


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock")


def _owner(folder: Path) -> str:
    record = _read_record(folder) or {}
    return f"process {record.get('pid', '?')} on {record.get('host', '?')}"


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _say_reused(run: Run, plan: Plan) -> None:
    made_by, here = run.record.get("commit"), commit()
    other = f" by commit {made_by}, this is {here}" if made_by != here else ""
    log.info("reused %s (made %s%s)", run.path, run.record["ended_at"], other)
    for key, old, new in differences(run.config, plain(asdict(plan.config))):
        if key.split(".")[0] not in ("name", "outputs", "reuse", "logger"):
            log.info("  %s=%s is not applied (it was %s); it changes no content. reuse=never runs again", key, new, old)


def _say_started(plan: Plan, folder: Path, *, resumed: bool) -> None:
    if resumed:
        log.info("%s goes on in %s", plan.stage, folder)
        return
    log.info("%s starts in %s", plan.stage, folder)
    siblings = [
        list(differences(run.record["identity"], plan.identity))
        for run in candidates(plan.config.outputs, plan.stage)
        if run.record["name"] == plan.name and run.path != folder
    ]
    if siblings:
        changed = ", ".join(
            f"{key.removeprefix('settings.')}={_short(new)} (was {_short(old)})"
            for key, old, new in min(siblings, key=len)
        )
        log.info("  a new run, for it differs from the nearest of that name in %s", changed)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"


def _listed(outputs: str | Path, stage: str) -> str:
    names = [run.path.name for run in candidates(outputs, stage) if run.is_done]
    if not names:
        return f"There is no finished {stage} run under {outputs}/ yet: make one with python train.py stage={stage}."
    return f"Finished ones: {', '.join(names)}."


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


__all__ = ["Outcome", "Run", "candidates", "digest_of", "find", "is_owned", "load", "make", "plain"]
