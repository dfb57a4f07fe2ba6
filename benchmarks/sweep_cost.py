"""What a sweep costs beside the jobs that it runs: one job alone and as a sweep, typed again, and the driver's memory.

    python -m benchmarks.sweep_cost               # 200 jobs, some minutes
    python -m benchmarks.sweep_cost --jobs 20 --rounds 1

A job is a training of one step. By turns: `python train.py` and the same job under -m; then both typed again, which
finds the finished run. The driver's memory is the most that it was resident, at a tenth of the jobs and at all of them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.harness import ROOT, options, print_table
from benchmarks.korean_text import write_jsonl

TEXT = ["data=text", "data.path=text.jsonl", "data.held_out_share=0.2", "tokenizer.vocab_size=3000"]
JOB = [
    *TEXT,
    *("data.sequence_length=64", "data.batch_size=4", "model.num_layers=1", "model.num_heads=2"),
    *("model.hidden_size=16", "trainer.max_steps=1", "trainer.sample_prompts=[]", "logger=local"),
]


def timed(folder: Path, *words: str) -> tuple[float, int]:
    """(seconds, the most bytes of memory that the command's own process has had)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    begun, most = time.perf_counter(), 0
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with Path(folder, "said.txt").open("w+", encoding="utf-8") as said:
        running = psutil.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        while running.poll() is None:
            most = max(most, running.memory_info().rss)
            time.sleep(0.05)
        if running.returncode:
            said.seek(0)
            raise SystemExit(said.read())
    return time.perf_counter() - begun, most


def one_job(folder: Path, rounds: int) -> None:
    """A row for a first start and one for a second, alone and as a sweep by turns."""
    took: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for name, words in (("alone", ()), ("-m", ("-m",))):
            seed = f"seed={2 * number + bool(words)}"
            for start in ("first start", "typed again"):
                took.setdefault((start, name), []).append(timed(folder, *words, *JOB, seed)[0])
    rows = []
    for start in ("first start", "typed again"):
        alone, sweep = (statistics.median(took[start, name]) for name in ("alone", "-m"))
        rows.append((start, f"{alone:.2f}", f"{sweep:.2f}", f"{sweep / alone:.2f}"))
    print_table("", ("one job", "python train.py (s)", "-m (s)", "ratio"), rows)


def many_jobs(folder: Path, num_jobs: int) -> None:
    rows = []
    for jobs in (max(2, num_jobs // 10), num_jobs):
        seconds, most = timed(folder, "-m", *JOB, f"name=many-{jobs}", f"seed=range({jobs})")
        rows.append((str(jobs), f"{seconds:.0f}", f"{seconds / jobs:.2f}", f"{most / 1e6:.0f}"))
    print_table("", ("jobs", "seconds", "seconds a job", "driver's memory (MB)"), rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder, "text.jsonl"), megabytes=0.3)
        timed(Path(folder), "stage=shards", *TEXT, "data.sequence_length=64")
        one_job(Path(folder), arguments.rounds)
        many_jobs(Path(folder), arguments.jobs)


if __name__ == "__main__":
    main()
