"""Runs -> the last text that each made of the prompts that they share, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm.compare.choices import Choice
from llm.compare.entries import Entry
from llm.errors import DamagedError
from llm.run import SAMPLES, log, metrics_of


@dataclass(frozen=True)
class Samples:
    """Texts by prompt, and of each prompt by choice; None where a run has none of it."""

    names: list[str]  # of the choices, the best first
    steps: list[int]  # that the texts are of
    texts: dict[str, list[str | None]]  # by prompt
    num_left_out: int  # choices that have samples too


def samples_of(choices: Sequence[Choice], *, most: int) -> Samples:
    """What the best choices wrote last."""
    written = [(choice, last) for choice in choices if (last := _last_texts(choice.best))]
    shown = written[:most]
    prompts = dict.fromkeys(prompt for _, (_, texts) in shown for prompt in texts)
    return Samples(
        [choice.best.name for choice, _ in shown],
        [step for _, (step, _) in shown],
        {prompt: [texts.get(prompt) for _, (_, texts) in shown] for prompt in prompts},
        len(written) - len(shown),
    )


def _last_texts(entry: Entry) -> tuple[int, dict[str, str]] | None:
    """(the step, prompt -> text) of the newest samples; None if there are none."""
    if entry.run is None:
        return None
    try:
        records = metrics_of(entry.run, SAMPLES)
    except DamagedError as error:
        log.warning("its samples are left out: %s", error)
        return None
    if not records:
        return None
    step = records[-1]["step"]
    return step, {str(r["prompt"]): str(r["text"]) for r in records if r["step"] == step}
