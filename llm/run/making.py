"""Make a run, or find it: finished ones are reused, unfinished ones go on, and two processes never write one run."""

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from llm.config.fields import identity_settings
from llm.config.stages import Reuse, StageConfig
from llm.credentials import without_secrets
from llm.environment import command_id, launch_id, may_go_on, process_rank
from llm.errors import ConfigError, DamagedError, StoppedError, UserError, named_line
from llm.run.console import log, log_to
from llm.run.devices import as_begun, with_precision
from llm.run.files import clear_temporaries, digest_of, write_text
from llm.run.launch import announce
from llm.run.owner import EARLIER, keep_new_or_earlier, owned, set_aside, wait_for_rank_zero
from llm.run.record import (
    commit,
    differences,
    key_of,
    now,
    provenance,
    read_record,
    recorded_config,
    recorded_place,
    write_record,
)
from llm.run.runs import Run, candidates, check_metrics, list_files

PARENTS = "parents."  # how the keys of what a run is made from begin, in its identity
NO_CONTENT = ("name", "outputs", "reuse", "dry_run", "logger")  # settings whose change is nothing to tell of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage says of a run that it finished."""

    results: dict[str, Any]
    digest: str  # of what it made: what is downstream keys on it
    notes: dict[str, Any] = field(default_factory=dict)  # rights, counts of dropped records, and the like
    objective: float | None = None  # what a search minimises


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before it is made: its config, what it is made from, how it is named, and what makes it."""

    config: StageConfig
    default_name: str  # where the user gave none
    format_version: int  # of what the stage makes; raised when a change to the code alters that
    parents: dict[str, str] = field(default_factory=dict)  # what it is made from -> SHA-256 digest of that
    folders: dict[str, str] = field(default_factory=dict)  # what it is made from -> where that lies
    prepare: Callable[[Path], None] | None = None  # given the folder, before any rank begins to work in it
    work: Callable[[Run], Outcome | None]  # None above rank zero, which saves, and says what came of the run
    check: Callable[[Run], None] | None = None  # of the run once it is there, be it made now or before
    waits: bool = False  # for another process that makes this very run, in place of a refusal
    logs: bool = False  # to W&B as it goes; of others the results are logged at their end

    @property
    def stage(self) -> str:
        return self.config.stage

    @property
    def name(self) -> str:
        return self.config.name or self.default_name

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that change the content, the digests of the parents, the format."""
        return {
            "stage": self.stage,
            "format_version": self.format_version,
            "settings": identity_settings(self.config),
            "parents": self.parents,
        }

    @property
    def key(self) -> str:
        """The first hex digits of the identity's SHA-256."""
        return key_of(self.identity)


def make(plan: Plan, *, wait: bool = False) -> Run:
    """The finished run of a plan: an existing one, or the one that its work makes of a new or an unfinished folder.

    `wait` for another process that makes this very run, or do as the plan says.

    Raises:
        ConfigError: another process is at it, or reuse=require and there is no finished run.
    """
    folder = place_of(plan)
    announce(plan.stage, folder)
    if process_rank() > 0:
        run = _join(plan, folder, wait=wait or plan.waits)
    else:
        run = _reuse(plan) or _make(plan, folder, wait=wait or plan.waits)
    announce(plan.stage, run.path)  # again, for a run may have made others of its stage: larger tokenizers
    return run


def find(plan: Plan) -> Run | None:
    """The finished run that `make` would reuse, if there is one."""
    folder = place_of(plan)
    return None if _begins_anew(plan, folder) else _finished(plan, folder)


def _reuse(plan: Plan) -> Run | None:
    """The finished run that `make` would reuse, of which it says so; None if there is none."""
    if run := find(plan):
        say_reused(run, plan.config)
    return run


