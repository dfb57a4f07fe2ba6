"""The memory that a dry run expects of training, beside what training took, each in a process of its own.

    python -m benchmarks.memory                      # the presets up to 30 million parameters
    python -m benchmarks.memory --model gpt2_125m --micro-rows 8 --precision bf16

On a GPU it is the peak of what tensors took; on a CPU all that the process had in RAM at its peak, by the kernel's own
mark (Linux). `growth` is the same ratio without what a process holds before there is a model.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.harness import begin_peak, build_model, in_a_process, options, print_table, status_bytes, train_by_fit
from llm.config.training import OptimizerConfig, Precision
from llm.data.order import MicroBatch

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


def expected(case: dict[str, Any]) -> dict[str, int]:
    """The parts, their total, and what of it is there before the model is built."""
    from llm.dry_run.memory import rehearse

    before = 0 if torch.cuda.is_available() else begin_peak()
    with torch.device("meta"):
        model = build_model(case["model"], case["vocab_size"])
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
    model = build_model(case["model"], case["vocab_size"])
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


def compare(case: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """(what is expected by its parts, what was measured), in bytes."""
    return in_a_process(expected, case), in_a_process(measured, case)


def growth(sizes: dict[str, int]) -> int:
    return sizes["total"] - sizes["before"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", nargs="+", default=PRESETS)
    parser.add_argument("--micro-rows", type=int, default=4, help="rows of a forward pass")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--precision", choices=[p.name for p in Precision], default="fp32")
    arguments = parser.parse_args()
    parts = ("weights", "gradients", "optimizer", "logits", "activations", "heap", "libraries", "total")
    rows = []
    for model in arguments.model:
        case = {key: value for key, value in vars(arguments).items() if key != "model"} | {"model": model}
        memory, peak = compare(case)
        cells = [f"{memory[part] / 1e6:.0f}" for part in parts]
        ratios = memory["total"] / peak["total"], growth(memory) / growth(peak)
        rows.append((model, *cells, f"{peak['total'] / 1e6:.0f}", *(f"{ratio:.2f}" for ratio in ratios)))
    print_table("memory of training in MB", ("model", *parts, "measured", "ratio", "growth"), rows)


if __name__ == "__main__":
    main()
