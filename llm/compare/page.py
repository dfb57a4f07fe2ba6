"""A ranking -> one HTML page with its tables and figures; it asks the network for nothing."""

import html
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from llm.compare.figures import LABELS, Figure, colour, figures
from llm.compare.ranking import Choice, Ranking, shown_key
from llm.compare.show import Section, sections
from llm.run.console import TextTable
from llm.run.files import write_text
from llm.run.record import now

HERE = Path(__file__).parent
# Nothing may be asked of the network, whatever a run is named: the browser itself refuses it.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(ranking: Ranking, path: Path) -> int:
    """Write the page; its size in bytes."""
    text = page(ranking)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return len(text.encode())


def page(ranking: Ranking) -> str:
    """The page as text."""
    drawn = figures(ranking)
    return html_page(f"{ranking.title}: runs compared", _body(ranking, drawn), drawn)


def html_page(title: str, body: Iterable[str], drawn: Sequence[Figure]) -> str:
    """A whole page of a body that is escaped, with figures."""
    parts = "\n".join(body)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{parts}
<script type="application/json" id="figures">{as_script({each.name: each.drawn.to_json() for each in drawn})}</script>
<script>{plotly_script()}</script>
<script>{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def report_body(title: str, intro: str, sections: Sequence[Section], drawn: Sequence[Figure]) -> Iterator[str]:
    """Sections under a title, the figures after the first two."""
    yield f'<header><h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p></header><main class="report">'
    yield from map(_section, sections[:2])
    yield f'<section><h2>Curves</h2><div class="figures">{"".join(map(_figure, drawn))}</div></section>'
    yield from map(_section, sections[2:])
    yield "</main>"


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


def _body(ranking: Ranking, drawn: Sequence[Figure]) -> Iterator[str]:
    """What is seen, from the top."""
    by = LABELS.get(ranking.metric or "", ranking.metric or "nothing, for none is measured")
    highest = " (the highest is the best)" if ranking.is_highest_best else ""
    yield f"<header><h1>{html.escape(ranking.title)}</h1>"
    yield f"<p>{html.escape(f'{ranking.counts}. Ranked by {by}{highest}')}. Made {now()}.</p>"
    yield from (f'<p class="note">{html.escape(note)}</p>' for note in ranking.notes)
    yield "</header><main><section><h2>Which is the best?</h2>"
    yield '<p class="screen">A heading sorts; a mark in the first column shows a choice alone in every figure.</p>'
    yield '<p class="screen"><label>Show only rows with <input id="filter" type="search"></label></p>'
    yield f'<div class="wide">{"".join(_ranked(ranking))}</div></section>'
    yield f'<section><h2>Figures</h2><div class="figures">{"".join(map(_figure, drawn))}</div></section>'
    yield from (_section(section) for section in sections(ranking, num_samples=8))
    yield "<section><h2>How is each made again?</h2>"
    yield "<p>Where the run is there, its command finds it and runs nothing.</p>"
    for place, choice in enumerate(ranking.choices, 1):
        commands = "".join(f"<pre>{html.escape(entry.command or 'not recorded')}</pre>" for entry in choice.entries)
        yield f"<details><summary>{place}. {html.escape(choice.name)}</summary>{commands}</details>"
    yield "</section></main>"


def _ranked(ranking: Ranking) -> Iterator[str]:
    """The ranked table: what sorts, filters, and follows a choice through the figures."""
    columns = ranking.table.columns
    first = [*([ranking.metric] if ranking.metric else []), *map(shown_key, ranking.settings), "state", "run"]
    order = [*first, *(name for name in columns if name not in first)]
    yield '<table id="ranked"><thead><tr><th scope="col"></th>'
    yield from (f'<th scope="col"><button type="button">{_breakable(name)}</button></th>' for name in ("#", *order))
    yield "</tr></thead><tbody>"
    for place, (choice, row) in enumerate(zip(ranking.choices, ranking.table.rows, strict=True)):
        name = html.escape(choice.name)
        yield f'<tr><td><input type="checkbox" value="{place}" aria-label="Show {name} alone" '
        yield f'style="outline-color:{colour(place)}"></td><td>{place + 1}</td>'
        yield from (_ranked_cell(choice, column, row[columns.index(column)]) for column in order)
        yield "</tr>"
    yield "</tbody></table>"


def _ranked_cell(choice: Choice, column: str, text: str) -> str:
    value = choice.outcome.get(column)
    if column == "run":
        return f'<th scope="row" title="{html.escape(str(choice.best.path))}">{html.escape(text)}</th>'
    if value and isfinite(value.mean):
        return f'<td class="number" data-value="{value.mean!r}" title="{value.mean!r}">{html.escape(text)}</td>'
    kind = choice.best.state if column == "state" else column if column == "error" else ""
    return f'<td class="{kind}">{html.escape(text)}</td>'


def _section(section: Section) -> str:
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in section.notes)
    table = f'<div class="wide">{_table(section.table)}</div>' if section.table else ""
    commands = "".join(f"<pre>{html.escape(command)}</pre>" for command in section.commands)
    return f"<section><h2>{_breakable(section.title)}</h2>{notes}{table}{commands}</section>"


def _figure(figure: Figure) -> str:
    of_curves = '<label>Show <select id="view"></select></label> <label><input type="checkbox" id="log"> log</label>'
    return (
        f"<figure><figcaption><h3>{_breakable(figure.title)}</h3><p>{html.escape(figure.note)}</p>"
        f"{of_curves if figure.name == 'curves' else ''}</figcaption>"
        f'<div class="plot" id="{html.escape(figure.name)}">'
        "<noscript>This figure needs JavaScript.</noscript></div></figure>"
    )


def _table(table: TextTable) -> str:
    head = "".join(f'<th scope="col">{_breakable(name)}</th>' for name in table.columns)
    rows = (
        f'<tr><th scope="row">{_breakable(first)}</th>{"".join(f"<td>{html.escape(text)}</td>" for text in row)}</tr>'
        for first, *row in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _breakable(name: str) -> str:
    """A key that may be broken after its dots and slashes."""
    return html.escape(name).replace(".", ".<wbr>").replace("/", "/<wbr>")