def place_of(plan: Plan) -> Path:
    """The folder of the run that `make` finds, or begins.

    Where the user gave no name, a finished run with the same identity serves whatever its name.
    """
    stage_folder = Path(plan.config.outputs) / plan.stage
    own = stage_folder / f"{plan.name}-{plan.key}"
    if plan.config.name or _record_of(plan, own):
        return own
    return next((folder for folder in sorted(stage_folder.glob(f"*-{plan.key}")) if _finished(plan, folder)), own)


def _record_of(plan: Plan, folder: Path) -> dict[str, Any]:
    """What run.json says; nothing if there is none, or if it cannot be trusted and the run is to be made again."""
    try:
        return read_record(folder) or {}
    except DamagedError:
        if plan.config.reuse is Reuse.never:
            return {}
        raise


def _begins_anew(plan: Plan, folder: Path) -> bool:
    """Whether what is there is to be made again: with reuse=never, and once a command."""
    return plan.config.reuse is Reuse.never and not _is_of_this_command(plan, folder)


def _is_of_this_command(plan: Plan, folder: Path) -> bool:
    """Whether an earlier start of the very command that runs here has begun the run in a folder."""
    return may_go_on() and _record_of(plan, folder).get("command_id") == command_id()


def _finished(plan: Plan, folder: Path) -> Run | None:
    record = _record_of(plan, folder)
    is_finished = record.get("status") == "done" and digest_of(record.get("identity")) == digest_of(plan.identity)
    return Run(folder, record) if is_finished else None


def _make(plan: Plan, folder: Path, *, wait: bool) -> Run:
    """Make a run, or go on with it, unless another process makes it meanwhile.

    What reuse=never set aside comes back where nothing comes of the new run; one that was stopped may go on at the next
    start of the same command.
    """
    if plan.config.reuse is Reuse.require:
        raise ConfigError(f"reuse=require, but there is no finished run {folder}. Set reuse=auto to make it.")
    with owned(folder, wait=wait):
        if (folder / EARLIER).exists() and not _is_of_this_command(plan, folder):
            keep_new_or_earlier(folder)
        if finished := _reuse(plan):  # by a process that was faster
            return finished
        if (record := _record_of(plan, folder)) and digest_of(record.get("identity")) != digest_of(plan.identity):
            raise ConfigError(f"{folder} is of another config that has the same key by chance. Set another name.")
        if _begins_anew(plan, folder):
            set_aside(folder)
        clear_temporaries(folder)
        may_go_on_later = False
        try:
            if plan.prepare:
                plan.prepare(folder)
            return _carry_out(plan, folder)
        except StoppedError:
            may_go_on_later = command_id() is not None
            raise
        finally:
            if not may_go_on_later:
                keep_new_or_earlier(folder)


def _carry_out(plan: Plan, folder: Path) -> Run:
    record = _begin(plan, folder)
    started = time.monotonic()
    with log_to(folder / "log.txt"):
        try:
            outcome = plan.work(Run(folder, record))
            assert outcome is not None, "rank zero says what came of the run"
            ended = {"ended_at": now(), "seconds": round(time.monotonic() - started, 1)}
            made = asdict(outcome) | {"files": list_files(folder)}
            done = Run(folder, write_record(folder, record | ended | made | {"status": "done"}))
        except StoppedError as stop:
            write_record(folder, record | {"ended_at": now(), "stopped": str(stop)})
            raise
        except BaseException as error:
            if not isinstance(error, UserError):
                log.debug("%s", traceback.format_exc())
            failed = {"status": "failed", "ended_at": now(), "error": without_secrets(named_line(error))}
            with suppress(OSError):  # of a folder that is gone, a disk that is full: what ended the work is to be told
                write_record(folder, record | failed)
            raise
        log.info("%s done in %.0f s: %s", plan.stage, done.record["seconds"], folder)
    return done


