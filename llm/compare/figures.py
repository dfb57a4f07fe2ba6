"""A ranking -> plotly figures: curves, what each setting does, what size buys, and which settings go together."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, log
from statistics import fmean
from typing import Any

import numpy as np
import plotly.graph_objects as go

from llm.compare.effects import Effect, number
from llm.compare.ranking import Ranking
from llm.compare.show import shown_mean
from llm.run.metrics import METRICS
from llm.run.tables import shown

LABELS = {  # of metrics, with their units
    "val/bits_per_byte": "bits per byte of held-out text",
    "val/loss": "held-out loss (nats per token)",
    "train/loss": "training loss (nats per token)",
    "tokens_per_second_median": "tokens per second (median)",
}
CURVES = ("val/bits_per_byte", "val/loss", "train/loss")
SIZES = {"parameters": "What do more parameters buy?", "vocab_size": "What does a larger vocabulary buy?"}
MOST_POINTS = 1000  # of a curve
POINTS_IN_ALL = 20_000  # of the curves of one metric: what a browser draws without delay
MOST_EFFECTS, MOST_AXES, MOST_TICKS = 12, 9, 6
BEGINNING = 0.1  # of a curve, which is so steep that the rest would be flat beside it
PALETTE = (  # of Okabe and Ito, and more, for those who see some colours alike
    "#0072b2", "#d55e00", "#009e73", "#b45fa0", "#c98a00", "#3c9bd6", "#7a68d8", "#8c6d31", "#c23b22", "#6b7684",
)  # fmt: skip
RAMP = ((37, 99, 235), (13, 154, 168), (90, 160, 45), (217, 154, 0), (207, 74, 93))  # from the best to the worst
INK, FAINT = "#1c2430", "#808a96"  # page.css gives what is written in INK the colour of its theme


@dataclass(frozen=True)
class Figure:
    """A figure, what it asks, and what to know about it."""

    name: str
    title: str
    note: str
    drawn: go.Figure


def label(metric: str | None) -> str:
    """A metric's name for a reader, with its unit."""
    return LABELS.get(metric or "", metric or "nothing, for none is measured")


def colours(num_choices: int) -> list[str]:
    """A colour for each choice, the best first: where they are many, from one end of a ramp to the other."""
    if num_choices <= len(PALETTE):
        return list(PALETTE[:num_choices])
    places = np.linspace(0, len(RAMP) - 1, num_choices)
    parts = [np.interp(places, range(len(RAMP)), each) for each in zip(*RAMP, strict=True)]
    return [f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in zip(*parts, strict=True)]


# Curves


