"""The memory that a dry run expects of training, beside what training took, each in a process of its own.

    python -m benchmarks.memory                      # the presets up to 30 million parameters
    python -m benchmarks.memory --model gpt2_125m --micro-rows 8 --precision bf16

On a GPU it is the peak of what tensors took; on a CPU all that the process had in RAM at its peak, by the kernel's own
mark (Linux). `growth` is the same ratio without what a process holds before there is a model.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.harness import begin_peak, status_bytes, train_by_fit
from llm.config.compose import composed
from llm.config.training import ModelConfig, OptimizerConfig, Precision
from llm.data.order import MicroBatch
from llm.model import build
from llm.run.console import output_console
from llm.tokenizer import Special

ROOT = Path(__file__).parents[1]
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=1, tokens=())
STEPS, MICRO_BATCHES = 3, 2
PRESETS = ["gpt2_tiny", "llama_tiny", "gpt2_10m", "llama_10m", "gpt2_30m", "llama_30m"]


class RandomRows:
    """Rows that hold one document each."""

    raw_bytes, lost_bytes = 1000, 0

    def __init__(self, number: int, *, length: int, vocab_size: int) -> None:
        self._tokens = np.random.default_rng(0).integers(2, vocab_size, size=(number, length + 1))
        self.num_labels = np.full(number, length)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitems__(self, micro_batch: MicroBatch) -> dict[str, Any]:
        tokens = torch.from_numpy(self._tokens[micro_batch.rows])
        positions = torch.arange(tokens.shape[1] - 1).expand(len(tokens), -1)
        return {
            "input_ids": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "position_ids": positions,
            "num_labels": micro_batch.num_labels,
        }

    def describe(self, rows: Any) -> list[str]:
        return [f"row {row}" for row in rows]


def model_config(name: str) -> ModelConfig:
    return ModelConfig(**composed([f"model={name}"])["model"])


def expected(case: dict[str, Any]) -> dict[str, int]:
    """The parts, their total, and what of it is there before the model is built."""
    from llm.dry_run.memory import rehearse

    before = 0 if torch.cuda.is_available() else begin_peak()
    with torch.device("meta"):
        model = build(model_config(case["model"]), vocab_size=case["vocab_size"], special=SPECIAL)
    memory = rehearse(
        model,
        OptimizerConfig(),
        precision=Precision[case["precision"]],
        rows=case["micro_rows"],
        sequence_length=case["length"],
        accumulation=MICRO_BATCHES,
    )
    memory = memory if torch.cuda.is_available() else memory.in_a_process(before)
    return asdict(memory) | {"total": memory.total, "before": before}


def measured(case: dict[str, Any]) -> dict[str, int]:
    """The peak of STEPS optimizer steps by the trainer itself, validations and checkpoints included."""
    on_gpu = torch.cuda.is_available()
    before = 0 if on_gpu else begin_peak()
    rows, length = case["micro_rows"], case["length"]
    model = build(model_config(case["model"]), vocab_size=case["vocab_size"], special=SPECIAL)
    train_by_fit(
        model,
        (
            RandomRows(STEPS * MICRO_BATCHES * rows, length=length, vocab_size=case["vocab_size"]),
            RandomRows(rows, length=length, vocab_size=case["vocab_size"]),
        ),
        sequence_length=length,
        batch_size=MICRO_BATCHES * rows,
        steps=STEPS,
        optimizer=OptimizerConfig(warmup_steps=1),
        precision=Precision[case["precision"]],
        micro_batch_size=rows,
    )
    return {"total": torch.cuda.max_memory_allocated() if on_gpu else status_bytes("VmHWM"), "before": before}


def in_a_process(what: str, case: dict[str, Any]) -> dict[str, int]:
    code = f"import json; from benchmarks.memory import {what}; print('result', json.dumps({what}({case!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("result ")]
    if done.returncode or not lines:
        raise SystemExit(f"{what} of {case} failed:\n{done.stderr}")
    result: dict[str, int] = json.loads(lines[-1].removeprefix("result "))
    return result


def compare(case: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """(what is expected by its parts, what was measured), in bytes."""
    return in_a_process("expected", case), in_a_process("measured", case)


def growth(sizes: dict[str, int]) -> int:
    return sizes["total"] - sizes["before"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="+", default=PRESETS)
    parser.add_argument("--micro-rows", type=int, default=4, help="rows of a forward pass")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--precision", choices=[p.name for p in Precision], default="fp32")
    arguments = parser.parse_args()
    parts = ("weights", "gradients", "optimizer", "logits", "activations", "heap", "libraries", "total")
    table = Table(title="memory of training in MB")
    for column in ("model", *parts, "measured", "ratio", "growth"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in arguments.model:
        case = {key: value for key, value in vars(arguments).items() if key != "model"} | {"model": model}
        memory, peak = compare(case)
        cells = [f"{memory[part] / 1e6:.0f}" for part in parts]
        ratios = memory["total"] / peak["total"], growth(memory) / growth(peak)
        table.add_row(model, *cells, f"{peak['total'] / 1e6:.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    output_console().print(table)


if __name__ == "__main__":
    main()
