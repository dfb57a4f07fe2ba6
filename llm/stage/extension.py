"""A longer run of a warmup-stable-decay schedule -> the beginning it shares with a shorter one that is there already.

The two are the same run, to the last bit, until the shorter one begins to decay.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from llm.config.stages import PretrainStage, Reuse
from llm.config.training import Schedule
from llm.run.console import log
from llm.run.files import whole_folder
from llm.run.making import Plan
from llm.run.record import differences
from llm.run.runs import candidates

LENGTH = "settings.trainer.max_steps"


def copy_beginning(folder: Path, plan: Plan, config: PretrainStage) -> None:
    """Copy the latest checkpoint of the stable phase that another run of these settings left, and what led there."""
    checkpoints = folder / "checkpoints"
    if config.optimizer.schedule is not Schedule.wsd or config.reuse is Reuse.never or any(checkpoints.glob("*")):
        return
    from llm.trainer.checkpoint import find_fault, step_of  # takes seconds

    found = [path for path in _shared_checkpoints(plan, config) if not find_fault(path)]
    if not found:
        return
    newest = max(found, key=step_of)
    other = newest.parents[1]
    for name in ("metrics.jsonl", "samples.jsonl"):  # cut to where the checkpoint was, when training goes on
        shutil.copyfile(other / name, folder / name)
    with whole_folder(checkpoints / newest.name) as target:
        shutil.copytree(newest, target, dirs_exist_ok=True)
    log.info("until step %d this is %s, whose checkpoint it goes on from", step_of(newest), other)


def _shared_checkpoints(plan: Plan, config: PretrainStage) -> Iterator[Path]:
    from llm.optimizer import extension_step
    from llm.trainer.checkpoint import PREFIX, step_of

    for other in candidates(config.outputs, plan.stage):
        identity = other.record.get("identity") or {}
        if {key for key, *_ in differences(identity, plan.identity)} == {LENGTH}:
            lengths = (config.trainer.max_steps, identity["settings"]["trainer"]["max_steps"])
            until = min(extension_step(config.optimizer, max_steps=length) or 0 for length in lengths)
            yield from (path for path in (other.path / "checkpoints").glob(f"{PREFIX}*") if step_of(path) <= until)
