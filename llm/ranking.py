"""Pretraining runs ranked: python -m llm.ranking 'pretrain/*'; seeds are averaged, and lossy tokenizers marked."""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rich.table import Table
from rich.text import Text

from llm.compare import compare, held_out_notes, output_console, shown, tables, varying
from llm.config import Reuse, StageConfig
from llm.errors import ConfigError, one_line_errors
from llm.run import Run, find_runs
from llm.run.console import quiet
from llm.stage import run_stage

OBJECTIVE = "val/bits_per_byte"
ANSWERS = "answers/loss"  # the objective of an evaluation of a tuned model
SEEDS_AND_SIZES = ("seed", "trainer.max_steps")  # averaged over; or given by the budget, and shown as tokens
COLUMNS = ("rank", "tokenizer", "vocabulary", OBJECTIVE, "±", "seeds", "MB of text", "million tokens", "loses")


@dataclass(frozen=True)
class Choice:
    """Runs that differ in nothing but their seed."""

    runs: list[Run]
    tokenizer: Run

    @property
    def values(self) -> list[float]:
        return [float(run.results[OBJECTIVE]) for run in self.runs]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Of the seeds, as a sample's; None of one."""
        return statistics.stdev(self.values) if len(self.runs) > 1 else None


def rank(runs: Sequence[Run]) -> list[Choice]:
    """The choices among pretraining runs, the fewest bits per byte first.

    Raises:
        ConfigError: a run that is not done, or that is of another stage.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.stage != "pretrain" or not run.is_done:
            raise ConfigError(f"{run.path} is a {run.stage} run, {run.state}. Give finished pretraining runs.")
        identity = run.record["identity"]
        settings = {key: value for key, value in identity["settings"].items() if key != "seed"}
        groups.setdefault(json.dumps([settings, identity["parents"]], sort_keys=True), []).append(run)
    choices = [Choice(group, group[0].parent("tokenizer")) for group in groups.values()]
    return sorted(choices, key=lambda choice: choice.mean)


def table(choices: list[Choice]) -> Table:
    """A row for each choice; what else was swept has a column of its own."""
    others = _others(choices)
    drawn = Table(*COLUMNS, *others, highlight=False)
    drawn.columns[1].no_wrap = True
    for place, choice in enumerate(choices, 1):
        lost = choice.tokenizer.results["lost_bytes_share"]
        lossless = choice.tokenizer.results["lossless_documents"] == 1
        cells = [
            str(place),
            str(choice.tokenizer.config["tokenizer"]["name"]),
            shown(choice.tokenizer.results["vocab_size"]),
            f"{choice.mean:.4f}",
            "-" if choice.deviation is None else f"{choice.deviation:.4f}",
            str(len(choice.runs)),
            f"{_megabytes(choice):.1f}",
            f"{choice.runs[0].results['tokens'] / 1e6:.2f}",
            "" if lossless else f"{100 * lost:.2g} % of bytes" if lost else "not exact",
        ]
        drawn.add_row(*map(Text, cells), *(Text(values[place - 1]) for values in others.values()))
    return drawn


def notes(choices: list[Choice]) -> list[str]:
    """What a reader of the ranks must know."""
    said = held_out_notes([choice.runs[0] for choice in choices])
    spread = max((choice.deviation or 0 for choice in choices), default=0)
    if min(len(choice.runs) for choice in choices) < 2:
        said.append("One seed each: a difference of 0.03 can be chance. Sweep seed=0,1,2, too.")
    elif any(b.mean - a.mean < spread for a, b in pairwise(choices)):
        said.append(f"Neighbours that differ by less than the seeds do (up to {spread:.4f}) are not told apart.")
    return said


def _megabytes(choice: Choice) -> float:
    """Raw text that the model was fed: its tokens at the bytes that a token of the training text spells."""
    train = choice.runs[0].parent("shards").results["train"]
    return float(choice.runs[0].results["tokens"] * train["raw_bytes"] / train["tokens"] / 1e6)


def _others(choices: list[Choice]) -> dict[str, list[str]]:
    """Swept settings beside the tokenizer's, each with its values by rank."""
    return {
        key: values
        for key, values in varying([choice.runs[0].config for choice in choices]).items()
        if not key.startswith(("tokenizer.", "logger.")) and key not in SEEDS_AND_SIZES
    }


def show(runs: Sequence[Run]) -> None:
    """Print the ranking of runs and what to know about it."""
    choices = rank(runs)
    console = output_console()
    console.print(table(choices))
    for note in notes(choices):
        console.print(Text(note))


def show_sweep(configs: Sequence[StageConfig]) -> None:
    """Print how the runs compare that a sweep has finished, found as the same command would find them."""
    with quiet():  # each would say that it is reused
        found = [run_stage(replace(c, reuse=Reuse.require)) for c in configs]
    runs = list({run.path: run for run in found}.values())
    if all(run.stage == "pretrain" for run in runs):
        show(runs)
    else:
        show_compared(runs)


def show_compared(runs: Sequence[Run]) -> None:
    """Print what differs between runs of any stage and what came out, the best first; tuned models by their answers."""
    has_answers = all(ANSWERS in run.results for run in runs)
    compared, console = compare(runs, metric=ANSWERS if has_answers else None), output_console()
    for drawn in tables(compared, width=console.width if console.is_terminal else None):
        console.print(drawn)
    for note in compared.notes:
        console.print(Text(note))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.ranking", description=__doc__)
    parser.add_argument("runs", nargs="+", help="names or folders of pretraining runs, or a glob such as 'pretrain/*'")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        found = [run for name in arguments.runs for run in find_runs(arguments.outputs, name)]
        finished = {run.path.resolve(): run for run in found if run.stage == "pretrain" and run.is_done}
        if not finished:
            raise ConfigError(f"{' '.join(arguments.runs)}: no finished pretraining run. Make one: python train.py.")
        show(list(finished.values()))


if __name__ == "__main__":
    main()
