"""Compare runs: python -m llm.compare <run> <run> ...; a table of what differs in their configs and what came out."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llm.errors import ConfigError, one_line_errors
from llm.run import Run, candidates, differences, history, load, read_metrics

NOT_CHOICES = ("name", "outputs", "reuse")  # top-level keys that say where and how, not what
METRICS = ("val/bits_per_byte", "val/loss", "train/loss", "throughput/tokens_per_second")
RANKED_BY = METRICS[:2]  # lower is better


def find_runs(outputs: str, name_or_folder: str) -> list[Run]:
    """Every run that a folder, a folder's name, a name or a glob under outputs (pretrain/*) means.

    Raises:
        ConfigError: there is none.
    """
    if (Path(name_or_folder) / "run.json").is_file():
        return [load(Path(name_or_folder))]
    runs = candidates(outputs)
    found = [
        run
        for run in runs
        if name_or_folder in (run.path.name, run.record["name"]) or run.path.match(f"{outputs}/{name_or_folder}")
    ]
    if not found:
        names = ", ".join(f"{run.stage}/{run.path.name}" for run in runs) or "none yet"
        raise ConfigError(f"there is no run {name_or_folder} under {outputs}/. Runs: {names}.")
    return found


def outcome(run: Run) -> dict[str, Any]:
    """What came out: the results of a finished run, else the last that an unfinished one measured."""
    values = {key: value for key, value in run.results.items() if isinstance(value, int | float)}
    metrics = read_metrics(run.path / "metrics.jsonl")
    for name in METRICS:
        if name not in values and (measured := history(metrics, name)):
            values[name] = measured[-1][1]
    if not run.is_done and metrics:
        values["step"] = metrics[-1]["step"]
    if run.is_done:
        values["seconds"] = run.record["seconds"]
    return values | ({"error": run.record["error"]} if run.state == "failed" else {})


def varying(runs: list[Run]) -> dict[str, list[Any]]:
    """Dotted config key -> its value in each run, for the keys in which the runs are not all alike."""
    configs = [_choices(run.config) for run in runs]
    keys: dict[str, None] = {}
    for config in configs[1:]:
        keys |= {key: None for key, _, _ in differences(configs[0], config)}
    return {key: [_at(config, key) for config in configs] for key in keys}


def table(runs: list[Run]) -> Table:
    """A column for each run, the best first; a row for what differs and for what came out."""
    runs = sorted(runs, key=_rank)
    grid = Table(title=f"{len(runs)} runs, the best first", show_lines=False)
    grid.add_column("", overflow="fold")
    for run in runs:
        grid.add_column(run.path.name, overflow="fold")
    grid.add_row("stage", *(run.stage for run in runs))
    grid.add_row("state", *(run.state for run in runs), end_section=True)
    for key, values in varying(runs).items():
        grid.add_row(key, *map(_shown, values))
    if grid.rows:
        grid.rows[-1].end_section = True
    outcomes = [outcome(run) for run in runs]
    for key in dict.fromkeys(key for values in outcomes for key in values):
        grid.add_row(key, *(_shown(values.get(key)) for values in outcomes))
    return grid


def _choices(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_CHOICES}


def _rank(run: Run) -> tuple[float, float]:
    values = outcome(run)
    return tuple(values.get(metric, float("inf")) for metric in RANKED_BY)  # type: ignore[return-value]  # two metrics


def _at(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="names or folders of runs, or a glob such as 'pretrain/*'")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    arguments = parser.parse_args()
    with one_line_errors():
        runs = {run.path.resolve(): run for name in arguments.runs for run in find_runs(arguments.outputs, name)}
        console = Console()
        if not console.is_terminal:  # a pipe has no width: nothing is folded
            console = Console(width=60 + 60 * len(runs))
        console.print(table(list(runs.values())))


if __name__ == "__main__":
    main()
