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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import SequentialSampler

from benchmarks.contestants import OPTIMIZER, Clock, Mode, Shape, hugging_face, ours
from benchmarks.train_throughput import SMALL, TINY, _be_quiet, _timed
from llm.config import Accelerator, OptimizerConfig, Precision, TrainerConfig, from_hydra
from llm.data import EvaluationBatches, MicroBatch, TokenRows, TrainingBatches, read_manifest
from llm.logger import RunLogger
from llm.run import with_precision
from llm.trainer import Fit, evaluate, fit

ROOT = Path(__file__).parents[1]
FP32 = Mode(Precision.fp32, False)  # what TrainingArguments has on a CPU unless it is told otherwise


def speeds(arguments: argparse.Namespace, mode: Mode) -> list[tuple[float, float]]:
    """(ours, the Trainer's) tokens a second, by round."""
    trains = ours(SMALL, mode), hugging_face(SMALL, FP32)
    measure = argparse.Namespace(warmup=3, steps=arguments.timed_steps, documents=1, cpu_time=arguments.cpu_time)
    return [tuple(_timed(train, SMALL, measure)[0] for train in trains) for _ in range(arguments.rounds)]  # type: ignore[misc]


def rows_of(arguments: argparse.Namespace, shape: Shape) -> tuple[TokenRows, TokenRows]:
    """Training and held-out rows of the shards."""
    from llm.stage import shards

    overrides = ["stage=shards", f"outputs={arguments.outputs}", *arguments.settings]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = shards.run(from_hydra(compose("config", overrides=overrides)))
    folder = made.path / "shards"
    manifest = read_manifest(folder)
    train, held_out = (
        TokenRows(folder, manifest, split, sequence_length=shape.sequence_length)
        for split in (manifest.train, manifest.held_out)
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


def loss_of_ours(arguments: argparse.Namespace, shape: Shape, precision: Precision, rows: Any) -> Any:
    """The model after training by fit()."""
    model, (train, held_out) = shape.model(), rows
    with tempfile.TemporaryDirectory() as scratch:
        fit(
            Fit(
                model=model,
                model_config=model.config,
                train_rows=train,
                held_out_rows=held_out,
                data=_data(shape),
                optimizer=_optimizer(),
                trainer=TrainerConfig(
                    max_steps=arguments.steps,
                    precision=precision,
                    accelerator=Accelerator.cpu,
                    micro_batch_size=shape.batch_size,
                    validate_every_steps=10**9,
                    checkpoint_every_steps=10**9,
                ),
                seed=0,
                folder=Path(scratch),
                logger=RunLogger(None),
                sample=list,
                label="ours",
            )
        )
    return model


def loss_of_theirs(arguments: argparse.Namespace, shape: Shape, rows: Any) -> Any:
    """The model after training by the Trainer, on the rows of fit() in their order, by the schedule of fit()."""
    from transformers import Trainer, TrainingArguments
    from transformers.utils.logging import set_verbosity_error

    from llm import optimizer as optimizers

    set_verbosity_error()
    model, (train, _) = shape.model(), rows
    model.config.use_cache = False
    order = TrainingBatches(
        train.num_labels, batch_size=shape.batch_size, micro_batch_size=shape.batch_size,
        num_steps=arguments.steps, seed=0,
    )  # fmt: skip
    clock = LawClock(shape, train)

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    places = [int(row) for micro_batch in order for row in micro_batch.rows]

    def collate(taken: list[int]) -> dict[str, torch.Tensor]:
        batch = clock.take(taken)
        return {
            "input_ids": batch["input_ids"],
            "position_ids": batch["position_ids"],
            "labels": batch["labels"],
            "shift_labels": batch["labels"],
        }

    with tempfile.TemporaryDirectory() as scratch:
        asked = TrainingArguments(
            output_dir=scratch, per_device_train_batch_size=shape.batch_size, max_steps=arguments.steps, use_cpu=True,
            save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False, logging_steps=10**9,
        )  # fmt: skip
        built = optimizers.build(model, _optimizer(), max_steps=arguments.steps)
        InOrder(model=model, args=asked, train_dataset=places, data_collator=collate, optimizers=built).train()
    return model


def _optimizer() -> OptimizerConfig:
    return replace(OPTIMIZER, learning_rate=1e-3, warmup_steps=20)


def _data(shape: Shape) -> Any:
    from llm.config import DataConfig, DataKind

    return DataConfig(
        name="law", kind=DataKind.text, path="law", sequence_length=shape.sequence_length, batch_size=shape.batch_size
    )


def held_out_loss(model: Any, held_out: TokenRows) -> float:
    batches = EvaluationBatches(held_out.num_labels, batch_size=4)
    loader = torch.utils.data.DataLoader(held_out, batch_sampler=batches, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    return evaluate(model, loader, held_out, device=torch.device("cpu")).loss


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default_mode", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of the training whose loss is compared")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--timed-steps", type=int, default=6)
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine: seconds of CPU, with --threads 1")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--outputs", default="outputs", help="where tokenizer and shards are, or are made")
    parser.add_argument("--shape", choices=[SMALL.name, TINY.name], default=SMALL.name, help="whose loss is compared")
    parser.add_argument("--only", choices=["speed", "loss"])
    parser.add_argument("settings", nargs="*", help="of the shards, as for train.py")
    arguments = parser.parse_intermixed_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    _be_quiet()
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
        rows = rows_of(arguments, shape)
        trained = loss_of_ours(arguments, shape, precision, rows), loss_of_theirs(arguments, shape, rows)
        losses = [held_out_loss(model, rows[1]) for model in trained]
        difference = losses[0] / losses[1] - 1
        print(
            f"{shape.name}: val/loss after {arguments.steps} steps: ours {losses[0]:.4f}, HF Trainer {losses[1]:.4f} "
            f"({difference:+.2%})"
        )


if __name__ == "__main__":
    main()
