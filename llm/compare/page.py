"""A report -> one HTML page with tables and figures that hover and highlight; it asks the network for nothing."""

import html
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from llm.compare.choices import Choice
from llm.compare.curves import CURVES, points_each
from llm.compare.drawing import LABELS, drawn_data, label
from llm.compare.effects import Effect
from llm.compare.report import Report
from llm.compare.samples import samples_of
from llm.compare.statistics import Estimate
from llm.compare.tables import outcome_names, shown_estimate
from llm.compare.text import base_title, effect_rows, samples_title
from llm.run import write_text
from llm.run.record import now

MOST_SAMPLES = 8  # runs whose texts stand side by side
HERE = Path(__file__).parent
# Nothing may be asked of the network, whatever a run is named: the browser itself refuses it.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(report: Report, path: Path) -> int:
    """Write the page; its size in bytes."""
    text = page(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return len(text.encode())


def page(report: Report) -> str:
    """The page as text."""
    data = drawn_data(report)
    body = "\n".join(_body(report, data))
    script = (HERE / "page.js").read_text(encoding="utf-8")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(report.title)}: runs compared</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{as_script(data)}</script>
<script>{plotly_script()}</script>
<script>{script}</script>
</body>
</html>
"""


def as_script(data: Any) -> str:
    """JSON that ends no script element, whatever text it holds."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plotly_script() -> str:
    """plotly.js, from the installed package, which ships one bundle."""
    spec = find_spec("plotly")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "package_data"
    return (folder / "plotly.min.js").read_text(encoding="utf-8").replace("</script", "<\\/script")


def _body(report: Report, data: dict[str, Any]) -> Iterator[str]:
    study = report.study
    yield "<header>"
    yield f"<h1>{html.escape(report.title)}</h1>"
    yield (
        f"<p>{len(study.choices)} {'choice' if len(study.choices) == 1 else 'choices'}: {html.escape(report.counts)}. "
        f"Ranked by {html.escape(label(study.metric)) if study.metric else 'nothing, for none is measured'}"
        f"{' (the highest is the best)' if study.is_highest_best else ''}. Made {now()}.</p>"
    )
    yield from (f'<p class="note">{html.escape(note)}</p>' for note in report.ranking.notes)
    yield '<button id="theme" type="button" class="screen">Light or dark</button>'
    yield "</header><main>"
    yield from _ranking(report)
    yield from _curves(report, data)
    yield from _effects(report)
    yield from _sizes(data)
    yield from _parallel(data)
    yield from _samples(report)
    yield from _base(report)
    yield from _commands(study.choices)
    yield "</main>"


def _ranking(report: Report) -> Iterator[str]:
    """The table, which is the legend of every figure too."""
    study = report.study
    names = outcome_names(study.choices, study.metric)
    has_seeds = any(len(choice.entries) > 1 for choice in study.choices)
    has_errors = any(choice.error for choice in study.choices)
    columns = ["", "#", "run", "state", *(["seeds"] if has_seeds else []), *([study.metric] if study.metric else [])]
    columns += [*study.columns, *(name for name in names if name != study.metric), *(["error"] if has_errors else [])]
    yield '<section id="ranking"><h2>Which is the best?</h2>'
    yield '<p class="screen">Click a row to follow it through every figure; click a heading to sort by it.</p>'
    yield '<p class="screen controls"><label>Show only rows with <input id="filter" type="search" size="24"></label>'
    yield ' <button id="all" type="button">Show all</button> <span id="following"></span></p>'
    yield '<div class="wide tall"><table id="ranked"><thead><tr>'
    # Headings that break before a dot or a slash, so that long keys do not make columns wide.
    extra = {name for name in names if name != study.metric}  # what paper has no room for
    for name in columns:
        yield f'<th scope="col"{_extra(name in extra)}><button type="button">{_breakable(name)}</button></th>'
    yield "</tr></thead><tbody>"
    for place, choice in enumerate(study.choices):
        yield f'<tr data-choice="{place}" tabindex="0"><td><span class="swatch"></span></td><td>{place + 1}</td>'
        yield f'<th scope="row" title="{html.escape(str(choice.best.path))}">{html.escape(choice.name)}</th>'
        yield f'<td class="state {_state_class(choice)}">{html.escape(choice.state)}</td>'
        if has_seeds:
            yield _number_cell(str(len(choice.measured)), len(choice.measured))
        if study.metric:
            yield _estimate_cell(choice.outcome.get(study.metric))
        yield "".join(f"<td>{html.escape(values[place])}</td>" for values in study.columns.values())
        yield "".join(_estimate_cell(choice.outcome.get(name), " extra") for name in names if name in extra)
        yield f'<td class="error">{html.escape(choice.error)}</td></tr>' if has_errors else "</tr>"
    yield "</tbody></table></div></section>"


def _state_class(choice: Choice) -> str:
    states = {entry.state for entry in choice.entries}
    return states.pop() if len(states) == 1 else "mixed"


def _extra(is_extra: bool) -> str:
    return ' class="extra"' if is_extra else ""


def _estimate_cell(value: Estimate | None, more: str = "") -> str:
    if value is None:
        return f'<td class="number{more}">-</td>'
    return _number_cell(shown_estimate(value), value.mean, more)


def _number_cell(text: str, value: float, more: str = "") -> str:
    exact = f' data-value="{value!r}"' if isfinite(value) else ""
    return f'<td class="number{more}"{exact} title="{value!r}">{html.escape(text)}</td>'


def _breakable(name: str) -> str:
    """A key that may be broken after its dots and slashes."""
    escaped = html.escape(name)
    return escaped.replace(".", ".<wbr>").replace("/", "/<wbr>")


