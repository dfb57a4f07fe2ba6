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
from llm.run.announcing import announce
from llm.run.console import log, log_to, start_logging
from llm.run.earlier import EARLIER, keep_new_or_earlier, set_aside, taking_its_place
from llm.run.files import clear_temporaries, digest_of, write_text
from llm.run.owner import forget_dead_owner, owned, wait_for_rank_zero
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

KEY_DIGITS = (8, 16, 64)  # the next where a run of another identity has the key: of 2**32 some two may share one


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before it is made: its config, what it is made from, and how it is named."""

    config: StageConfig
    default_name: str  # where the user gave none
    format_version: int  # of what the stage makes; raised when a change to the code alters that
    parents: dict[str, str] = field(default_factory=dict)  # what it is made from -> SHA-256 digest of that
    folders: dict[str, str] = field(default_factory=dict)  # what it is made from -> where that lies
    key_digits: int = KEY_DIGITS[0]

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
        return key_of(self.identity, digits=self.key_digits)

    def is_of(self, record: dict[str, Any]) -> bool:
        """Whether the run that a run.json is of is this one."""
        return digest_of(record.get("identity")) == digest_of(self.identity)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage says of a run that it finished."""

    results: dict[str, Any]
    digest: str  # of what it made: what is downstream keys on it
    notes: dict[str, Any] = field(default_factory=dict)  # rights, counts of dropped records, and the like
    objective: float | None = None  # what a search minimises


PARENTS = "parents."  # how the keys of what a run is made from begin, in its identity
RankWork = Callable[[Run], Outcome | None]  # None above rank zero, which saves, and says what came of the run


def make(
    plan: Plan,
    work: RankWork,
    *,
    wait: bool = False,
    prepare: Callable[[Path], None] | None = None,
) -> Run:
    """The finished run of `plan`: an existing one, or the one that `work` makes of a new or an unfinished folder.

    `wait` says what to do while another process makes this very run: wait for it, or refuse. `prepare` is given the
    folder before any rank begins to work in it.

    Raises:
        ConfigError: another process is at it, or reuse=require and there is no finished run.
    """
    start_logging()
    plan, folder = _folder_of(plan)
    announce(plan.stage, folder)
    run = _find_or_make(plan, folder, work, wait=wait, prepare=prepare)
    announce(plan.stage, run.path)  # again, for a run may have made others of its stage: larger tokenizers
    return run


def find(plan: Plan) -> tuple[Run | None, Path]:
    """(the finished run that `make` would reuse, if there is one; the folder that the run has, or would have)."""
    plan, folder = _folder_of(plan)
    return (None if begins_anew(plan, folder) else _finished(plan, folder)), folder


def reuse(plan: Plan) -> Run | None:
    """The finished run that `make` would reuse, of which it says so; None if there is none."""
    return _reusable(*_folder_of(plan))


def place_of(plan: Plan) -> Path:
    """The folder of the run that `make` finds, or begins."""
    return _folder_of(plan)[1]


def begins_anew(plan: Plan, folder: Path) -> bool:
    """Whether what is there is to be made again: with reuse=never, and once a command."""
    return plan.config.reuse is Reuse.never and not _is_of_this_command(plan, folder)


def _find_or_make(
    plan: Plan,
    folder: Path,
    work: RankWork,
    *,
    wait: bool,
    prepare: Callable[[Path], None] | None,
) -> Run:
    if process_rank() > 0:
        return _join(plan, folder, work, wait=wait)
    if finished := _reusable(plan, folder):
        return finished
    if plan.config.reuse is Reuse.require:
        raise ConfigError(f"reuse=require, but there is no finished run {folder}. Set reuse=auto to make it.")
    with owned(folder, wait=wait) as has_waited:
        if (folder / EARLIER).exists() and not _is_of_this_command(plan, folder):
            keep_new_or_earlier(folder)
        if _is_of_another(plan, record_in(folder, plan)):  # who took the same key while this process looked for it
            raise ConfigError(f"{folder} has just become that of another config. Start the same command again.")
        if has_waited and (finished := _finished(plan, folder)):
            return finished
        if finished := _reusable(plan, folder):  # by a process that was faster
            return finished
        if begins_anew(plan, folder):
            set_aside(folder)
        clear_temporaries(folder)
        with taking_its_place(folder):
            if prepare:
                prepare(folder)
            return _carry_out(plan, folder, work)


def _carry_out(plan: Plan, folder: Path, work: RankWork) -> Run:
    record = _begin(plan, folder)
    started = time.monotonic()
    with log_to(folder / "log.txt"):
        try:
            outcome = work(Run(folder, record))
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
            with suppress(OSError):  # of a folder that is gone, a disk that is full: what ended the work is to be told
                write_record(
                    folder,
                    record | {"status": "failed", "ended_at": now(), "error": without_secrets(named_line(error))},
                )
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
    config = yaml.safe_dump(recorded_config(plan.config), allow_unicode=True, sort_keys=False)
    write_text(folder / "config.yaml", config)
    return write_record(folder, record)


