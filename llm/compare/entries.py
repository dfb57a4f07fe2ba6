"""What a user names -> what is compared: runs, and jobs of a sweep that may have left none yet."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.errors import ConfigError, DamagedError
from llm.run.announcing import read_result
from llm.run.console import log
from llm.run.metrics import history
from llm.run.models import read_json
from llm.run.owner import is_owned
from llm.run.runs import Run, find_runs, load, metrics_of

SWEEPS = "sweeps"  # under outputs
LOSSES = ("val/bits_per_byte", "val/loss")  # what is ranked by; lower is better
MEASURED = (*LOSSES, "train/loss", "tokens", "seconds")  # what a run that is not done has to show
NOT_RESULTS = ("bos_id", "eos_id")
OF_TOKENIZER = ("vocab_size", "lost_bytes_share", "lossless_documents")
TEXT_READ = "megabytes_of_text"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of a sweep, as its folder tells."""

    folder: Path
    number: int
    overrides: list[str]
    state: str = "waiting"
    run: str | None = None  # its run's folder, as the sweep saw it
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def error(self) -> str:
        """Why its last attempt failed: the kind, and one line; empty if it did not."""
        last = self.attempts[-1] if self.attempts else {}
        kind = last.get("kind")
        return ": ".join(filter(None, [kind, last.get("message")])) if kind not in (None, "done") else ""


@dataclass(frozen=True, eq=False)
class Entry:
    """What is compared: a run, a job of a sweep, or a job with its run."""

    run: Run | None
    job: Job | None = None

    @property
    def name(self) -> str:
        """The run's folder, by its name; of a job without one its number."""
        return self.run.path.name if self.run else f"job {self.job.number if self.job else '?'}"

    @property
    def path(self) -> Path:
        found = self.run.path if self.run else self.job.folder if self.job else None
        assert found is not None
        return found

    @property
    def stage(self) -> str:
        """Of the run; of a job without one as it was typed."""
        typed = [o.partition("=")[2] for o in (self.job.overrides if self.job else []) if o.startswith("stage=")]
        return self.run.stage if self.run else (typed or ["-"])[-1]

    @property
    def is_done(self) -> bool:
        return self.run is not None and self.run.is_done

    @cached_property
    def state(self) -> str:
        """done, running, failed, stopped (it can go on), unfinished (nobody is at it), or waiting."""
        if self.run is not None and (self.job is None or self.run.is_done or self.job.state in ("done", "waiting")):
            state = self.run.state
            return "stopped" if state == "unfinished" and "stopped" in self.run.record else state
        assert self.job is not None
        return "unfinished" if self.job.state == "running" and not is_owned(self.job.folder) else self.job.state

    @property
    def error(self) -> str:
        """Why it failed, in one line; empty if it did not."""
        if self.state == "failed" and self.job and self.job.error:
            return self.job.error
        return str(self.run.record.get("error", "")) if self.run else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config; empty before there is one."""
        if self.run is None:
            return {}
        try:
            return self.run.config
        except (OSError, ValueError, TypeError):
            log.warning("%s/config.yaml is missing or cannot be read: its settings are not compared", self.run.path)
            return {}

    @cached_property
    def outcome(self) -> dict[str, float]:
        """What came out, in numbers: the results of a finished run, else the last that it measured."""
        if self.run is None:
            return {}
        if not self.run.is_done:
            records = self.lines("metrics.jsonl")
            by_part = sorted({n for r in records for n in r if n.startswith(tuple(f"{loss}/" for loss in LOSSES))})
            return {name: found[-1][1] for name in (*MEASURED, *by_part) if (found := history(records, name))}
        numbers = {k: v for k, v in self.run.results.items() if isinstance(v, int | float) and k not in NOT_RESULTS}
        ranked_by = {name: numbers[name] for name in LOSSES if name in numbers}
        return ranked_by | numbers | {"seconds": self.run.record["seconds"]}

    @cached_property
    def tokenizer_outcome(self) -> dict[str, float]:
        """What a pretraining's tokenizer did to its text; empty of another run, or where the tokenizer's is gone."""
        if self.run is None or self.run.stage != "pretrain":
            return {}
        try:
            of = self.run.parent("tokenizer").results
            text = self.run.parent("shards").results["train"] if "shards" in self.run.places else {}
        except (KeyError, OSError, ValueError):
            return {}
        found = {name: of[name] for name in OF_TOKENIZER if name in of}
        if text.get("tokens") and "tokens" in self.outcome:  # at the bytes that a token of the training text spells
            found[TEXT_READ] = self.outcome["tokens"] * text["raw_bytes"] / text["tokens"] / 1e6
        return found

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What the run wrote line by line into a file: its metrics, or its samples; none where that is damaged."""
        try:
            return metrics_of(self.run, name) if self.run else []
        except DamagedError as error:
            log.warning("left out: %s", error)
            return []

    @property
    def command(self) -> str:
        """What makes it again: the overrides of its job, else the command that it was started by."""
        if self.job is not None:
            # A recorded sweep (sweep=...) among the overrides would start all of it.
            return f"python train.py {shlex.join([*self.job.overrides, 'hydra.mode=RUN'])}"
        recorded = str(self.run.record.get("command", "")) if self.run else ""
        words = shlex.split(recorded) if recorded else []
        if words and Path(words[0]).name == "train.py":
            return f"python {shlex.join(['train.py', *words[1:]])}"
        return recorded


