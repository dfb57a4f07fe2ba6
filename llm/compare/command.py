"""The command line: python -m llm.compare <run or sweep> ...; the terminal, Markdown, or one HTML page."""

import argparse
from pathlib import Path

from llm.compare.budgets import as_csv, budget_tables
from llm.compare.entries import find_entries
from llm.compare.ranking import Ranking, rank
from llm.compare.show import markdown, print_ranking
from llm.errors import ConfigError, one_line_errors
from llm.run.console import output_console, start_logging
from llm.run.files import write_text
from llm.run.runs import find_run

ABOUT = "Compare runs: a table of what differs in their configs and what came out, the best first."


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    start_logging()  # for what is left out
    with one_line_errors():
        if arguments.report:
            _report(arguments)
            return
        entries, sweep = find_entries(arguments.outputs, arguments.runs)
        ranking = rank(
            entries,
            title=sweep.name if sweep else " ".join(arguments.runs),
            sweep=sweep,
            metric=arguments.metric,
            is_highest_best=arguments.highest,
            keys=arguments.key,
        )
        if arguments.html:
            from llm.compare.page import write_page  # imports plotly

            size = write_page(ranking, Path(arguments.html))
            print(f"{arguments.html}: {size / 1e6:.1f} MB, complete in itself: open it in a browser")
        if arguments.markdown == "-":
            print(markdown(ranking), end="")
        elif arguments.markdown:
            write_text(Path(arguments.markdown), markdown(ranking))
        if arguments.csv:
            write_text(Path(arguments.csv), _csv(ranking))
        if not (arguments.html or arguments.markdown or arguments.csv):
            print_ranking(ranking, output_console())


def _report(arguments: argparse.Namespace) -> None:
    """Write the report card of the one model that is named.

    Raises:
        ConfigError: several are, or it is no finished model.
    """
    if len(arguments.runs) > 1:
        raise ConfigError(f"--report is of one model, but {len(arguments.runs)} names are given. Give one of them.")
    from llm.compare.report import write_report  # imports plotly

    for path in write_report(arguments.outputs, find_run(arguments.outputs, arguments.runs[0])):
        print(path)


def _csv(ranking: Ranking) -> str:
    """The rows of what stands at equal bytes and at equal FLOPs.

    Raises:
        ConfigError: there is no such table.
    """
    if not (tables := budget_tables(ranking)):
        raise ConfigError(
            "--csv: no two tokenizers have finished pretraining runs of one model with a validation.jsonl. Train them "
            "with this version, or leave it out."
        )
    return as_csv(tables)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llm.compare", description=ABOUT)
    parser.add_argument("runs", nargs="+", help="runs by name, folder or glob (pretrain/*), or a sweep")
    parser.add_argument("--outputs", default="outputs", help="where runs and sweeps are looked for")
    parser.add_argument(
        "--metric", help="rank by this; by default the objective of a search, val/bits_per_byte or val/loss"
    )
    parser.add_argument("--highest", action="store_true", help="of the metric the highest is the best")
    parser.add_argument("--key", action="append", default=[], help="show what this key does, alone (several times)")
    parser.add_argument("--markdown", nargs="?", const="-", metavar="FILE", help="Markdown, to a file or here")
    parser.add_argument("--csv", metavar="FILE", help="of several tokenizers: bits per byte at equal bytes and FLOPs")
    parser.add_argument("--html", metavar="FILE", help="one page with figures that needs no network")
    parser.add_argument("--report", action="store_true", help="the report card of one model, in outputs/reports")
    return parser