def _begin(plan: Plan, folder: Path) -> dict[str, Any]:
    """The record of a run that starts or goes on, as it is on disk too."""
    earlier = read_record(folder) or {}
    _say_started(plan, folder, is_resumed=bool(earlier))
    record = {
        "stage": plan.stage,
        "name": plan.name,
        "key": plan.key,
        "status": "running",
        **provenance(),
        "first_started_at": earlier.get("first_started_at", now()),
        "command_id": command_id(),
        "launch": launch_id(),
        "identity": plan.identity,
        "folders": {role: recorded_place(Path(of), plan.config.outputs) for role, of in plan.folders.items()},
    }
    config: Any = as_begun(plan.config, earlier)
    if hasattr(config, "trainer"):
        config = replace(config, trainer=with_precision(config.trainer))
        record["precision"] = config.trainer.precision.name
    write_text(folder / "config.yaml", yaml.safe_dump(recorded_config(config), allow_unicode=True, sort_keys=False))
    return write_record(folder, record)


def _join(plan: Plan, folder: Path, *, wait: bool) -> Run:
    """What ranks above zero do: wait for rank zero to make the run, or to start it, and then work beside it."""
    launch = launch_id()
    if launch is None:
        raise ConfigError(
            "RANK is set, but this launch has no id of its own. Unset it, or start with srun, or with "
            "torch.distributed.run --standalone or --rdzv-id."
        )

    def look() -> Run | None:
        record = read_record(folder) or {}
        of_this_launch = record.get("launch") == launch
        if record.get("status") == "done" and (of_this_launch or not _begins_anew(plan, folder)):
            return Run(folder, record)
        if of_this_launch and record["status"] == "failed":
            raise DamagedError(f"{folder}: rank 0 failed: {record['error']}")
        if of_this_launch and "stopped" in record:
            raise StoppedError(record["stopped"])
        is_of_all = of_this_launch and not wait  # else it is made by rank zero alone
        return Run(folder, record) if is_of_all else None

    run = wait_for_rank_zero(folder, look)
    if not run.is_done:
        plan.work(run)
    return run


def say_reused(run: Run, config: StageConfig) -> None:
    """Log which run serves a config, and which of the config's settings it was not made with."""
    made_by, here = run.record.get("commit"), commit()
    other = f" by commit {made_by}, this is {here}" if made_by != here else ""
    log.info("reused %s (made %s%s)", run.path, run.record["ended_at"], other)
    try:
        check_metrics(run)
    except DamagedError as error:  # what it made can be used all the same
        log.warning("%s", error)
    is_on_the_way = getattr(config, "logger", config) is None  # of another stage, whose reuse=never it is not
    hint = "" if is_on_the_way or config.reuse is Reuse.never else ". reuse=never runs again"
    for key, old, new in differences(run.config, recorded_config(as_begun(config, run.record))):
        if key.split(".")[0] not in NO_CONTENT:
            log.info("  %s=%s is not applied (it was %s); it changes no content%s", key, new, old, hint)


def _say_started(plan: Plan, folder: Path, *, is_resumed: bool) -> None:
    log.info("%s %s in %s", plan.stage, "goes on" if is_resumed else "starts", folder)
    siblings = [
        list(differences(run.record.get("identity", {}), plan.identity))
        for run in ([] if is_resumed else candidates(plan.config.outputs, plan.stage))
        if run.record["name"] == plan.name and run.path != folder
    ]
    nearest: list[tuple[str, Any, Any]] = min(siblings, key=len, default=[])
    if nearest and (plan.config.name or any(not key.startswith(PARENTS) for key, *_ in nearest)):
        changed = ", ".join(_difference(*each) for each in nearest)
        log.info("  a new run, for it differs from the nearest of that name in %s", changed)


def _difference(key: str, old: Any, new: Any) -> str:
    if key.startswith(PARENTS):  # a digest says nothing to a person
        return f"its {key.removeprefix(PARENTS).replace('_', ' ')}"
    return f"{key.removeprefix('settings.')}={new} (was {old})"
