"""A ranking -> plotly figures: curves, what each setting does, what size buys, and which settings go together."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import plotly.graph_objects as go

from llm.compare.entries import Entry
from llm.compare.ranking import Estimate, Ranking, as_number, by_size
from llm.run.metrics import METRICS

LABELS = {  # of metrics, with their units
    "val/bits_per_byte": "bits per byte of held-out text",
    "val/loss": "held-out loss (nats per token)",
    "train/loss": "training loss (nats per token)",
}
CURVES = tuple(LABELS)
SIZES = {"parameters": "What do more parameters buy?", "vocab_size": "What does a larger vocabulary buy?"}
MOST_POINTS = 1000  # of a curve
POINTS_IN_ALL = 20_000  # of the curves of one metric: what a browser draws without delay
MOST_EFFECTS, MOST_AXES = 12, 9
BEGINNING = 0.1  # of a curve, which is so steep that the rest would be flat beside it
PALETTE = (  # of Okabe and Ito, and more, for those who see some colours alike
    "#0072b2", "#d55e00", "#009e73", "#b45fa0", "#c98a00", "#3c9bd6", "#7a68d8", "#8c6d31", "#c23b22", "#6b7684",
)  # fmt: skip
FAINT = "#808a96"


@dataclass(frozen=True)
class Figure:
    """A figure, what it asks, and what to know about it."""

    name: str
    title: str
    note: str
    drawn: go.Figure


def figures(ranking: Ranking, effects: Mapping[str, Mapping[str, Estimate]]) -> list[Figure]:
    """Those that there is something to see in."""
    found = [_curves(ranking), *_effects(ranking, effects), *_sizes(ranking), _together(ranking)]
    return [figure for figure in found if figure]


def colour(place: int) -> str:
    """That of a choice in every figure and in the table."""
    return PALETTE[place % len(PALETTE)]


# Curves


def _curves(ranking: Ranking) -> Figure | None:
    """Losses against tokens and FLOPs, a line for each run; page.js shows one view of them at a time."""
    runs = [(place, entry) for place, choice in enumerate(ranking.choices) for entry in choice.entries if entry.run]
    most = max(50, min(MOST_POINTS, POINTS_IN_ALL // max(1, len(runs))))
    traces = [trace for place, entry in reversed(runs) for trace in _lines(entry, place, most)]  # the best on top
    if not traces:
        return None
    views = list(_views(traces))
    for trace in traces:
        trace["visible"] = trace["meta"]["view"] == views[0]["view"]
    layout = {
        "meta": {"views": views},
        "xaxis": {"title": views[0]["x"]},
        "yaxis": {"title": views[0]["y"], "range": views[0]["range"]},
    }
    note = f"Dotted: not done. At most {most} points of a curve, the lowest and the highest of each stretch. "
    note += "The steep beginning is cut off: a double click shows it."
    title = "What does it learn from the same text, or for the same work?"
    return Figure("curves", title, note, _figure(traces, layout))


def _lines(entry: Entry, place: int, most: int) -> Iterator[dict[str, Any]]:
    """Each loss of a run against tokens, and against the FLOPs, forward and backward, that it counted."""
    records = entry.lines(METRICS)
    last = next((r for r in reversed(records) if r.get("train/flops") and r.get("tokens")), None)
    sizes = {"tokens": 1.0} | ({"FLOPs": last["train/flops"] / last["tokens"]} if last else {})
    for name in CURVES:
        measured = [(r["tokens"], r[name]) for r in records if name in r and isfinite(r[name])]
        for against, size in sizes.items() if measured else ():
            x, y = np.array(thinned(measured, most), dtype="f4").T * np.array([[size], [1]], dtype="f4")
            yield {
                "x": x,
                "y": y,
                "mode": "lines+markers" if len(x) < 12 else "lines",
                "line": {"color": colour(place), "width": 1.6, "dash": "solid" if entry.is_done else "dot"},
                "meta": {"choice": place, "view": f"{name} {against}"},
                "hovertemplate": f"<b>{plain(entry.name)}</b>, rank {place + 1}<br>%{{x:.4~s}}: %{{y:.5~g}}",
            }


def _views(traces: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each metric against tokens or FLOPs that there are curves of: its axes, and where what differs is seen."""
    for view in sorted({trace["meta"]["view"] for trace in traces}, key=lambda view: CURVES.index(view.split(" ")[0])):
        of = [trace for trace in traces if trace["meta"]["view"] == view]
        late = np.concatenate([trace["y"][trace["x"] >= BEGINNING * trace["x"][-1]] for trace in of])
        low, high = float(late.min()), float(np.quantile(late, 0.98))
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        name, against = view.split(" ")
        yield {"view": view, "x": against, "y": LABELS[name], "range": [low - pad, high + pad]}


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """The first, the last, and of each stretch between the lowest and the highest: no spike is lost."""
    if len(points) <= most:
        return points
    inner, stretches = points[1:-1], max(1, (most - 2) // 2)
    kept = [points[0]]
    for i in range(stretches):
        part = inner[len(inner) * i // stretches : len(inner) * (i + 1) // stretches]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [*kept, points[-1]]


# A dot for each choice


def _effects(ranking: Ranking, effects: Mapping[str, Mapping[str, Estimate]]) -> Iterator[Figure]:
    for number, (key, means) in enumerate(list(effects.items())[:MOST_EFFECTS]):
        values = [ranking.settings[key][place] for place in ranking.done]
        dots = _dots(ranking, ranking.done, values)
        line = {
            "x": [_at(value, values) for value in means],
            "y": [mean.mean for mean in means.values()],
            "error_y": {"array": [mean.half_width or 0 for mean in means.values()], "color": FAINT},
            "line": {"color": FAINT},
            "marker": {"color": FAINT, "symbol": "diamond", "size": 10},
            "text": [f"{plain(value)}: mean {mean} (n={mean.num_values})" for value, mean in means.items()],
            "hovertemplate": "%{text}<extra></extra>",
        }
        note = "A dot for each choice; diamonds: the means, with their 95 % intervals."
        drawn = _figure([dots, line], {"xaxis": _axis(key, values), "yaxis": {"title": plain(ranking.metric or "")}})
        yield Figure(f"effect-{number}", f"What does {key} do?", note, drawn)


def _sizes(ranking: Ranking) -> Iterator[Figure]:
    """What parameters and vocabulary buy, where they differ among choices that have measured the metric."""
    for name, title in SIZES.items():
        of = [n for n, c in enumerate(ranking.choices) if name in c.outcome and ranking.values[n]]
        values = [f"{ranking.choices[n].outcome[name].mean:.0f}" for n in of]
        if len(set(values)) > 1:
            layout = {"xaxis": _axis(name, values), "yaxis": {"title": plain(ranking.metric or "")}}
            yield Figure(f"size-{name}", title, "A dot for each choice.", _figure([_dots(ranking, of, values)], layout))


def _dots(ranking: Ranking, of: Sequence[int], values: Sequence[str]) -> dict[str, Any]:
    symbols = ["circle" if ranking.choices[n].best.is_done else "circle-open" for n in of]
    return {
        "x": [_at(value, values) for value in values],
        "y": [value.mean for n in of if (value := ranking.values[n])],
        "mode": "markers",
        "marker": {"color": [colour(n) for n in of], "size": 9, "symbol": symbols},
        "customdata": list(of),
        "text": [described(ranking, n) for n in of],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _at(value: str, values: Sequence[str]) -> float | str:
    """Where a value stands on the axis of `values`: by its size if they are numbers, else by itself."""
    sizes = [as_number(each) for each in values]
    size = as_number(value)
    return plain(value) if size is None or None in sizes else size


def _axis(title: str, values: Sequence[str]) -> dict[str, Any]:
    """Numbers by their size or, where they span much, its logarithm; words in order."""
    sizes = [size for value in values if (size := as_number(value)) is not None]
    if len(sizes) < len(values):
        order = [plain(value) for value in sorted(set(values), key=by_size)]
        return {"title": plain(title), "type": "category", "categoryorder": "array", "categoryarray": order}
    return {"title": plain(title), "type": "log" if min(sizes) > 0 and max(sizes) >= 8 * min(sizes) else "linear"}


# Parallel coordinates


def _together(ranking: Ranking) -> Figure | None:
    """A line for each choice, through its settings, each axis with its values at equal distances, to its result."""
    keys = ranking.told_apart_by[:MOST_AXES]
    of = [place for place, value in reversed(list(enumerate(ranking.values))) if value]  # the best on top
    if len(keys) < 2 or not of:
        return None
    columns = [[plain(ranking.settings[key][place], 14) for place in of] for key in keys]
    heights = [_heights(column) for column in columns]
    results = [value.mean for place in of if (value := ranking.values[place])]
    best, worst = results[-1], results[0]
    ends = [(result - worst) / ((best - worst) or 1.0) for result in results]
    traces: list[dict[str, Any]] = [
        {
            "x": list(range(len(keys) + 1)),
            "y": [*(of_[text[n]] for of_, text in zip(heights, columns, strict=True)), ends[n]],
            "mode": "lines",
            "line": {"color": colour(place), "width": 1.6},
            "meta": {"choice": place},
            "text": [described(ranking, place)] * (len(keys) + 1),
            "hovertemplate": "%{text}<extra></extra>",
        }
        for n, place in enumerate(of)
    ]
    marks = [(x, text, y) for x, of_ in enumerate(heights) for text, y in of_.items()]
    marks += [(len(keys), f"{worst:.4g}", 0.0), (len(keys), f"{best:.4g}", 1.0)]
    x, texts, y = zip(*marks, strict=True)
    traces.append({"x": x, "y": y, "text": texts, "mode": "text", "textposition": "top center", "hoverinfo": "skip"})
    names = [plain(key).replace(".", ".<br>") for key in [*keys, ranking.metric or ""]]
    layout = {
        "xaxis": {"tickvals": list(range(len(names))), "ticktext": names, "zeroline": False},
        "yaxis": {"visible": False},
    }
    note = "A line for each choice, through its settings to its result on the right; better ones are higher there."
    return Figure("together", "Which settings go together with a good result?", note, _figure(traces, layout))


def _heights(texts: Sequence[str]) -> dict[str, float]:
    known = sorted(set(texts), key=by_size)
    return {text: place / max(1, len(known) - 1) for place, text in enumerate(known)}


# All of them


def _figure(traces: Sequence[dict[str, Any]], layout: dict[str, Any]) -> go.Figure:
    axis = {"gridcolor": "#d8dee6", "zerolinecolor": "#d8dee6", "automargin": True, "exponentformat": "SI"}
    axes = {name: axis | layout.pop(name) for name in ("xaxis", "yaxis")}
    look = {
        "template": "none",
        "font": {"size": 13, "family": "system-ui, sans-serif"},
        "margin": {"l": 60, "r": 16, "t": 28, "b": 52},
        "hovermode": "closest",
        "showlegend": False,
        "hoverlabel": {"bgcolor": "#f5f7fa", "font": {"color": "#1c2430"}, "align": "left"},
    }
    return go.Figure([{"type": "scatter", **trace} for trace in traces], look | axes | layout)


def described(ranking: Ranking, place: int) -> str:
    """A choice as a hover says it: its name, its settings, and what came out."""
    choice, value = ranking.choices[place], ranking.values[place]
    settings = [f"{key}={ranking.settings[key][place]}" for key in ranking.told_apart_by][:12]
    lines = [*settings, f"{ranking.metric}: {value}" if value else "", "" if choice.best.is_done else choice.state]
    return "<br>".join([f"<b>{plain(choice.name)}</b>", *(plain(line) for line in lines if line)])


def plain(text: str, most: int = 80) -> str:
    """Text as it is: plotly takes it for HTML of a kind."""
    return html.escape(text if len(text) <= most else text[: most - 1] + "…", quote=False)
