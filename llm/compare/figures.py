"""A ranking -> plotly figures: curves, what each setting does, and what size buys."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import plotly.graph_objects as go

from llm.compare.entries import Entry
from llm.compare.ranking import MOST_LEVELS, Estimate, Ranking, as_number, by_size
from llm.run.record import METRICS

LABELS = {  # of metrics, with their units
    "val/bits_per_byte": "bits per byte of held-out text",
    "val/loss": "held-out loss (nats per token)",
    "train/loss": "training loss (nats per token)",
}
CURVES = tuple(LABELS)
SIZES = {"parameters": "What do more parameters buy?", "vocab_size": "What does a larger vocabulary buy?"}
MOST_POINTS = 1000  # of a curve
POINTS_IN_ALL = 20_000  # of the curves of one metric: what a browser draws without delay
MOST_EFFECTS, MOST_TICKS = 12, 6
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


def figures(ranking: Ranking) -> list[Figure]:
    """Those that there is something to see in."""
    return [*filter(None, [_curves(ranking)]), *_dot_plots(ranking)]


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


def training_figures(entry: Entry, levels: Mapping[str, float]) -> Iterator[Figure]:
    """Of one training: its losses, and its bits per byte beside levels that are known by name."""
    for unit, metrics, known in (
        ("nats per token", ("train/loss", "val/loss"), {}),
        ("bits per byte", ("val/bits_per_byte",), levels),
    ):
        lines = {LABELS[metric]: _measured(entry.lines(METRICS), metric) for metric in metrics}
        lines = {label: points for label, points in lines.items() if len(points) > 1}
        if not lines or (unit == "bits per byte" and not known):  # the held-out loss in another unit
            continue
        last = max(tokens for points in lines.values() for tokens, _ in points)
        lines |= {f"{plain(name)}: {bits:.3f}": [(0, bits), (last, bits)] for name, bits in known.items()}
        traces = [
            {
                "name": label,
                "x": [tokens for tokens, _ in points],
                "y": [value for _, value in points],
                "mode": "lines+markers" if 2 < len(points) < 12 else "lines",
                "line": {"color": colour(place), "dash": "solid" if label in LABELS.values() else "dash"},
            }
            for place, (label, points) in enumerate(lines.items())
        ]
        legend = {"showlegend": True, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}}
        layout = legend | {"xaxis": {"title": "tokens"}, "yaxis": {"title": unit}}
        yield Figure(f"{unit} of {entry.name}", f"{entry.stage}: {unit}", "", _figure(traces, layout))


def _measured(records: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    return thinned([(r["tokens"], r[metric]) for r in records if metric in r and isfinite(r[metric])], MOST_POINTS)


# A dot for each choice


def _dot_plots(ranking: Ranking) -> Iterator[Figure]:
    """What each setting does, and what parameters and vocabulary buy where they differ."""
    for key, means in list(ranking.effects.items())[:MOST_EFFECTS]:
        values = {place: ranking.settings[key][place] for place in ranking.done}
        shown = means if len(means) <= MOST_LEVELS else {}
        yield _dot_plot(ranking, key, f"What does {key} do?", values, shown)
    for name, title in SIZES.items():
        sizes = {n: f"{choice.outcome[name].mean:.0f}" for n, choice in enumerate(ranking.choices)
                 if name in choice.outcome and ranking.values[n]}  # fmt: skip
        if len(set(sizes.values())) > 1:
            yield _dot_plot(ranking, name, title, sizes, {})


def _dot_plot(ranking: Ranking, key: str, title: str, of: Mapping[int, str], means: Mapping[str, Estimate]) -> Figure:
    """`of` is the place of a choice -> its value of what the plot is about."""
    sizes = {value: as_number(value) for value in of.values()}
    is_number = None not in sizes.values()
    dots = {
        "x": [sizes[value] if is_number else plain(value) for value in of.values()],
        "y": [value.mean for place in of if (value := ranking.values[place])],
        "mode": "markers",
        "marker": {
            "color": [colour(place) for place in of],
            "size": 9,
            "symbol": ["circle" if ranking.choices[place].best.is_done else "circle-open" for place in of],
        },
        "customdata": list(of),
        "text": [described(ranking, place) for place in of],
        "hovertemplate": "%{text}<extra></extra>",
    }
    line = {
        "x": [sizes[value] if is_number else plain(value) for value in means],
        "y": [mean.mean for mean in means.values()],
        "error_y": {"array": [mean.half_width or 0 for mean in means.values()], "color": FAINT},
        "line": {"color": FAINT},
        "marker": {"color": FAINT, "symbol": "diamond", "size": 10},
        "text": [f"{plain(value)}: mean {mean} (n={mean.num_values})" for value, mean in means.items()],
        "hovertemplate": "%{text}<extra></extra>",
    }
    note = "A dot for each choice" + ("; diamonds: the means, with their 95 % intervals." if means else ".")
    layout = {"xaxis": {"title": plain(key)} | _scale(sizes), "yaxis": {"title": plain(ranking.metric or "")}}
    return Figure(f"of-{key}", title, note, _figure([dots, line], layout))


def _scale(sizes: Mapping[str, float | None]) -> dict[str, Any]:
    """Of an axis: numbers by their size or, where they span much, its logarithm; words in order."""
    numbers = [size for size in sizes.values() if size is not None]
    if len(numbers) < len(sizes):
        order = [plain(value) for value in sorted(sizes, key=by_size)]
        return {"type": "category", "categoryorder": "array", "categoryarray": order}
    ticks = {"tickvals": numbers, "ticktext": list(sizes)} if len(sizes) <= MOST_TICKS else {}
    return ticks | {"type": "log" if min(numbers) > 0 and max(numbers) >= 8 * min(numbers) else "linear"}


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
