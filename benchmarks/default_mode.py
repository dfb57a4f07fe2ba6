"""The default of trainer=cpu against the default of Hugging Face's Trainer: speed, and the loss that each comes to.

python -m benchmarks.default_mode                      # Korean law: its tokenizer and shards are made if missing
python -m benchmarks.default_mode --steps 600 --rounds 7

First both are timed by turns in this process, at 6 layers of 384. Then both train the same model from the same weights
on the same rows in the same order, and the held-out loss of each is taken by the same code, in fp32.

The Trainer needs one more package: python -m pip install accelerate
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler

from benchmarks.contestants import OPTIMIZER, Clock, Mode, Shape, hugging_face, ours, printer
from benchmarks.harness import NEVER, asked_of_trainer, be_quiet, config_of, options, train_by_fit
from benchmarks.train_throughput import SMALL, TINY, timed
from llm.config.training import Accelerator, OptimizerConfig, Precision, TrainerConfig
from llm.data.order import EvaluationBatches, MicroBatch, TrainingBatches
from llm.data.rows import TokenRows
from llm.data.shards import read_manifest
from llm.run.devices import with_precision
from llm.trainer.validation import evaluate

FP32 = Mode(Precision.fp32, False)  # what TrainingArguments has on a CPU unless it is told otherwise
Trained = Callable[..., Any]  # of steps, shape, rows and seed: the model after them


def speeds(arguments: argparse.Namespace, mode: Mode) -> list[tuple[float, float]]:
    """(ours, the Trainer's) tokens a second, by round."""
    trains = ours(SMALL, mode), hugging_face(SMALL, FP32)
    measure = argparse.Namespace(warmup=3, steps=arguments.timed_steps, documents=1, cpu_time=arguments.cpu_time)
    return [tuple(timed(train, SMALL, measure)[0] for train in trains) for _ in range(arguments.rounds)]  # type: ignore[misc]


def rows_of(arguments: argparse.Namespace, shape: Shape) -> tuple[TokenRows, TokenRows]:
    """Training and held-out rows of the shards."""
    from llm.stage import run_stage

    made = run_stage(config_of("stage=shards", f"outputs={arguments.outputs}", *arguments.settings))
    folder = made.path / "shards"
    manifest = read_manifest(folder)
    train, held_out = (
        TokenRows({"": (folder, manifest)}, split, sequence_length=shape.sequence_length)
        for split in ("train", "held_out")
    )
    return train, held_out


class LawClock(Clock):
    """The training rows, in place of random tokens, as many to a document as they have."""

    def __init__(self, shape: Shape, rows: TokenRows) -> None:
        self._all, self.num_labels = rows, rows.num_labels
        super().__init__(shape, documents=2, rows=1)
        self.rows, self.num_labels = len(rows), rows.num_labels

    def take(self, rows: Any) -> dict[str, torch.Tensor]:
        batch = self._all.__getitems__(MicroBatch(rows=np.asarray(rows), num_labels=0, step=0))
        return {name: batch[name] for name in ("input_ids", "labels", "position_ids")}


def trained_by_us(steps: int, shape: Shape, precision: Precision, rows: Any, seed: int) -> Any:
    """The model after training by fit()."""
    model = shape.model(seed)
    train_by_fit(
        model,
        rows,
        sequence_length=shape.sequence_length,
        batch_size=shape.batch_size,
        steps=steps,
        optimizer=_optimizer(),
        precision=precision,
        seed=seed,
        on=torch.device("cpu"),
    )
    return model


def trained_by_trainer(steps: int, shape: Shape, precision: Precision, rows: Any, seed: int) -> Any:
    """The model after training by the Trainer, on the rows of fit() in their order, by the schedule of fit()."""
    from transformers import Trainer, TrainingArguments

    from llm import optimizer as optimizers

    model, (train, _) = shape.stock_model(seed), rows
    model.config.use_cache = False
    order = TrainingBatches(
        train.num_labels,
        batch_size=shape.batch_size,
        micro_batch_size=shape.batch_size,
        num_steps=steps,
        seed=seed,
    )
    clock = LawClock(shape, train)

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    places = [int(row) for (micro_batch,) in order for row in micro_batch.rows]

    def collate(taken: list[int]) -> dict[str, torch.Tensor]:
        batch = clock.take(taken)
        return batch | {"shift_labels": batch["labels"]}

    with tempfile.TemporaryDirectory() as scratch:
        asked = asked_of_trainer(scratch, steps=steps, batch_size=shape.batch_size, precision=precision)
        arguments = TrainingArguments(**asked, remove_unused_columns=False, logging_steps=NEVER)
        built = optimizers.build(model, _optimizer(), max_steps=steps)
        trainer = InOrder(model=model, args=arguments, train_dataset=places, data_collator=collate, optimizers=built)
        trainer.remove_callback(printer())
        trainer.train()
    return model


def _optimizer() -> OptimizerConfig:
    return replace(OPTIMIZER, learning_rate=1e-3, warmup_steps=20)


def held_out_loss(model: Any, held_out: TokenRows) -> float:
    batches = EvaluationBatches(held_out.num_labels, batch_size=4)
    loader = torch.utils.data.DataLoader(held_out, batch_sampler=batches, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    return evaluate(model, loader, held_out, device=torch.device("cpu")).loss


def compare_losses(arguments: argparse.Namespace, shape: Shape, default: Precision) -> None:
    """Print the held-out loss that each comes to, by seed, and how far it is from the Trainer's default."""
    rows = rows_of(arguments, shape)
    contest: dict[str, Trained] = {
        "HF Trainer, default": partial(trained_by_trainer, precision=Precision.fp32),
        "ours, default": partial(trained_by_us, precision=default),
    }
    if arguments.apart:
        contest |= {
            "ours, fp32": partial(trained_by_us, precision=Precision.fp32),
            "HF Trainer, bf16": partial(trained_by_trainer, precision=Precision.bf16),
        }
    print(f"{shape.name}: val/loss in fp32 after {arguments.steps} steps, seeds 0 to {arguments.seeds - 1}")
    losses: dict[str, list[float]] = {}
    for name, trained in contest.items():
        losses[name] = [
            held_out_loss(trained(arguments.steps, shape, rows=rows, seed=seed), rows[1])
            for seed in range(arguments.seeds)
        ]
        differences = [
            mine / theirs - 1 for mine, theirs in zip(losses[name], next(iter(losses.values())), strict=True)
        ]
        said = ", ".join(f"{loss:.6f} ({off:+.3%})" for loss, off in zip(losses[name], differences, strict=True))
        print(f"{name:<20}{said}; mean {statistics.mean(differences):+.3%}", flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of the training whose loss is compared")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--timed-steps", type=int, default=6)
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine: seconds of CPU, with --threads 1")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--outputs", default="outputs", help="where tokenizer and shards are, or are made")
    parser.add_argument("--shape", choices=[SMALL.name, TINY.name], default=SMALL.name, help="whose loss is compared")
    parser.add_argument("--seeds", type=int, default=1, help="of weights and order, for the losses")
    parser.add_argument("--apart", action="store_true", help="ours in fp32 and the Trainer in bf16 too")
    parser.add_argument("--only", choices=["speed", "loss"])
    parser.add_argument("settings", nargs="*", help="of the shards, as for train.py")
    arguments = parser.parse_intermixed_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    be_quiet()
    precision = with_precision(TrainerConfig(accelerator=Accelerator.cpu)).precision
    print(f"ours, default: {precision.name} eager here; HF Trainer, default: fp32 eager")
    if arguments.only != "loss":
        rounds = speeds(arguments, Mode(precision, False))
        ratios = [mine / theirs for mine, theirs in rounds]
        mine, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
        print(
            f"{SMALL.name}: {mine:,.0f} against {theirs:,.0f} tokens/s, {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f} in {len(rounds)} rounds)"
        )
    if arguments.only != "speed":
        shape = {shape.name: shape for shape in (SMALL, TINY)}[arguments.shape]
        compare_losses(arguments, shape, precision)


if __name__ == "__main__":
    main()
