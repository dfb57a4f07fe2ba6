"""Steps, tokens and seconds that Muon takes to the validation bits per byte that AdamW ends with, both tuned.

    python -m benchmarks.time_to_loss                                    # on Korean law, half an hour on two cores
    python -m benchmarks.time_to_loss --models llama_tiny --seeds 1 --results results.json
    python -m benchmarks.time_to_loss data=text data.path=data/my-books  # settings for every run, as for train.py

Each optimizer gets a sweep over the learning rate, doubled or halved until the best is no longer at an edge, AdamW at
--steps and Muon at the smallest of --shares of them; then the best rate gets --seeds seeds, Muon at a larger share only
if it did not get there at a smaller one. Every run goes through its whole schedule, so a shorter run is no cut of a
longer one. Tokens to the target are read off the validations, a straight line between two. Runs are keyed: stopped, the
same command goes on.
"""

import argparse
import datetime
import json
import platform
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness import config_of, options, print_table
from llm.errors import one_line_errors
from llm.run.record import read_metrics
from llm.run.runs import Run

SETTINGS = [
    *("tokenizer.vocab_size=4096", "data.batch_size=4", "data.held_out_share=0.003", "optimizer.warmup_steps=40"),
    *("trainer.sample_prompts=[]", "trainer.log_every_steps=20", "logger=local"),
]
POINT = dict[str, float]  # step, tokens, seconds and bits_per_byte of a validation


def train(arguments: argparse.Namespace, *, model: str, optimizer: str, rate: float, steps: int, seed: int) -> Run:
    """The finished run of these choices."""
    from llm.stage import run_stage

    overrides = [
        *SETTINGS,
        *(f"outputs={arguments.outputs}", f"model={model}", f"optimizer={optimizer}", f"seed={seed}"),
        *(f"name=time-{model}-{optimizer}", f"optimizer.learning_rate={rate:g}", f"trainer.max_steps={steps}"),
        *(f"trainer.{key}_every_steps={arguments.validate_every_steps}" for key in ("validate", "checkpoint")),
        *arguments.settings,
    ]
    return run_stage(config_of(*overrides))


def validations(run: Run) -> list[POINT]:
    return [
        {key: record[key] for key in ("step", "tokens", "seconds")} | {"bits_per_byte": record["val/bits_per_byte"]}
        for record in read_metrics(run.path / "metrics.jsonl")
        if "val/bits_per_byte" in record
    ]


def reached(points: list[POINT], target: float) -> POINT | None:
    """Where the bits per byte first are `target`, on the line between two validations; None where they never are."""
    for before, after in pairwise(points):
        if after["bits_per_byte"] <= target < before["bits_per_byte"]:
            share = (before["bits_per_byte"] - target) / (before["bits_per_byte"] - after["bits_per_byte"])
            return {key: before[key] + share * (after[key] - before[key]) for key in before}
    return None


def sweep(arguments: argparse.Namespace, *, model: str, optimizer: str, steps: int) -> dict[float, float]:
    """Learning rate -> final bits per byte, for a grid that has better neighbours to neither side of its best."""
    found: dict[float, float] = {}
    rates = list(arguments.learning_rates)
    while rates:
        for rate in rates:
            run = train(arguments, model=model, optimizer=optimizer, rate=rate, steps=steps, seed=0)
            found[rate] = validations(run)[-1]["bits_per_byte"]
        best, edges = min(found, key=found.__getitem__), (min(found), max(found))
        rates = [best / 2] * (best == edges[0]) + [best * 2] * (best == edges[1])
    return dict(sorted(found.items()))


def measure(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Of one model: both sweeps, the curves of the best rates by seed, and what Muon takes to AdamW's end."""
    result: dict[str, Any] = {"model": model, "sweeps": {}, "best": {}, "curves": {}}
    lengths = {"adamw": [arguments.steps], "muon": sorted(round(share * arguments.steps) for share in arguments.shares)}
    for optimizer, steps in lengths.items():
        found = sweep(arguments, model=model, optimizer=optimizer, steps=steps[0])
        result["sweeps"][optimizer] = {f"{rate:g}": value for rate, value in found.items()}
        result["best"][optimizer] = min(found, key=found.__getitem__)
    for name, length in [(name, length) for name, steps in lengths.items() for length in steps]:
        runs = [
            train(arguments, model=model, optimizer=name, rate=result["best"][name], steps=length, seed=seed)
            for seed in range(arguments.seeds)
        ]
        result["curves"][f"{name}-{length}"] = [validations(run) for run in runs]
        result["to_target"] = [to_target(result["curves"], seed) for seed in range(arguments.seeds)]
        if all(row["muon"] for row in result["to_target"]):
            break
    return result


def to_target(curves: dict[str, list[list[POINT]]], seed: int) -> dict[str, Any]:
    """Where AdamW ends with a seed, and where the shortest Muon run with it that gets as low gets there."""
    adamw = next(points[seed][-1] for name, points in curves.items() if name.startswith("adamw"))
    muons = sorted((points[seed] for name, points in curves.items() if name.startswith("muon")), key=len)
    muon = next((point for points in muons if (point := reached(points, adamw["bits_per_byte"]))), None)
    return {"adamw": adamw, "muon": muon, "token_share": muon["tokens"] / adamw["tokens"] if muon else None}


def show(results: list[dict[str, Any]]) -> None:
    for result in results:
        rates = sorted({float(rate) for sweep in result["sweeps"].values() for rate in sweep})
        print_table(
            f"{result['model']}: final bits per byte by learning rate, seed 0",
            ("optimizer", *(f"{rate:g}" for rate in rates)),
            [
                (optimizer, *(f"{found[key]:.4f}" if (key := f"{rate:g}") in found else "" for rate in rates))
                for optimizer, found in result["sweeps"].items()
            ],
        )
        rows = []
        for name, curves in result["curves"].items():
            ends = [points[-1] for points in curves]
            finals = [end["bits_per_byte"] for end in ends]
            rate, seconds = result["best"][name.split("-")[0]], statistics.mean(end["seconds"] for end in ends)
            row = (name, f"{rate:g}", f"{ends[0]['tokens']:,.0f}", f"{statistics.mean(finals):.4f}")
            rows.append((*row, f"{min(finals):.4f}-{max(finals):.4f}", f"{seconds:.0f}"))
        columns = ("run", "learning rate", "tokens", "final bits per byte", "range", "seconds")
        print_table(f"{result['model']}: at its best rate, mean and range over the seeds", columns, rows)
        shares = ", ".join(f"{row['token_share']:.2f}" if row["muon"] else "never" for row in result["to_target"])
        print(f"{result['model']}: tokens of Muon to where AdamW ends, of AdamW's, by seed: {shares}")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--models", nargs="+", default=["gpt2_tiny", "llama_tiny"], help="choices of conf/model")
    parser.add_argument("--steps", type=int, default=240, help="of AdamW")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.75], help="of these steps, for Muon")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validate-every-steps", type=int, default=30)
    parser.add_argument("--outputs", default="outputs", help="where the runs go")
    parser.add_argument("--results", type=Path, help="a JSON file for all that was measured")
    parser.add_argument("settings", nargs="*", help="more settings for every run, as for train.py")
    return parser.parse_intermixed_args(words)


def main() -> None:
    arguments = parse()
    with one_line_errors():
        results = [measure(arguments, model) for model in arguments.models]
    show(results)
    if arguments.results:
        said = {key: getattr(arguments, key) for key in ("steps", "shares", "seeds", "settings")}
        about = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), "settings_of_all": SETTINGS}
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(about | said | {"results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
