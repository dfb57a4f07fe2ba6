"""What a user names -> what is compared: runs, folders of runs, and sweeps with all of their jobs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.compare.entries import Entry
from llm.errors import ConfigError, DamagedError
from llm.run import Run, find_runs, load, log
from llm.run.announcing import ANNOUNCED
from llm.sweep.ledger import Attempt, JobRecord

SWEEPS = "sweeps"  # under outputs
ADDED = ("tokenizer.ladder", "hydra.")  # overrides that the sweep adds, or that change nothing that a job makes


@dataclass(frozen=True)
class Objective:
    """What a search is for."""

    metric: str
    is_highest_best: bool


@dataclass(frozen=True)
class Found:
    """What is compared, and if it is one sweep, which."""

    entries: list[Entry]
    sweep: Path | None = None
    num_repeated: int = 0  # that stood for a run that was there already

    @property
    def objective(self) -> Objective | None:
        """Of a search the first one, once a run has measured it."""
        said = _read_json(self.sweep / "search.json") if self.sweep else {}
        if not said or not any(said["objectives"][0] in entry.outcome for entry in self.entries):
            return None
        return Objective(said["objectives"][0], said["directions"][0] == "maximize")


def find_entries(outputs: str, names: Sequence[str]) -> Found:
    """All that the names mean, each run once.

    Raises:
        ConfigError: a name or a folder means nothing, or a sweep has no jobs.
    """
    found: list[Entry] = []
    sweeps = []
    for name in names:
        if sweep := find_sweep(outputs, name):
            sweeps.append(sweep)
            found += read_sweep(sweep)
        else:
            found += [Entry(run) for run in _runs(outputs, name)]
    once = {entry.path.resolve(): entry for entry in reversed(found)}  # the first of those that share a run stays
    entries = [entry for entry in found if once[entry.path.resolve()] is entry]
    is_sweep = len(names) == len(sweeps) == 1
    return Found(entries, sweeps[0] if is_sweep else None, len(found) - len(entries))


def find_sweep(outputs: str, name: str) -> Path | None:
    """A sweep's folder, by its path or its name, whole or without the key; None if it is the name of something else.

    Raises:
        ConfigError: several sweeps have that name.
    """
    root = Path(outputs) / SWEEPS
    places = (Path(name), root / name, Path(outputs) / name)
    if exact := next((place for place in places if name and _is_sweep(place)), None):
        return exact
    if not root.is_dir() or _names_runs(outputs, name):
        return None
    named = sorted(path for path in root.iterdir() if path.is_dir() and path.name.rpartition("-")[0] == name)
    if len(named) > 1:
        listed = ", ".join(path.name for path in named)
        raise ConfigError(f"{len(named)} sweeps are named {name}: {listed}. Give one of these.")
    return named[0] if named else None


def _is_sweep(folder: Path) -> bool:
    is_there = folder.is_dir() and not (folder / "run.json").is_file()
    return is_there and ((folder / "sweep.json").is_file() or (folder / "jobs").is_dir() or _lies_in_sweeps(folder))


def _lies_in_sweeps(folder: Path) -> bool:
    return folder.resolve().parent.name == SWEEPS


def _names_runs(outputs: str, name: str) -> bool:
    try:
        return bool(find_runs(outputs, name))
    except ConfigError:
        return False


def read_sweep(folder: Path) -> list[Entry]:
    """Every job of a sweep in their order, those that nobody has begun too.

    Raises:
        ConfigError: it has none.
    """
    listed = _read_json(folder / "sweep.json").get("jobs", [])
    jobs = {number: JobRecord(number, list(overrides)) for number, overrides in enumerate(listed)}
    for path in sorted(folder.glob("jobs/*/job.json")):
        try:
            value = _read_json(path)
            record = JobRecord(**{**value, "attempts": [Attempt(**attempt) for attempt in value["attempts"]]})
            jobs[record.number] = record
        except (DamagedError, TypeError, KeyError) as error:
            log.warning("left out: %s (%s)", path, error)
    if not jobs:
        command = _read_json(folder / "sweep.json").get("command")
        again = f" Start it: python {command}." if command else " Start it, or give another."
        raise ConfigError(f"{folder} is a sweep without jobs: there is nothing to compare.{again}")
    return [_entry(jobs[number], folder) for number in sorted(jobs)]


def swept_values(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Key -> its value in each job, as it was typed, for the keys in which the jobs of a sweep are not all alike."""
    typed = [_typed(entry.job.overrides if entry.job else []) for entry in entries]
    keys = dict.fromkeys(key for values in typed for key in values)
    cells = {key: [values.get(key, "-") for values in typed] for key in keys}
    return {key: values for key, values in cells.items() if len(set(values)) > 1}


def shared_overrides(entries: Sequence[Entry]) -> list[str]:
    """The overrides that all jobs of a sweep have: its base."""
    jobs = [entry.job.overrides for entry in entries if entry.job]
    return [o for o in jobs[0] if all(o in job for job in jobs[1:]) and not o.startswith(ADDED)] if jobs else []


def _typed(overrides: Sequence[str]) -> dict[str, str]:
    pairs = [override.lstrip("+").partition("=") for override in overrides if not override.startswith(ADDED)]
    return {key: short_number(value) for key, _, value in pairs}


def short_number(value: str) -> str:
    """A number of many digits, as a search draws it, with four of them; all else as it is."""
    try:
        return value if len(value) <= 8 or value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def _entry(job: JobRecord, sweep: Path) -> Entry:
    folder = sweep / "jobs" / f"{job.number:04d}"
    named = job.run or _announced(folder)
    return Entry(_run(named, sweep) if named else None, job, folder)


def _announced(folder: Path) -> str | None:
    """The run's folder, as the job has said it; None before."""
    try:
        return (folder / ANNOUNCED).read_text(encoding="utf-8").split("\n")[1]
    except (FileNotFoundError, IndexError):
        return None


def _run(named: str, sweep: Path) -> Run | None:
    """The run in a folder that is named as the sweep saw it: seen from here, or beside the sweep."""
    beside = sweep.resolve().parents[1] / Path(named).parent.name / Path(named).name
    for folder in (beside, Path(named)):
        try:
            return load(folder)
        except ConfigError:  # not here
            continue
        except DamagedError as error:
            log.warning("left out what it measured: %s", error)
    return None


def _runs(outputs: str, name: str) -> list[Run]:
    folder = Path(name)
    if folder.is_dir() and not (folder / "run.json").is_file() and not _names_runs(outputs, name):
        paths = sorted({path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/run.json")})
        runs = []
        for path in paths:
            try:
                runs.append(load(path))
            except DamagedError as error:
                log.warning("left out: %s", error)
        if runs:
            return runs
        raise ConfigError(
            f"{name} holds no run and no sweep: neither run.json nor jobs/. Give a run's folder, outputs/pretrain, or "
            f"a sweep's folder under {outputs}/{SWEEPS}."
        )
    try:
        return find_runs(outputs, name)
    except ConfigError as error:
        sweeps = sorted(path.name for path in (Path(outputs) / SWEEPS).glob("*") if path.is_dir())
        said = f" Sweeps: {', '.join(sweeps[-20:])}." if sweeps else ""
        raise ConfigError(f"{error}{said}") from None


def _read_json(path: Path) -> dict[str, Any]:
    """What a file says; empty if it is not there.

    Raises:
        DamagedError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DamagedError(f"{path} cannot be read ({error}). Remove it to have it made anew.") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is no JSON object. Remove it to have it made anew.")
    return value
