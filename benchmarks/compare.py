"""Seconds and bytes of comparing many runs: the terminal's table, and the page.

    python -m benchmarks.compare                          # 200 runs of 1,000 points
    python -m benchmarks.compare --runs 20 --points 100

The runs are written for it, in a temporary folder. Each measure is a process of its own, its imports included.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.harness import ROOT, options, print_table
from llm.run.runs import list_files


def write_run(folder: Path, number: int, points: int) -> None:
    """A finished pretraining of so many validations, its curve drawn by chance."""
    draw = random.Random(number)
    rate, layers, seed = draw.choice([1e-4, 3e-4, 1e-3, 3e-3]), draw.choice([2, 4, 8]), number % 3
    end = 1.0 + abs(rate - 1e-3) * 100 + 1 / layers
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, points + 1):
            value = end + 3 / step + draw.gauss(0, 0.01)
            record = {"step": step, "tokens": 8192 * step, "seconds": step, "train/flops": 1e9 * step}
            file.write(json.dumps(record | {"val/bits_per_byte": value, "train/loss": 2 * value}) + "\n")
    config = {"stage": "pretrain", "seed": seed, "optimizer": {"learning_rate": rate}, "model": {"num_layers": layers}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    record = {
        "stage": "pretrain",
        "name": "made",
        "key": f"{number:08d}",
        "status": "done",
        "first_started_at": "2026-01-01T00:00:00+00:00",
        "ended_at": "2026-01-01T01:00:00+00:00",
        "seconds": 3600.0,
        "results": {"val/bits_per_byte": end, "parameters": 100_000 * layers},
        "files": list_files(folder),
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def seconds(outputs: Path, *words: str) -> float:
    command = [sys.executable, "-m", "llm.compare", "pretrain/*", "--outputs", str(outputs), *words]
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.runs):
            write_run(Path(folder, "pretrain", f"made-{number:08d}"), number, arguments.points)
        page = Path(folder, "page.html")
        terminal, html = seconds(Path(folder)), seconds(Path(folder), "--html", str(page))
        cells = f"{arguments.runs} {arguments.points} {terminal:.2f} {html:.2f} {page.stat().st_size / 1e6:.1f}".split()
        print_table("", ("runs", "points each", "terminal (s)", "page (s)", "page (MB)"), [cells])


if __name__ == "__main__":
    main()
