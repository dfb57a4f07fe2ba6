"""Jobs of a grid -> trials of each set that differs in its seed alone, longer ones of the better half, and the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from llm.errors import LaunchError
from llm.run.console import log
from llm.sweep.driver import error_of
from llm.sweep.jobs import Job, varying

SEED = "seed="
Arm = tuple[str, ...]  # the overrides that jobs share which differ in their seed alone
Choices = dict[Arm, list[list[str]]]  # the values that the jobs of each may take


@dataclass(frozen=True)
class Trial:
    """A job with values that those of its arm may take."""

    arm: Arm
    values: list[str]
    overrides: list[str]


def arm_of(job: Sequence[str]) -> Arm:
    """The overrides of a job, but for its seed."""
    return tuple(override for override in job if not override.startswith(SEED))


def trials_of(choices: Choices, shortened: Mapping[Arm, list[str]]) -> list[Trial]:
    """Each choice of values for each arm; `shortened` is what makes a job of it a trial."""
    return [Trial(arm, own, [*arm, *own, *shortened[arm]]) for arm, values in choices.items() for own in values]


def best_choices(
    trials: Sequence[Trial], ended: Sequence[Job], *, is_last: bool
) -> tuple[Choices, dict[Arm, LaunchError]]:
    """(the values by which each arm had the lowest objective, of the last trials the best alone, else the better half;
    of the arms that have none, why)."""
    found: dict[Arm, list[tuple[float, Trial, Job]]] = {}
    for trial, job in zip(trials, ended, strict=True):
        objective = job.run.objective if job.run else None
        worth = inf if objective is None or not isfinite(objective) else objective
        found.setdefault(trial.arm, []).append((worth, trial, job))
    names = dict(zip(found, varying(list(map(list, found))), strict=True))
    choices, lost = Choices(), {}
    for arm, of in found.items():
        ranked = sorted((each for each in of if each[0] < inf), key=lambda each: each[0])
        kept = ranked[: 1 if is_last else (len(of) + 1) // 2]
        if not kept:
            why = error_of(of[0][2]) or "not finite"
            lost[arm] = LaunchError(f"no trial of it came to its end with a finite loss, the first: {why}")
            continue
        choices[arm] = [trial.values for _, trial, _ in kept]
        tried = ", ".join(f"{' '.join(trial.values)}: {worth:.4f}" for worth, trial, _ in of)
        best = " and ".join(" ".join(values) for values in choices[arm])
        log.info("%s: %s did best (%s)", " ".join(names[arm]) or "the jobs", best, tried)
    return choices, lost
