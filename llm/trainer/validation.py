"""The held-out rows -> loss per token and bits per byte of raw text, of each part of a mixture too, and samples."""

import math
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from llm.data import MixedRows, Rows
from llm.errors import DivergedError
from llm.model import next_token_nats
from llm.run import log
from llm.trainer.journal import Journal
from llm.trainer.memory import is_out_of_memory, release
from llm.trainer.meter import DIVERGED_HINT, Meter, ends_step, is_due

NATS_PER_LOST_BYTE = math.log(256)  # a byte that the tokenizer cannot say costs what one costs without any model


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of held-out text."""

    loss: float  # nats per label
    bits_per_byte: float  # of raw UTF-8 text, lost bytes charged
    parts: dict[str, "Evaluation"] = field(default_factory=dict)  # of a mixture, by name

    def metrics(self) -> dict[str, float]:
        """By the names of metrics.jsonl."""
        named = {"val/loss": self.loss, "val/bits_per_byte": self.bits_per_byte}
        return named | {
            f"{key}/{name}": value for name, part in self.parts.items() for key, value in part.metrics().items()
        }


def bits_per_byte(nats: float, *, raw_bytes: int, lost_bytes: int) -> float:
    """(nats of all labels + the lost bytes at 8 bits each) / ln 2 / bytes of the raw text."""
    return (nats + lost_bytes * NATS_PER_LOST_BYTE) / math.log(2) / raw_bytes


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader[Any],
    rows: Rows,
    *,
    device: torch.device,
    add_up: Callable[[torch.Tensor], torch.Tensor] = lambda nats: nats,
) -> Evaluation:
    """The model on every held-out row; `add_up` sums numbers over the ranks that share the rows."""
    mixed = rows if isinstance(rows, MixedRows) else None
    was_training = model.training
    model.eval()
    nats = torch.zeros(len(mixed.parts) if mixed else 1, dtype=torch.float64, device="cpu")
    try:
        for batch, micro_batch in zip(loader, loader.batch_sampler or (), strict=True):
            moved = {k: value.to(device) if isinstance(value, torch.Tensor) else value for k, value in batch.items()}
            rows_here: Any = micro_batch.rows  # type: ignore[attr-defined]  # torch's type: a list
            part = mixed.part_of(rows_here[0]) if mixed else 0
            nats[part] += next_token_nats(model, moved).double().cpu()
    finally:
        model.train(was_training)
    sums = add_up(nats).tolist()
    whole = _evaluation(math.fsum(sums), rows)
    if mixed is None:
        return whole
    parts = zip(mixed.parts.items(), sums, strict=True)
    return replace(whole, parts={name: _evaluation(total, part) for (name, part), total in parts})


def _evaluation(nats: float, rows: Rows) -> Evaluation:
    return Evaluation(
        loss=nats / int(rows.num_labels.sum()),
        bits_per_byte=bits_per_byte(nats, raw_bytes=rows.raw_bytes, lost_bytes=rows.lost_bytes),
    )


class Validation(pl.Callback):
    """Before the first step, every so many steps, and at the last."""

    def __init__(
        self,
        loader: DataLoader[Any],
        rows: Rows,
        *,
        journal: Journal,
        meter: Meter,
        every_steps: int,
        sample: Callable[[], list[dict[str, str]]],
        whole_model: Callable[[pl.LightningModule], AbstractContextManager[nn.Module]],
    ) -> None:
        self._loader, self._rows = loader, rows
        self._journal, self._meter, self._every_steps, self._sample = journal, meter, every_steps, sample
        self._whole_model = whole_model  # which one rank can call without the others
        self.best_step: int | None = None  # of the lowest loss
        self._best_loss = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.best_step is None:  # not yet done: a step that is done again has it behind it
            self._validate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx) and is_due(trainer, self._every_steps):
            self._validate(trainer, pl_module)

    def _validate(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        def add_up(nats: torch.Tensor) -> torch.Tensor:
            reduced = trainer.strategy.reduce(nats.to(module.device), reduce_op="sum")
            return torch.as_tensor(reduced)

        with self._meter.pause(), self._whole_model(module) as model:
            with trainer.precision_plugin.forward_context():
                result = self._evaluate(model, device=module.device, add_up=add_up)
            if not math.isfinite(result.loss):
                raise DivergedError(f"val/loss is {result.loss} at step {trainer.global_step}. {DIVERGED_HINT}")
            if result.loss < self._best_loss:
                self._best_loss, self.best_step = result.loss, trainer.global_step
            place = self._meter.place(trainer)
            if trainer.is_global_zero:
                self._journal.write_samples([{"step": place["step"], **sample} for sample in self._sample()])
            self._journal.write(place | result.metrics())
        log.info(
            "step %d of %d: val/loss %.3f, val/bits_per_byte %.3f",
            trainer.global_step,
            trainer.max_steps,
            result.loss,
            result.bits_per_byte,
        )

    def _evaluate(
        self, model: nn.Module, *, device: torch.device, add_up: Callable[[torch.Tensor], torch.Tensor]
    ) -> Evaluation:
        """`evaluate`; where memory runs out, again with half as many rows at once, which each rank does by itself."""
        batches: Any = self._loader.batch_sampler
        while True:
            try:
                return evaluate(model, self._loader, self._rows, device=device, add_up=add_up)
            except Exception as error:
                if not is_out_of_memory(error) or batches.batch_size == 1:
                    raise
                traceback.clear_frames(error.__traceback__)  # they hold the activations
            log.warning(
                "memory ran out in a validation with %d rows at once: from now on %d, whose loss stays what it was",
                batches.batch_size,
                batches.batch_size // 2,
            )
            batches.batch_size //= 2
            release(device)

    def state_dict(self) -> dict[str, Any]:
        return {"best_step": self.best_step, "best_loss": None if self.best_step is None else self._best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_step = state_dict["best_step"]
        self._best_loss = math.inf if self.best_step is None else state_dict["best_loss"]
