"""What saving a checkpoint costs, as a share of the training between two: ours, and Lightning's own writer beside it.

    python -m benchmarks.checkpoint_cost            # the small model, on this machine
    python -m benchmarks.checkpoint_cost --model gpt2_tiny

Ours writes safetensors and JSON, syncs them, hashes them, and reads them back before an older one goes; Lightning's
pickles, without a sync. Each writes the same state in turn, on the disk of --folder. The cost is that of one save for
each trainer.checkpoint_every_steps of steps.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from benchmarks.harness import build_model, options, print_table
from llm import optimizer
from llm.config.training import OptimizerConfig, TrainerConfig
from llm.model import next_token_nats
from llm.trainer.checkpoint import CheckpointFolders, find_fault

VOCAB_SIZE, ROWS, LENGTH = 8192, 32, 256  # the defaults of conf/: a step has 8,192 tokens
MICRO_ROWS = 4  # rows of a forward pass on a CPU


def step_seconds(model: Any, adamw: torch.optim.Optimizer, *, micro_batches: int) -> float:
    """How long an optimizer step takes in the plain loop that is the least it can be: its micro-batches are alike."""
    found = []
    for _ in range(micro_batches + 1):
        began = time.perf_counter()
        tokens = torch.randint(2, VOCAB_SIZE, (MICRO_ROWS, LENGTH + 1))
        positions = torch.arange(LENGTH).expand(MICRO_ROWS, LENGTH)
        batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "position_ids": positions}
        (next_token_nats(model, batch) / (ROWS * LENGTH)).backward()
        found.append(time.perf_counter() - began)
    began = time.perf_counter()
    adamw.step()
    adamw.zero_grad()
    return statistics.median(found[1:]) * (ROWS // MICRO_ROWS) + time.perf_counter() - began


def save_ours(state: dict[str, Any], path: Path) -> None:
    CheckpointFolders().save_checkpoint(state, path)
    assert find_fault(path) is None


def save_lightnings(state: dict[str, Any], path: Path) -> None:
    TorchCheckpointIO().save_checkpoint(state, path)


def timed(save: Callable[[dict[str, Any], Path], None], state: dict[str, Any], path: Path) -> float:
    began = time.perf_counter()
    save(state, path)
    return time.perf_counter() - began


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="gpt2_125m", help="a choice of conf/model")
    parser.add_argument("--micro-batches", type=int, default=3, help="that are timed, after one that is not")
    parser.add_argument("--saves", type=int, default=3, help="saves of each kind, by turns")
    parser.add_argument("--folder", type=Path, help="where to write; else a temporary folder")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(arguments.model, VOCAB_SIZE).train()
    adamw, _ = optimizer.build(model, OptimizerConfig(), max_steps=1000)
    seconds = step_seconds(model, adamw, micro_batches=arguments.micro_batches)
    state = {"state_dict": model.state_dict(), "optimizer_states": [adamw.state_dict()], "global_step": 1}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        times: dict[str, list[float]] = {"ours": [], "Lightning": []}
        for number in range(arguments.saves):
            times["ours"].append(timed(save_ours, state, Path(folder, f"ours-{number % 2}")))
            times["Lightning"].append(timed(save_lightnings, state, Path(folder, f"lightning-{number % 2}.ckpt")))
        size = sum(path.stat().st_size for path in Path(folder, "ours-0").iterdir()) / 1e6
    every = TrainerConfig().checkpoint_every_steps
    columns = ("writer", "seconds a save (median)", "seconds a step", f"share at one in {every} steps", "ratio")
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        (name, f"{each:.2f}", f"{seconds:.2f}", f"{each / (every * seconds):.2%}", f"{each / medians['Lightning']:.2f}")
        for name, each in medians.items()
    ]
    print_table(f"{arguments.model}: a checkpoint of {size:,.0f} MB; a step of {ROWS * LENGTH:,} tokens", columns, rows)


if __name__ == "__main__":
    main()
