"""Compare runs: python -m llm.compare <run> <run> ...; a table of what differs in their configs and what came out."""

import argparse
import json
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm.errors import one_line_errors
from llm.run import Run, check_files, find_runs, history, read_metrics

NOT_CHOICES = (
    "stage",
    "name",
    "outputs",
    "reuse",
    "dry_run",
)  # shown as a column of its own, or where and how, not what
RANKED_BY = ("val/bits_per_byte", "val/loss")  # lower is better
METRICS = (*RANKED_BY, "train/loss", "tokens", "seconds")  # what a run that is not done has to show
NOT_RESULTS = ("bos_id", "eos_id")
HELD_OUT = (  # beginnings of the keys that say which text is held out
    "data.kind", "data.source", "data.path", "data.text_field", "data.layout.", "data.cleaning.",
    "data.held_out_share", "data.bad_records", "data.parts.",
)  # fmt: skip
HOW_MUCH = (".weight", ".max_bytes", ".max_tokens")  # ends of those of data.parts that say which is trained on
ABSENT = "-"  # a run has no such key or result
MOST_COLUMNS = 6  # with more, a run is a column
RUN_WIDTH = 24  # characters for a run's column in a terminal


@dataclass(frozen=True)
class Comparison:
    """A row of cells for each run, the best first."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def outcome(run: Run) -> dict[str, float]:
    """What came out, in numbers: the results of a finished run, else the last that it measured."""
    if not run.is_done:
        metrics = read_metrics(run.path / "metrics.jsonl")
        by_part = sorted({n for record in metrics for n in record if n.startswith(tuple(f"{m}/" for m in RANKED_BY))})
        return {name: values[-1][1] for name in (*METRICS, *by_part) if (values := history(metrics, name))}
    numbers = {key: value for key, value in run.results.items() if isinstance(value, int | float)}
    ranking = {name: numbers[name] for name in RANKED_BY if name in numbers}
    return ranking | {k: v for k, v in numbers.items() if k not in NOT_RESULTS} | {"seconds": run.record["seconds"]}


def varying(configs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted key -> its value in each config, for the keys in which they are not all alike.

    A config that lacks a whole group (a fine-tuning has no model of its own) does not make the group's keys vary.
    """
    flat = [_flat({key: value for key, value in config.items() if key not in NOT_CHOICES}) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    cells = {key: [values.get(key, ABSENT) for values in flat] for key in keys}
    having = {key: [i for i, config in enumerate(configs) if key.split(".")[0] in config] for key in keys}
    return {key: values for key, values in cells.items() if len({values[i] for i in having[key]}) > 1}


def compare(runs: list[Run]) -> Comparison:
    """What differs between runs and what came out, ranked by bits per byte, else by loss."""
    ranked = sorted(((run, outcome(run)) for run in runs), key=lambda pair: _rank(pair[1]))
    runs, outcomes = [run for run, _ in ranked], [values for _, values in ranked]
    cells = {
        "run": [run.path.name for run in runs],
        "stage": [run.stage for run in runs],
        "state": [run.state for run in runs],
        **varying([run.config for run in runs]),
    }
    for key in dict.fromkeys(key for values in outcomes for key in values):
        cells[key] = [shown(values[key]) if key in values else ABSENT for values in outcomes]
    if any(errors := [str(run.record.get("error", "")) for run in runs]):
        cells["error"] = [error or ABSENT for error in errors]
    measured = [run for run, values in ranked if _rank(values)[0] < inf]
    return Comparison(list(cells), [list(row) for row in zip(*cells.values(), strict=True)], held_out_notes(measured))


def shown(value: float) -> str:
    """A number as a person reads it: whole ones whole, others with about 5 digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.1f}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.01 else f"{value:.4g}"


def tables(comparison: Comparison, *, width: int | None) -> list[Table]:
    """A row for each run, or with many columns a column for each, as many in a table as `width` holds."""
    if len(comparison.columns) <= MOST_COLUMNS:
        return [_table(comparison.columns, comparison.rows)]
    names, *others = comparison.columns
    room = len(comparison.rows) if width is None else max(1, (width - max(map(len, others))) // RUN_WIDTH)
    blocks = [comparison.rows[start : start + room] for start in range(0, len(comparison.rows), room)]
    return [
        _table(
            [names, *(row[0] for row in block)], [[key, *(row[i] for row in block)] for i, key in enumerate(others, 1)]
        )
        for block in blocks
    ]


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(highlight=False)
    for index, column in enumerate(columns):
        # The first column is what is looked up: it keeps its width, and the others fold.
        table.add_column(Text(column), overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as JSON without the quotes of a bare string."""
    leaves: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return leaves


def _rank(values: dict[str, float]) -> tuple[float, ...]:
    """Smaller is better; what was not measured, or is no number any more, comes last."""
    return tuple(value if isfinite(value := values.get(name, inf)) else inf for name in RANKED_BY)


def held_out_notes(runs: list[Run]) -> list[str]:
    """What a reader of the ranks of these runs must know, if they were not measured on the same held-out text."""
    choices = varying([run.config for run in runs])
    differing = ["stage"] if len({run.stage for run in runs}) > 1 else []
    differing += [key for key in choices if key.startswith(HELD_OUT) and not key.endswith(HOW_MUCH)]
    if not differing:
        return []
    return [f"They were not measured on the same held-out text ({', '.join(differing)} differ): ranks mean little."]


def output_console() -> Console:
    """The terminal, or a pipe, which has no width: nothing is folded."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=10_000)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="names or folders of runs, or a glob such as 'pretrain/*'")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        found = [run for name in arguments.runs for run in find_runs(arguments.outputs, name)]
        for run in found:
            if run.is_done:
                check_files(run, under="config.yaml")
        comparison = compare(list({run.path.resolve(): run for run in found}.values()))
    console = output_console()
    for table in tables(comparison, width=console.width if console.is_terminal else None):
        console.print(table)
    for note in comparison.notes:
        console.print(Text(note))


if __name__ == "__main__":
    main()