def _join(plan: Plan, folder: Path, work: RankWork, *, wait: bool) -> Run:
    """What ranks above zero do: wait for rank zero to make the run, or to start it, and then work beside it."""
    launch = launch_id()
    if launch is None:
        raise ConfigError(
            "RANK is set, but not by torch.distributed.run or srun. Unset it, or start with one of these."
        )

    def look() -> Run | None:
        record = read_record(folder) or {}
        of_this_launch = record.get("launch") == launch
        if record.get("status") == "done" and (of_this_launch or not begins_anew(plan, folder)):
            return Run(folder, record)
        if of_this_launch and record["status"] == "failed":
            raise DamagedError(f"{folder}: rank 0 failed: {record['error']}")
        if of_this_launch and "stopped" in record:
            raise StoppedError(record["stopped"])
        is_of_all = of_this_launch and not wait  # else it is made by rank zero alone
        return Run(folder, record) if is_of_all else None

    run = wait_for_rank_zero([folder], look)
    if not run.is_done:
        work(run)
    return run


def _reusable(plan: Plan, folder: Path) -> Run | None:
    """The finished run in a folder, unless it is to be made again; says that it is reused."""
    if begins_anew(plan, folder) or not (run := _finished(plan, folder)):
        return None
    forget_dead_owner(folder)
    _say_reused(run, plan)
    return run


def _folder_of(plan: Plan) -> tuple[Plan, Path]:
    """(the plan, with a longer key where another run has its own; the run's folder).

    Where the user gave no name, a finished run with the same identity serves whatever its name.
    """
    stage_folder = Path(plan.config.outputs) / plan.stage
    keyed = [replace(plan, key_digits=digits) for digits in KEY_DIGITS]
    own = [(each, stage_folder / f"{each.name}-{each.key}") for each in keyed]
    records = [record_in(folder, plan) for _, folder in own]
    if begun := [place for place, record in zip(own, records, strict=True) if record and plan.is_of(record)]:
        return begun[0]
    others = [(each, path) for each in keyed for path in sorted(stage_folder.glob(f"*-{each.key}"))]
    if plan.config.name is None and (found := [place for place in others if _finished(*place)]):
        return found[0]
    return next(place for place, record in zip(own, records, strict=True) if not _is_of_another(plan, record))


def record_in(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """What run.json says; None if there is none, or if it cannot be trusted and the run is to be made again."""
    try:
        return read_record(folder)
    except DamagedError:
        if plan.config.reuse is Reuse.never:
            return None
        raise


def _is_of_another(plan: Plan, record: dict[str, Any] | None) -> bool:
    return record is not None and not plan.is_of(record)


def _finished(plan: Plan, folder: Path) -> Run | None:
    record = record_in(folder, plan)
    return Run(folder, record) if record and record["status"] == "done" and plan.is_of(record) else None


def _is_of_this_command(plan: Plan, folder: Path) -> bool:
    """Whether an earlier start of the very command that runs here has begun the run in a folder."""
    return may_go_on() and (record_in(folder, plan) or {}).get("command_id") == command_id()


def _say_reused(run: Run, plan: Plan) -> None:
    made_by, here = run.record.get("commit"), commit()
    other = f" by commit {made_by}, this is {here}" if made_by != here else ""
    log.info("reused %s (made %s%s)", run.path, run.record["ended_at"], other)
    try:
        check_metrics(run)
    except DamagedError as error:  # what it made can be used all the same
        log.warning("%s", error)
    is_on_the_way = getattr(plan.config, "logger", plan) is None  # of another stage, whose reuse=never it is not
    hint = "" if is_on_the_way or plan.config.reuse is Reuse.never else ". reuse=never runs again"
    for key, old, new in differences(run.config, recorded_config(plan.config)):
        if key.split(".")[0] not in ("name", "outputs", "reuse", "dry_run", "logger"):
            log.info("  %s=%s is not applied (it was %s); it changes no content%s", key, new, old, hint)


def _say_started(plan: Plan, folder: Path, *, is_resumed: bool) -> None:
    if is_resumed:
        log.info("%s goes on in %s", plan.stage, folder)
        return
    log.info("%s starts in %s", plan.stage, folder)
    siblings = [
        list(differences(run.record.get("identity", {}), plan.identity))
        for run in candidates(plan.config.outputs, plan.stage)
        if run.record["name"] == plan.name and run.path != folder
    ]
    nearest: list[tuple[str, Any, Any]] = min(siblings, key=len, default=[])
    if nearest and (plan.config.name or any(not key.startswith(PARENTS) for key, *_ in nearest)):
        changed = ", ".join(_difference(*each) for each in nearest)
        log.info("  a new run, for it differs from the nearest of that name in %s", changed)


def _difference(key: str, old: Any, new: Any) -> str:
    if key.startswith(PARENTS):  # a digest says nothing to a person
        return f"its {key.removeprefix(PARENTS).replace('_', ' ')}"
    return f"{key.removeprefix('settings.')}={_short(new)} (was {_short(old)})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"