@dataclass(frozen=True)
class Found:
    """What is compared, and if it is one sweep, which."""

    entries: list[Entry]
    sweep: Path | None = None
    num_repeated: int = 0  # that stood for a run that was there already

    def objective(self) -> tuple[str, bool] | None:
        """(the metric, whether the highest is the best) that a search is for first, once a run has measured it."""
        said = _read_if_there(self.sweep / "search.json") if self.sweep else {}
        if not said or not any(said["objectives"][0] in entry.outcome for entry in self.entries):
            return None
        return said["objectives"][0], said["directions"][0] == "maximize"


def find_entries(outputs: str, names: Sequence[str]) -> Found:
    """All that the names mean, each run once.

    Raises:
        ConfigError: a name or a folder means nothing, or a sweep has no jobs.
    """
    found: list[Entry] = []
    sweeps = []
    for name in names:
        entries, sweep = _meant(outputs, name)
        found += entries
        sweeps.append(sweep)
    return once_each(found, sweep=sweeps[0] if len(sweeps) == 1 else None)


def once_each(entries: Sequence[Entry], *, sweep: Path | None = None) -> Found:
    """Of entries that share a run the first."""
    once: dict[Path, Entry] = {}
    for entry in entries:
        once.setdefault(entry.path.resolve(), entry)
    return Found(list(once.values()), sweep, len(entries) - len(once))


def _meant(outputs: str, name: str) -> tuple[list[Entry], Path | None]:
    """(the entries, the sweep if it is one) of a sweep's folder or name, of runs, or of a folder of runs.

    Raises:
        ConfigError: there is no such thing, or several sweeps have that name.
    """
    root, folder = Path(outputs) / SWEEPS, Path(name)
    if sweep := next((place for place in (folder, root / name, Path(outputs) / name) if _is_sweep(place)), None):
        return read_sweep(sweep), sweep
    try:
        return [Entry(run) for run in find_runs(outputs, name)], None
    except ConfigError as error:
        missing = str(error)
    sweeps = sorted(path for path in root.glob("*") if path.is_dir())
    named = [path for path in sweeps if path.name.rpartition("-")[0] == name]
    if len(named) > 1:
        listed = ", ".join(path.name for path in named)
        raise ConfigError(f"{len(named)} sweeps are named {name}: {listed}. Give one of these.")
    if named:
        return read_sweep(named[0]), named[0]
    if folder.is_dir():
        return _runs_in(folder, outputs), None
    raise ConfigError(f"{missing} Sweeps: {', '.join(path.name for path in sweeps[-20:])}." if sweeps else missing)


def _is_sweep(folder: Path) -> bool:
    if not folder.is_dir() or (folder / "run.json").is_file():
        return False
    has_jobs = (folder / "sweep.json").is_file() or (folder / "jobs").is_dir()
    return has_jobs or folder.resolve().parent.name == SWEEPS


def _runs_in(folder: Path, outputs: str) -> list[Entry]:
    """The runs in a folder, or in the folders of it."""
    entries = []
    for path in sorted({path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/run.json")}):
        try:
            entries.append(Entry(load(path)))
        except DamagedError as error:
            log.warning("left out: %s", error)
    if not entries:
        raise ConfigError(
            f"{folder} holds no run and no sweep: neither run.json nor jobs/. Give a run's folder, outputs/pretrain, "
            f"or a sweep's folder under {outputs}/{SWEEPS}."
        )
    return entries


def read_sweep(folder: Path) -> list[Entry]:
    """Every job of a sweep in their order, those that nobody has begun too.

    Raises:
        ConfigError: it has none.
    """
    sweep = _read_if_there(folder / "sweep.json")
    listed = {number: {"overrides": overrides} for number, overrides in enumerate(sweep.get("jobs", []))}
    for path in folder.glob("jobs/*/job.json"):
        try:
            said = read_json(path)
            listed[said["number"]] = {k: said[k] for k in ("overrides", "state", "run", "attempts")}
        except (DamagedError, KeyError) as error:
            log.warning("left out: %s (%s)", path, error)
    if not listed:
        again = f" Start it: python {sweep['command']}." if "command" in sweep else " Start it, or give another."
        raise ConfigError(f"{folder} is a sweep without jobs: there is nothing to compare.{again}")
    jobs = [Job(folder=folder / "jobs" / f"{n:04d}", number=n, **said) for n, said in sorted(listed.items())]
    return [Entry(_run_of(job), job) for job in jobs]


def _run_of(job: Job) -> Run | None:
    """The run of a job, in the folder that its sweep named, or that it has announced: seen from here, or beside it."""
    told = read_result(job.folder)  # as soon as the job has begun it
    named = job.run or (told.run if told else None)
    if not named:
        return None
    beside = job.folder.resolve().parents[3] / Path(named).parent.name / Path(named).name
    for folder in (beside, Path(named)):
        try:
            return load(folder)
        except ConfigError:  # not here
            continue
        except DamagedError as error:
            log.warning("left out what it measured: %s", error)
            break
    return None


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
