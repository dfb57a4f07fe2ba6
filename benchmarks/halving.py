"""Best bits per byte and tokens of successive halving beside the whole grid that it searches.

    python -m benchmarks.halving                                     # 12 points on Korean law, an hour on two cores
    python -m benchmarks.halving --steps 90 data=text data.path=...  # settings for every run, as for train.py

Both try the same points, each in a folder of its own under --outputs; stopped, the same command goes on.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT, options, print_table
from llm.run.record import read_metrics
from llm.run.runs import find_runs

POINTS = ["optimizer.learning_rate=3e-4,1e-3,3e-3,1e-2", "model.num_layers=2,3,4"]
FACTOR = 3


@dataclass(frozen=True)
class Spent:
    """What a sweep has found, and what it took."""

    bits_per_byte: float  # of its best finished run
    tokens: int  # of all its runs, stopped ones too
    finished: int  # runs


def sweep(arguments: argparse.Namespace, name: str, settings: list[str]) -> Spent:
    """Have the points tried, and read what came of it from the runs."""
    outputs = Path(arguments.outputs, name)
    first_rung = max(1, arguments.steps // FACTOR**2)
    overrides = [
        *("experiment=demo", "name=point", f"outputs={outputs}", "trainer.sample_prompts=[]", "logger=local"),
        *(f"trainer.max_steps={arguments.steps}", f"trainer.validate_every_steps={first_rung}"),
        *(f"trainer.checkpoint_every_steps={arguments.steps}", *POINTS, *arguments.settings),
    ]
    if arguments.jobs:
        overrides.append(f"hydra.launcher.jobs={arguments.jobs}")
    search = [setting.format(first_rung=first_rung) for setting in settings]
    subprocess.run([sys.executable, str(ROOT / "train.py"), "-m", *overrides, *search], cwd=ROOT, check=True)
    runs = find_runs(str(outputs), "pretrain/*")
    found = [run.results["val/bits_per_byte"] for run in runs if run.is_done]
    last = [read_metrics(run.path / "metrics.jsonl")[-1] for run in runs]
    return Spent(min(found), sum(int(record["tokens"]) for record in last), len(found))


def show(grid: Spent, halving: Spent) -> None:
    rows = [
        (name, f"{each.bits_per_byte:.4f}", f"{each.tokens:,}", str(each.finished))
        for name, each in (("whole grid", grid), ("halving", halving))
    ]
    worse = halving.bits_per_byte / grid.bits_per_byte - 1
    rows.append(("halving over grid", f"{worse:+.2%}", f"{halving.tokens / grid.tokens:.1%}", ""))
    print_table("", ("", "best bits per byte", "tokens", "finished runs"), rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=900, help="of a whole run; the rungs are at a ninth and a third")
    parser.add_argument("--jobs", type=int, help="at once; default: as the launcher chooses")
    parser.add_argument("--outputs", default="outputs/halving")
    parser.add_argument("settings", nargs="*", help="for every run, as for train.py")
    arguments = parser.parse_args()
    grid = sweep(arguments, "grid", [])
    halved = [
        *("hydra.sweeper.trials=12", "hydra.sweeper.sampler=grid", "hydra.sweeper.halving.first_step={first_rung}"),
        f"hydra.sweeper.halving.factor={FACTOR}",
    ]
    show(grid, sweep(arguments, "halving", halved))


if __name__ == "__main__":
    main()
