"""A report -> what the page's figures are drawn from, as plain data."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from llm.compare.choices import Choice, Study
from llm.compare.curves import points_each, read_curves, rounded
from llm.compare.effects import Effect
from llm.compare.report import Report
from llm.compare.statistics import Estimate

LABELS = {  # of metrics, with their units
    "val/bits_per_byte": "bits per byte of held-out text",
    "val/loss": "held-out loss (nats per token)",
    "train/loss": "training loss (nats per token)",
    "tokens_per_second_median": "tokens per second (median)",
    "seconds": "seconds",
    "tokens": "tokens trained on",
    "parameters": "parameters",
}


def label(metric: str) -> str:
    """A metric's name for a reader, with its unit."""
    return LABELS.get(metric, metric)


def drawn_data(report: Report) -> dict[str, Any]:
    """Everything that page.js draws."""
    study = report.study
    return {
        "metric": study.metric,
        "label": label(study.metric) if study.metric else None,
        "highest": study.is_highest_best,
        "keys": list(study.keys),
        "choices": [_choice(study, place) for place in range(len(study.choices))],
        "curves": _curves(study.choices),
        "effects": [_effect(effect) for effect in report.effects],
        "sizes": _sizes(study),
    }


def _choice(study: Study, place: int) -> dict[str, Any]:
    choice, value = study.choices[place], study.values[place]
    return {
        "name": choice.name,
        "state": choice.state,
        "done": choice.is_done,
        "values": [study.columns[key][place] for key in study.keys],
        **_estimate(value),
    }


def _estimate(value: Estimate | None) -> dict[str, Any]:
    if value is None or not isfinite(value.mean):
        return {"mean": None, "half": None, "n": 0}
    half = None if value.half_width is None else rounded(value.half_width)
    return {"mean": float(f"{value.mean:.7g}"), "half": half, "n": value.num_values}


def _curves(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    entries = [(place, entry) for place, choice in enumerate(choices) for entry in choice.entries if entry.run]
    most = points_each(len(entries))
    drawn = []
    for place, entry in entries:
        curves = read_curves(entry, most_points=most)
        if curves.series:
            drawn.append(
                {
                    "choice": place,
                    "run": entry.name,
                    "done": entry.is_done,
                    "flops": curves.flops_per_token,
                    "series": curves.series,
                    "measured": curves.num_measured,
                }
            )
    return drawn


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "key": effect.key,
        "binned": effect.is_binned,
        "levels": [{"value": level.value, **_estimate(level.mean)} for level in effect.levels],
    }


def _sizes(study: Study) -> list[dict[str, Any]]:
    """The sizes that differ among choices that have measured the metric."""
    if study.metric is None:
        return []
    asked = {
        "parameters": ("What do more parameters buy?", [_parameters(choice) for choice in study.choices]),
        "vocabulary": ("What does a larger vocabulary buy?", [_vocabulary(choice) for choice in study.choices]),
    }
    return [
        {"name": name, "title": title, "values": values}
        for name, (title, values) in asked.items()
        if len({v for v, metric in zip(values, study.values, strict=True) if v is not None and metric}) > 1
    ]


def _parameters(choice: Choice) -> float | None:
    found = choice.outcome.get("parameters")
    return found.mean if found else None


def _vocabulary(choice: Choice) -> float | None:
    """Tokens that the tokenizer has; before it is made, those that are asked for."""
    if found := choice.outcome.get("vocab_size"):
        return found.mean
    if (made := choice.best.parent_result("tokenizer", "vocab_size")) is not None:
        return made
    asked = (choice.best.config.get("tokenizer") or {}).get("vocab_size")
    return asked if isinstance(asked, int) else None
