"""Comparing 200 runs of 1,000 points: python -m benchmarks.compare; prints seconds and the page's bytes.

Makes a sweep of 200 finished, failed and stopped jobs in a temporary folder (or in --folder, which is kept), then has
python -m llm.compare write its page and its Markdown, each in a process of its own.
"""

import argparse
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from llm.config import composed
from llm.run.manifest import list_files

KEYS = {
    "optimizer.learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "model.num_layers": [2, 3, 4, 6],
    "tokenizer.vocab_size": [4096, 8192],
    "seed": [0, 1, 2, 3, 4],
}
FACTS = {"parameters": 400_000, "unigram_bits_per_byte": 2.2369, "tokens_per_second_median": 10_376.85}


def make_sweep(outputs: Path, *, num_runs: int, num_points: int) -> Path:
    """A sweep's folder with its runs, as the pool leaves them; every 40th job has failed and every 50th is stopped."""
    chance = random.Random(0)
    base = composed(["model=llama_tiny", "logger=local"])
    sweep = outputs / "sweeps" / "learning_rate-0123abcd"
    jobs = [dict(zip(KEYS, point, strict=True)) for point in itertools.product(*KEYS.values())]
    for number, point in enumerate(itertools.islice(itertools.cycle(jobs), num_runs)):
        state = "failed" if number % 40 == 39 else "stopped" if number % 50 == 49 else "done"
        run = outputs / "pretrain" / f"llama_tiny-char_bpe-korean_law-{number:08x}"
        make_run(run, base, point, state=state, num_points=num_points, chance=chance)
        ended = {"failed": "diverged", "stopped": "stopped", "done": "done"}[state]
        attempt = {
            **{"started_at": "2026-01-01T00:00:00+00:00", "host": "here", "driver": 1, "exit_code": 0},
            **{"ended_at": "2026-01-01T00:10:00+00:00", "kind": ended, "message": None},
        }
        record = {
            **{"number": number, "overrides": [f"{key}={value}" for key, value in point.items()], "state": state},
            **{"run": str(run), "objective": None, "attempts": [attempt]},
        }
        write(sweep / "jobs" / f"{number:04d}" / "job.json", json.dumps(record))
    return sweep


def make_run(
    folder: Path, base: dict[str, Any], point: dict[str, Any], *, state: str, num_points: int, chance: random.Random
) -> None:
    """A pretraining run whose loss falls as a power of its tokens, and ends by what its settings are."""
    config = json.loads(json.dumps(base)) | {"seed": point["seed"]}
    for key in ("optimizer.learning_rate", "model.num_layers", "tokenizer.vocab_size"):
        group, name = key.split(".")
        config[group][name] = point[key]
    floor = 3.2 + 0.12 * math.log10(point["optimizer.learning_rate"] / 3e-3) ** 2 - 0.05 * point["model.num_layers"]
    parameters = FACTS["parameters"] * point["model.num_layers"] + 160 * point["tokenizer.vocab_size"]
    lines = []
    for step in range(10, 10 * num_points + 1, 10):
        loss = floor + 5.2 * (1 + step / 60) ** -0.7 + chance.gauss(0, 0.03)
        place = {"step": step, "tokens": 1024 * step, "seconds": step / 10}
        flops = place["tokens"] * 6.0 * parameters
        speed = {"throughput/tokens_per_second": 10_240.0 + chance.random(), "throughput/mfu": 0.4}
        lines.append(place | {"train/loss": loss, "train/flops": flops, "train/gradient_norm": 0.8} | speed)
        if step % (num_points or 1) == 0:
            lines.append(place | {"val/loss": loss + 0.05, "val/bits_per_byte": (loss + 0.05) * 0.36})
    keep = lines if state == "done" else lines[: len(lines) // 3]
    last = next(line for line in reversed(keep) if "val/loss" in line)
    texts = [
        {"step": last["step"], "prompt": prompt, "text": " 정하는 바에 따라 금융위원회에 신고하여야 한다. " * 3}
        for prompt in ("제1조(목적) 이 법은", "금융위원회는", "대통령령으로")
    ]
    write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in keep))
    write(folder / "samples.jsonl", "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts))
    write(folder / "config.yaml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    measured = {name: last[name] for name in ("val/loss", "val/bits_per_byte")}
    settings = {"seed": point["seed"], "rest": {key: value for key, value in point.items() if key != "seed"}}
    record = {
        **{"stage": "pretrain", "name": "llama_tiny", "key": folder.name[-8:], "seconds": 600.0},
        **{"status": "done" if state == "done" else "running", "first_started_at": "2026-01-01T00:00:00+00:00"},
        **{"command": "train.py", "folders": {}, "identity": {"settings": settings, "parents": {}}},
        "results": FACTS | {"parameters": parameters, "tokens": last["tokens"]} | measured if state == "done" else {},
    }
    if state == "failed":
        record |= {"status": "failed", "error": "DivergedError: val/loss is nan at step 3340."}
    record["files"] = list_files(folder)
    write(folder / "run.json", json.dumps(record))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def timed(sweep: Path, outputs: Path, *words: str) -> float:
    """Seconds that a comparison takes, from the shell's command to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "llm.compare", str(sweep), "--outputs", str(outputs), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="keep the runs and the page here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        outputs = arguments.folder or Path(temporary)
        sweep = make_sweep(outputs, num_runs=arguments.runs, num_points=arguments.points)
        page, text = sweep / "compare.html", sweep / "compare.md"
        for path, option in ((page, "--html"), (text, "--markdown")):
            seconds = timed(sweep, outputs, option, str(path))
            size = path.stat().st_size
            print(f"{arguments.runs} runs x {arguments.points} points: {option[2:]} {seconds:.1f} s, {size:,} bytes")


if __name__ == "__main__":
    main()
