"""A report -> one HTML page with its tables and figures; it asks the network for nothing."""

import html
import json
from collections.abc import Iterator
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from llm.compare.effects import Estimate
from llm.compare.figures import Figure, colours, curves, effects, label, sizes, together
from llm.compare.ranking import Choice, shown_key
from llm.compare.show import MOST_SAMPLES, Report, Section, base_section, effects_section, samples_section
from llm.run.files import write_text
from llm.run.record import now
from llm.run.tables import TextTable

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
    figures: list[Figure] = []
    body = "\n".join(_body(report, figures))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(report.title)}: runs compared</title>
<style>{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
<script type="application/json" id="figures">{as_script({each.name: each.drawn.to_json() for each in figures})}</script>
<script>{plotly_script()}</script>
<script>{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def as_script(figures: dict[str, str]) -> str:
    """JSON of figures that are JSON each, that ends no script element, whatever text it holds."""
    parts = ",".join(f"{json.dumps(name)}:{figure}" for name, figure in figures.items())
    return f"{{{parts}}}".replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plotly_script() -> str:
    """plotly.js, from the installed package, which ships one bundle."""
    spec = find_spec("plotly")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "package_data"
    return (folder / "plotly.min.js").read_text(encoding="utf-8").replace("</script", "<\\/script")


def _body(report: Report, figures: list[Figure]) -> Iterator[str]:
    """What is seen, from the top; the figures that it has places for are added to `figures`."""

    def drawn(found: list[Figure]) -> str:
        figures.extend(found)
        return "".join(map(_figure, found))

    ranking = report.ranking
    yield f"<header><h1>{html.escape(report.title)}</h1>"
    highest = " (the highest is the best)" if ranking.is_highest_best else ""
    by = f"Ranked by {label(ranking.metric)}{highest}"
    choices = f"{len(ranking.choices)} {'choice' if len(ranking.choices) == 1 else 'choices'}"
    yield f"<p>{choices}: {html.escape(f'{report.counts}. {by}')}. Made {now()}.</p>"
    yield from (f'<p class="note">{html.escape(note)}</p>' for note in ranking.notes)
    yield '<button id="theme" type="button" class="screen">Light or dark</button></header><main>'
    yield "<section><h2>Which is the best?</h2>"
    yield '<p class="screen">A heading sorts; a mark in the first column shows a choice alone in every figure.</p>'
    yield '<p class="screen"><label>Show only rows with <input id="filter" type="search"></label></p>'
    yield f'<div class="wide tall">{"".join(_ranked(report))}</div></section>'
    if lines := curves(ranking):
        yield '<section><h2>How does the loss fall?</h2><p class="screen">'
        yield '<label>Show <select id="view"></select></label>'
        yield f'<label><input type="checkbox" id="log"> logarithmic axis below</label></p>{drawn([lines])}</section>'
    effects_ = drawn(effects(ranking, report.effects))
    yield _section(effects_section(report), f'<div class="pairs">{effects_}</div>')
    if more := [*sizes(ranking), *filter(None, [together(ranking)])]:
        yield f'<section><h2>What goes with a good result?</h2><div class="pairs">{drawn(more)}</div></section>'
    for section in filter(None, (samples_section(report, MOST_SAMPLES["page"]), base_section(report))):
        yield _section(section)
    yield "<section><h2>How is each made again?</h2>"
    yield "<p>Where the run is there, its command finds it and runs nothing.</p>"
    for place, choice in enumerate(ranking.choices, 1):
        yield f"<details{' open' if place == 1 else ''}><summary>{place}. {html.escape(choice.name)}</summary>"
        for entry in choice.entries:
            yield f"<pre>{html.escape(entry.command or 'not recorded')}</pre>"
            yield '<button type="button" class="copy screen">Copy</button>'
        yield "</details>"
    yield "</section></main>"


def _ranked(report: Report) -> Iterator[str]:
    """The ranked table: what sorts, filters, and follows a choice through the figures."""
    ranking = report.ranking
    columns, paint = ranking.table.columns, colours(len(ranking.choices))
    shown = [*([ranking.metric] if ranking.metric else []), *map(shown_key, ranking.settings), "state", "run"]
    order = [*shown, *(name for name in columns if name not in shown)]
    extra = {name for name in ranking.results if name != ranking.metric} | {"stage"}  # what paper has no room for
    yield '<table id="ranked"><thead><tr><th scope="col"></th>'
    for name in ("#", *order):
        extra_ = ' class="extra"' if name in extra else ""
        yield f'<th scope="col"{extra_}><button type="button">{_breakable(name)}</button></th>'
    yield "</tr></thead><tbody>"
    for place, (choice, row) in enumerate(zip(ranking.choices, ranking.table.rows, strict=True)):
        name = html.escape(choice.name)
        yield f'<tr><td><input type="checkbox" value="{place}" aria-label="Show {name} alone" '
        yield f'style="accent-color:{paint[place]};outline-color:{paint[place]}"></td><td>{place + 1}</td>'
        for column, text in ((column, row[columns.index(column)]) for column in order):
            if column == "run":
                yield f'<th scope="row" title="{html.escape(str(choice.best.path))}">{name}</th>'
            elif column in ranking.results:
                yield _number(text, choice.outcome.get(column), "number extra" if column in extra else "number")
            else:
                kind = f"state {_state(choice)}" if column == "state" else "error" if column == "error" else ""
                yield f'<td class="{kind}{" extra" * (column in extra)}">{html.escape(text)}</td>'
        yield "</tr>"
    yield "</tbody></table>"


def _state(choice: Choice) -> str:
    states = {entry.state for entry in choice.entries}
    return states.pop() if len(states) == 1 else "mixed"


def _number(text: str, value: Estimate | None, kind: str) -> str:
    exact = f' data-value="{value.mean!r}" title="{value.mean!r}"' if value and isfinite(value.mean) else ""
    return f'<td class="{kind}"{exact}>{html.escape(text)}</td>'


def _section(section: Section, figures: str = "") -> str:
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in section.notes)
    table = f'<div class="wide tall">{_table(section.table)}</div>' if section.table else ""
    return f"<section><h2>{_breakable(section.title)}</h2>{notes}{figures}{table}</section>"


def _figure(figure: Figure) -> str:
    caption = f"<h3>{_breakable(figure.title)}</h3><p>{html.escape(figure.note)}</p>"
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="plot" id="{figure.name}">'
        "<noscript>This figure needs JavaScript.</noscript></div></figure>"
    )


def _table(table: TextTable) -> str:
    head = "".join(f'<th scope="col">{_breakable(name)}</th>' for name in table.columns)
    body = "".join(
        f'<tr><th scope="row">{_breakable(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>' for row in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return f"<td>{html.escape(text)}</td>"


def _breakable(name: str) -> str:
    """A key that may be broken after its dots and slashes."""
    return html.escape(name).replace(".", ".<wbr>").replace("/", "/<wbr>")
