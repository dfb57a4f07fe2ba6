"""A plan whose trainer.precision is auto -> what that is for the run that it is of, wherever that goes on."""

from dataclasses import replace
from typing import Any

from llm.config.training import Precision, TrainerConfig
from llm.environment import launch_id, process_rank
from llm.run.console import log, start_logging
from llm.run.devices import fast_precision, with_precision
from llm.run.identity import Plan
from llm.run.making import begins_anew, place_of, record_in
from llm.run.waiting import looks


def settled_trainer(plan: Plan) -> TrainerConfig:
    """The plan's trainer, with the precision that the run was begun in on whatever machine; of a new run, what is fast.

    Rank zero decides, and the others do as it has recorded: their devices may be of another kind.
    """
    start_logging()
    trainer = _trainer(plan)
    if trainer.precision is not Precision.auto:
        return with_precision(trainer)
    if process_rank() > 0:
        return _trainer(_as_rank_zero(plan))
    fast, _ = fast_precision(trainer)
    found = [(_is_done(each), each) for each in _both(plan, first=fast) if _may_go_on(each)]
    if not found:
        return with_precision(trainer)
    chosen = max(found, key=lambda each: each[0])[1]  # of two that stand alike the first: what is fast here
    if (begun := _trainer(chosen)).precision is not fast:
        log.info("trainer.precision=auto is %s, which %s was begun in", begun.precision.name, place_of(chosen))
    return with_precision(begun)


def _as_rank_zero(plan: Plan) -> Plan:
    both = _both(plan, first=Precision.fp32)
    wait = looks([place_of(each) for each in both])
    while True:
        for each in both:
            if _record(each).get("launch") == launch_id() or (_is_done(each) and _may_go_on(each)):
                return each
        next(wait)


def _both(plan: Plan, *, first: Precision) -> list[Plan]:
    kinds = sorted((Precision.fp32, Precision.bf16), key=lambda kind: kind is not first)
    config: Any = plan.config
    trainers = [replace(_trainer(plan), precision=kind) for kind in kinds]
    return [replace(plan, config=replace(config, trainer=trainer)) for trainer in trainers]


def _may_go_on(plan: Plan) -> bool:
    """Whether there is a run that is not to be begun anew."""
    return bool(_record(plan)) and not begins_anew(plan, place_of(plan))


def _is_done(plan: Plan) -> bool:
    return _record(plan).get("status") == "done"


def _record(plan: Plan) -> dict[str, Any]:
    return record_in(place_of(plan), plan) or {}


def _trainer(plan: Plan) -> TrainerConfig:
    config: Any = plan.config  # of a stage that trains
    trainer: TrainerConfig = config.trainer
    return trainer
