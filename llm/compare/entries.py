"""What a user names -> what is compared: runs, and jobs of a sweep that may have left none yet."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.errors import ConfigError, DamagedError
from llm.run.console import log
from llm.run.launch import read_result
from llm.run.models import read_json
from llm.run.owner import is_owned
from llm.run.record import METRICS, history
from llm.run.runs import Run, check_files, find_runs, load, metrics_of

SWEEPS = "sweeps"  # under outputs
LOSSES = ("val/bits_per_byte", "val/loss")  # what is ranked by; lower is better
MEASURED = (*LOSSES, "train/loss", "tokens", "seconds")  # what a run that is not done has to show
NOT_RESULTS = ("bos_id", "eos_id")
OF_TOKENIZER = ("vocab_size", "lost_bytes_share", "lossless_documents")
TEXT_READ = "megabytes_of_text"
FAILURES_ASIDE = (None, "done")  # kinds of an attempt that failed at nothing


@dataclass(frozen=True, eq=False)
class Entry:
    """What is compared: a run, a job of a sweep, or a job with its run."""

    run: Run | None
    job: Path | None = None  # its folder
    overrides: Sequence[str] = ()  # of the job
    job_state: str = "waiting"
    job_error: str = ""  # why its last attempt failed

    @property
    def path(self) -> Path:
        found = self.run.path if self.run else self.job
        assert found is not None
        return found

    @property
    def name(self) -> str:
        """The run's folder, by its name; of a job without one its number."""
        return self.run.path.name if self.run else f"job {int(self.path.name)}"

    @property
    def stage(self) -> str:
        """Of the run; of a job without one as it was typed."""
        typed = [override.partition("=")[2] for override in self.overrides if override.startswith("stage=")]
        return self.run.stage if self.run else [*typed, "-"][0]

    @property
    def is_done(self) -> bool:
        return self.run is not None and self.run.is_done

    @cached_property
    def state(self) -> str:
        """done, running, failed, stopped (it can go on), unfinished (nobody is at it), or waiting."""
        if self.run and (self.job is None or self.run.is_done or self.job_state in ("done", "waiting")):
            return "stopped" if self.run.state == "unfinished" and "stopped" in self.run.record else self.run.state
        return "unfinished" if self.job_state == "running" and not is_owned(self.path) else self.job_state

    @property
    def error(self) -> str:
        """Why it failed, in one line; empty if it did not."""
        return (self.state == "failed" and self.job_error) or (
            str(self.run.record.get("error", "")) if self.run else ""
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config; empty before there is one."""
        try:
            return self.run.config if self.run else {}
        except (OSError, ValueError, TypeError):
            log.warning("%s/config.yaml is missing or cannot be read: its settings are not compared", self.path)
            return {}

    @cached_property
    def outcome(self) -> dict[str, float]:
        """What came out, in numbers: the results of a finished run, else the last that it measured."""
        if self.run is None:
            return {}
        if not self.run.is_done:
            records = self.lines(METRICS)
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
        if self.job:  # a recorded sweep (sweep=...) among the overrides would start all of it
            return f"python train.py {shlex.join([*self.overrides, 'hydra.mode=RUN'])}"
        recorded = str(self.run.record.get("command", "")) if self.run else ""
        program, *words = shlex.split(recorded) or [""]
        return f"python {shlex.join(['train.py', *words])}" if Path(program).name == "train.py" else recorded


def find_entries(outputs: str, names: Sequence[str]) -> tuple[list[Entry], Path | None]:
    """(all that the names mean; the sweep, where they mean one and nothing else).

    Raises:
        ConfigError: a name or a folder means nothing, or a sweep has no jobs.
        DamagedError: a finished run's config is not what it was.
    """
    meant = [_meant(outputs, name) for name in names]
    entries = [entry for found, _ in meant for entry in found]
    for entry in entries:
        if entry.run and entry.is_done:
            check_files(entry.run, under="config.yaml")
    return entries, meant[0][1] if len(meant) == 1 else None


def _meant(outputs: str, name: str) -> tuple[list[Entry], Path | None]:
    """(the entries, the sweep if it is one) of a sweep's folder or name, or of runs."""
    sweeps = Path(outputs) / SWEEPS
    named = [path for path in sorted(sweeps.glob("*")) if path.name.rpartition("-")[0] == name]
    if sweep := next(filter(_is_sweep, (Path(name), sweeps / name, Path(outputs) / name)), None):
        return read_sweep(sweep), sweep
    try:
        return [Entry(run) for run in find_runs(outputs, name)], None
    except ConfigError:
        if len(named) > 1:
            listed = ", ".join(path.name for path in named)
            raise ConfigError(f"{len(named)} sweeps are named {name}: {listed}. Give one of these.") from None
        if named:
            return read_sweep(named[0]), named[0]
        raise


def _is_sweep(folder: Path) -> bool:
    is_one = (folder / "sweep.json").is_file() or (folder / "jobs").is_dir() or folder.resolve().parent.name == SWEEPS
    return folder.is_dir() and is_one and not (folder / "run.json").is_file()


def read_sweep(folder: Path) -> list[Entry]:
    """Every job of a sweep in their order, those that nobody has begun too.

    Raises:
        ConfigError: it has none.
    """
    planned = _read_if_there(folder / "sweep.json").get("jobs", [])
    said: dict[int, dict[str, Any]] = {number: {"overrides": overrides} for number, overrides in enumerate(planned)}
    for path in folder.glob("jobs/*/job.json"):
        try:
            said[int(path.parent.name)] = read_json(path)
        except DamagedError as error:
            log.warning("left out: %s", error)
    if not said:
        raise ConfigError(f"{folder} is a sweep without jobs: there is nothing to compare. Start it, or give another.")
    return [_entry(folder / "jobs" / f"{number:04d}", said[number]) for number in sorted(said)]


def _entry(job: Path, said: dict[str, Any]) -> Entry:
    """The job of a folder, by what its job.json says."""
    last = [{}, *said.get("attempts", [])][-1]
    error = "" if last.get("kind") in FAILURES_ASIDE else ": ".join(filter(None, [last["kind"], last.get("message")]))
    return Entry(_run_of(job, said.get("run")), job, said["overrides"], said.get("state", "waiting"), error)


def _run_of(job: Path, named: str | None) -> Run | None:
    """The run of a job, in the folder that its sweep named, or that it has announced: seen from here, or beside it."""
    told = read_result(job)  # as soon as the job has begun it
    if not (named := named or (told.run if told else None)):
        return None
    beside = job.resolve().parents[3] / Path(named).parent.name / Path(named).name
    for folder in (beside, Path(named)):
        try:
            return load(folder)
        except ConfigError:  # not here
            continue
        except DamagedError as error:
            log.warning("left out what it measured: %s", error)
            break
    return None


def objective_of(sweep: Path | None, entries: Sequence[Entry]) -> tuple[str | None, bool]:
    """(the metric, whether the highest is the best) that a search is for first, once a run has measured it."""
    said = _read_if_there(sweep / "search.json") if sweep else {}
    if not said or not any(said["objectives"][0] in entry.outcome for entry in entries):
        return None, False
    return said["objectives"][0], said["directions"][0] == "maximize"


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