def _curves(report: Report, data: dict[str, Any]) -> Iterator[str]:
    yield '<section id="curves"><h2>How does the loss fall?</h2>'
    names = [name for name in CURVES if any(name in curve["series"] for curve in data["curves"])]
    if not names:
        yield "<p>No curves: no run has written metrics.jsonl.</p></section>"
        return
    options = "".join(f'<option value="{name}">{html.escape(LABELS[name])}</option>' for name in names)
    yield f'<p class="screen controls"><label>Show <select id="curve">{options}</select></label> '
    yield '<label><input type="checkbox" id="log"> logarithmic axis below</label></p>'
    yield '<p class="key"></p>'
    most = points_each(len(data["curves"]))
    is_thinned = any(n > most for curve in data["curves"] for n in curve["measured"].values())
    dotted = " Dotted: a run that is not done." if any(not curve["done"] for curve in data["curves"]) else ""
    if is_thinned:
        dotted += f" Of each curve at most {most} points are drawn: the lowest and the highest of each stretch."
    yield _figure("tokens", "Loss against tokens: what does it learn from the same amount of text?", dotted)
    if any(curve["flops"] for curve in data["curves"]):
        note = "FLOPs: forward and backward, by the count of FLOPs per token that each run recorded."
        yield _figure("compute", "Loss against compute: what does it learn for the same work?", note + dotted)
    else:
        yield "<p>No curves against compute: no run has recorded its FLOPs.</p>"
    yield "</section>"


def _effects(report: Report) -> Iterator[str]:
    metric = html.escape(label(report.study.metric)) if report.study.metric else "what is measured"
    yield f'<section id="effects"><h2>What does each key do to {metric}?</h2>'
    yield from (f"<p>{html.escape(note)}</p>" for note in report.effect_notes)
    if report.effects:
        yield '<div class="pairs">'
        for place, effect in enumerate(report.effects[:MOST_EFFECTS]):
            yield _figure(f"effect-{place}", f"What does {effect.key} do?", _effect_note(effect))
        yield "</div>"
        if (more := len(report.effects) - MOST_EFFECTS) > 0:
            yield f"<p>{more} more keys with smaller effects are in the table alone.</p>"
        yield f'<div class="wide">{_table(["key", "value", "mean", "effect"], effect_rows(report.effects))}</div>'
    yield "</section>"


MOST_EFFECTS = 12


def _effect_note(effect: Effect) -> str:
    parts = ["A dot for each choice; a line through the means of four ranges with as many values each."]
    if not effect.is_binned:
        parts = ["A dot for each choice; diamonds: the means, with their 95 % intervals."]
    if effect.also:
        parts.append(f"Always varies together with it: {', '.join(effect.also)}.")
    if not effect.is_binned and not effect.num_blocks:
        parts.append("Nothing differs in this key alone: other keys are part of what is seen here.")
    return " ".join(parts)


def _sizes(data: dict[str, Any]) -> Iterator[str]:
    yield '<section id="sizes"><h2>What does size buy?</h2>'
    for size in data["sizes"]:
        yield _figure(f"size-{size['name']}", size["title"], "Lines: 95 % intervals over seeds, where there are any.")
    if not data["sizes"]:
        yield "<p>Nothing to show: neither parameters nor vocabulary differ among runs that measured anything.</p>"
    yield "</section>"


def _parallel(data: dict[str, Any]) -> Iterator[str]:
    yield '<section id="together"><h2>Which settings go together with a good result?</h2>'
    if data["metric"] and len(data["keys"]) > 1:
        note = "A line for each choice, through its settings to its result on the right; better ones are higher there."
        yield '<p class="key"></p>' + _figure("parallel", "Parallel coordinates", note)
    else:
        yield "<p>Nothing to show: fewer than two keys differ, or nothing was measured.</p>"
    yield "</section>"


def _samples(report: Report) -> Iterator[str]:
    samples = samples_of(report.study.choices, most=MOST_SAMPLES)
    yield '<section id="samples"><h2>What do they write?</h2>'
    if samples.names:
        yield f"<p>{html.escape(samples_title(samples))}</p>"
        rows = [[prompt, *(text or "-" for text in texts)] for prompt, texts in samples.texts.items()]
        yield f'<div class="wide samples">{_table(["prompt", *samples.names], rows)}</div>'
    else:
        yield "<p>No run has written samples.</p>"
    yield "</section>"


def _base(report: Report) -> Iterator[str]:
    yield '<section id="base"><h2>What has the best otherwise?</h2>'
    if report.base is None:
        yield "<p>The best has left no config.</p>"
    else:
        yield f"<p>{html.escape(base_title(report))}</p>"
        if report.base.rows:
            yield f'<div class="wide">{_table(["setting", "base", "best"], report.base.rows)}</div>'
        else:
            yield f"<p>{html.escape(report.base.problem or 'Nothing differs.')}</p>"
    yield "</section>"


def _commands(choices: Sequence[Choice]) -> Iterator[str]:
    yield '<section id="commands"><h2>How is each made again?</h2>'
    yield "<p>Where the run is there, its command finds it and runs nothing.</p>"
    for place, choice in enumerate(choices, 1):
        yield f"<details{' open' if place == 1 else ''}><summary>{place}. {html.escape(choice.name)}</summary>"
        for entry in choice.entries:
            said = html.escape(entry.command or "not recorded")
            yield f'<pre>{said}</pre><button type="button" class="copy screen">Copy</button>'
        yield "</details>"
    yield "</section>"


def _figure(name: str, title: str, note: str = "") -> str:
    said = f"<p>{html.escape(note.strip())}</p>" if note.strip() else ""
    return (
        f'<figure><figcaption><h3>{html.escape(title)}</h3>{said}</figcaption><div class="plot" id="{name}">'
        "<noscript>This figure needs JavaScript.</noscript></div></figure>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_breakable(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