def curves(ranking: Ranking) -> Figure | None:
    """Losses against tokens and FLOPs, a line for each run; page.js shows one view of them at a time."""
    runs = [(place, entry) for place, choice in enumerate(ranking.choices) for entry in choice.entries if entry.run]
    most = max(50, min(MOST_POINTS, POINTS_IN_ALL // max(1, len(runs))))
    paint = colours(len(ranking.choices))
    traces, is_thinned = [], False
    for place, entry in reversed(runs):  # the best on top
        records = entry.lines(METRICS)
        last = next((r for r in reversed(records) if r.get("train/flops") and r.get("tokens")), None)
        flops = last["train/flops"] / last["tokens"] if last else None  # forward and backward, as the run counted them
        for name in CURVES:
            measured = [(r["tokens"], r[name]) for r in records if name in r and isfinite(r[name])]
            if not measured:
                continue
            kept = np.array(thinned(measured, most), dtype="f4")
            is_thinned |= len(kept) < len(measured)
            line = {"color": paint[place], "width": 1.6, "dash": "solid" if entry.is_done else "dot"}
            for against, size in (("tokens", 1.0), ("FLOPs", flops)):
                if size:
                    said = f"<b>{plain(entry.name, 60)}</b>, rank {place + 1}<br>%{{x:.4~s}} {against}: %{{y:.5~g}}"
                    x, y = kept.T * np.array([[size], [1]], dtype="f4")
                    meta = {"choice": place, "view": f"{name} {against}"}
                    mode = "lines+markers" if len(kept) < 12 else "lines"
                    traces.append({"x": x, "y": y, "mode": mode, "line": line, "meta": meta, "hovertemplate": said})
    if not traces:
        return None
    views = list(_views(traces))
    for trace in traces:
        trace["visible"] = trace["meta"]["view"] == views[0]["view"]
    note = "Dotted: a run that is not done. " if not all(entry.is_done for _, entry in runs) else ""
    note += f"At most {most} points of a curve: the lowest and the highest of each stretch. " if is_thinned else ""
    if any("FLOPs" in each["view"] for each in views):
        note += "FLOPs: forward and backward, as each run counted them. "
    note += "The steep beginning is cut off: a double click shows it."
    layout = {"meta": {"views": views}, "xaxis": {"title": views[0]["x"]}, "yaxis": {"title": views[0]["y"]}}
    layout["yaxis"]["range"] = views[0]["range"]
    return Figure(
        "curves", "What does it learn from the same text, or for the same work?", note, _figure(traces, layout)
    )


def _views(traces: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of each metric against tokens or FLOPs that there are curves of: its axes, and where what differs is seen."""
    for name in CURVES:
        for against, axis in (("tokens", "tokens trained on"), ("FLOPs", "FLOPs")):
            view = f"{name} {against}"
            if of := [trace for trace in traces if trace["meta"]["view"] == view]:
                late = np.concatenate([trace["y"][trace["x"] >= BEGINNING * trace["x"][-1]] for trace in of])
                low, high = float(late.min()), float(np.quantile(late, 0.98))
                pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
                yield {"view": view, "x": axis, "y": LABELS[name], "range": [low - pad, high + pad]}


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


# Points: a dot for each choice


def effects(ranking: Ranking, found: Sequence[Effect]) -> list[Figure]:
    """What each setting does: a dot for each choice, and the means of its values."""
    figures = []
    for place, effect in enumerate(found[:MOST_EFFECTS]):
        values = [ranking.settings[effect.key][n] for n in ranking.done]
        x, axis = _axis(effect.key, values)
        note = "A dot for each choice; diamonds: the means, with their 95 % intervals."
        if effect.labels != values:
            note = "A dot for each choice; diamonds: the means of four ranges with as many values each."
        elif not effect.num_blocks:
            note += " Nothing differs in this setting alone: others are part of what is seen here."
        if others := ranking.together[effect.key][1:]:
            note += f" Always varies together with it: {', '.join(others)}."
        traces = [_dots(ranking, ranking.done, x), _means(effect, x)]
        figures.append(Figure(f"effect-{place}", f"What does {effect.key} do?", note, _dot_plot(ranking, traces, axis)))
    return figures


def _means(effect: Effect, x: Sequence[Any]) -> dict[str, Any]:
    """A diamond for each level, in the middle of the choices that have it."""
    members = [[at for at, of in zip(x, effect.labels, strict=True) if of == level.value] for level in effect.levels]
    is_number = not any(isinstance(at, str) for at in x)
    said = [f"{plain(level.value)}: mean {shown_mean(level.mean)}" for level in effect.levels]
    return {
        "x": [fmean(of) if is_number else of[0] for of in members],
        "y": [level.mean.mean for level in effect.levels],
        "error_y": {"array": [level.mean.half_width or 0 for level in effect.levels], "color": FAINT},
        "mode": "lines+markers" if is_number else "markers",
        "line": {"color": FAINT, "width": 2},
        "marker": {"color": FAINT, "symbol": "diamond", "size": 11},
        "text": said,
        "hovertemplate": "%{text}<extra></extra>",
    }


def sizes(ranking: Ranking) -> list[Figure]:
    """What parameters and vocabulary buy, where they differ among choices that have measured the metric."""
    figures = []
    for name, title in SIZES.items():
        of = [n for n, c in enumerate(ranking.choices) if name in c.outcome and ranking.values[n]]
        x, axis = _axis(name, [f"{ranking.choices[n].outcome[name].mean:.0f}" for n in of])
        if len(set(x)) > 1:
            halves = [value.half_width or 0 for n in of if (value := ranking.values[n])]
            errors = {"array": halves, "color": FAINT, "thickness": 1, "width": 2}
            drawn = _dot_plot(ranking, [_dots(ranking, of, x) | {"error_y": errors}], axis)
            figures.append(
                Figure(f"size-{name}", title, "Lines: 95 % intervals over seeds, where there are any.", drawn)
            )
    return figures


def _dots(ranking: Ranking, of: Sequence[int], x: Sequence[Any]) -> dict[str, Any]:
    paint = colours(len(ranking.choices))
    return {
        "x": x,
        "y": [value.mean for n in of if (value := ranking.values[n])],
        "mode": "markers",
        "marker": {
            "color": [paint[n] for n in of],
            "size": 9,
            "symbol": ["circle" if ranking.choices[n].is_done else "circle-open" for n in of],
        },
        "customdata": list(of),
        "text": [described(ranking, n) for n in of],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _dot_plot(ranking: Ranking, traces: Sequence[dict[str, Any]], axis: dict[str, Any]) -> go.Figure:
    return _figure(traces, {"xaxis": axis, "yaxis": {"title": plain(label(ranking.metric))}})


def _axis(title: str, values: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """(where values stand, the axis): numbers by their size or, where they span much, its logarithm; words in order."""
    numbers = [found for value in values if (found := number(value)) is not None]
    if len(numbers) < len(values):
        order = [plain(value, 40) for value in sorted(set(values))]
        words = {"type": "category", "categoryorder": "array", "categoryarray": order}
        return [plain(value, 40) for value in values], {"title": plain(title), **words}
    axis: dict[str, Any] = {"title": plain(title), "type": "log" if _spans_much(numbers) else "linear"}
    if len(known := dict(zip(numbers, values, strict=True))) <= MOST_TICKS:
        axis |= {"tickvals": list(known), "ticktext": list(known.values())}
    return numbers, axis


def _spans_much(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 8


# Parallel coordinates


def together(ranking: Ranking) -> Figure | None:
    """A line for each choice, through its settings to its result; None where there is nothing to see."""
    keys = list(ranking.together)[:MOST_AXES]
    of = [n for n, value in reversed(list(enumerate(ranking.values))) if value]  # the best on top
    if len(keys) < 2 or not of:
        return None
    results = [str(value.mean) for n in of if (value := ranking.values[n])]
    axes = [_scale([ranking.settings[key][n] for n in of]) for key in keys]
    axes.append(_scale(results, is_turned=not ranking.is_highest_best))
    paint = colours(len(ranking.choices))
    traces = [
        {
            "x": list(range(len(axes))),
            "y": [heights[place] for heights, _ in axes],
            "mode": "lines",
            "line": {"color": paint[n], "width": 1.6},
            "meta": {"choice": n},
            "text": [described(ranking, n)] * len(axes),
            "hovertemplate": "%{text}<extra></extra>",
        }
        for place, n in enumerate(of)
    ]
    last = len(axes) - 1
    ticks = [
        {"x": x, "y": y, "text": text, "showarrow": False, "font": {"size": 11}, "bgcolor": "#ffffff", "opacity": 0.9}
        | ({"xanchor": "left", "xshift": 5} if x == last else {"xanchor": "right", "xshift": -5})
        for x, (_, marks) in enumerate(axes)
        for text, y in marks.items()
    ]
    names = [plain(key).replace(".", ".<br>").replace("/", "/<br>") for key in [*keys, ranking.metric or ""]]
    layout = {
        "annotations": ticks,
        "shapes": [
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": FAINT, "width": 1}, "layer": "below"}
            for x in range(len(axes))
        ],
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": names,
            "range": [-0.3, last + 0.3],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
        "yaxis": {"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
    }
    note = "A line for each choice, through its settings to its result on the right; better ones are higher there."
    return Figure("together", "Which settings go together with a good result?", note, _figure(traces, layout))


def _scale(values: Sequence[str], *, is_turned: bool = False) -> tuple[list[float], dict[str, float]]:
    """(where each value stands, from 0 to 1; what is written beside the axis, and where)."""
    numbers = [number(value) for value in values]
    known = sorted(set(values), key=lambda value: (number(value) or 0.0, value))
    if None in numbers:
        at = {value: place / max(1, len(known) - 1) for place, value in enumerate(known)}
    else:
        sizes_ = [float(value) for value in known]
        places = [log(size) for size in sizes_] if _spans_much(sizes_) else sizes_
        span = (places[-1] - places[0]) or 1.0
        at = {value: (place - places[0]) / span for value, place in zip(known, places, strict=True)}
    if is_turned:
        at = {value: 1 - place for value, place in at.items()}
    marked = dict.fromkeys(known[round(i)] for i in np.linspace(0, len(known) - 1, min(len(known), MOST_TICKS)))
    texts = {value: plain(value, 14) if None in numbers else f"{float(value):.4g}" for value in marked}
    return [at[value] for value in values], {texts[value]: at[value] for value in marked}


# All of them


def _figure(traces: Sequence[dict[str, Any]], layout: dict[str, Any]) -> go.Figure:
    axis = {"gridcolor": "#d8dee6", "zerolinecolor": "#d8dee6", "automargin": True, "exponentformat": "SI"}
    axes = {name: axis | layout.pop(name) for name in ("xaxis", "yaxis")}
    return go.Figure(
        [{"type": "scatter", **trace} for trace in traces],
        {
            "template": "none",
            "font": {"color": INK, "size": 13, "family": "system-ui, sans-serif"},
            "margin": {"l": 60, "r": 16, "t": 28, "b": 52},
            "hovermode": "closest",
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": "#3c9bd6"},
            "showlegend": False,
            "hoverlabel": {"bgcolor": "#f5f7fa", "bordercolor": "#d8dee6", "font": {"color": INK}, "align": "left"},
            **axes,
            **layout,
        },
    )


def described(ranking: Ranking, place: int) -> str:
    """A choice as a hover says it: its name, its settings, and what came out."""
    choice = ranking.choices[place]
    settings = [f"{key}={ranking.settings[key][place]}" for key in ranking.together][:12]
    value = ranking.values[place]
    result = f"{ranking.metric}: {shown(value.mean)}" if value else ""
    if value and value.half_width:
        result += f" ± {shown(value.half_width)} ({value.num_values} seeds)"
    lines = [*settings, result, "" if choice.is_done else choice.state]
    return "<br>".join([f"<b>{plain(choice.name, 60)}</b>", *(plain(line, 80) for line in lines if line)])


def plain(text: str, most: int = 200) -> str:
    """Text as it is: plotly takes it for HTML of a kind."""
    return html.escape(text if len(text) <= most else text[: most - 1] + "…", quote=False)
