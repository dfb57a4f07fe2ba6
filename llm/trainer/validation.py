"""The held-out rows -> loss per token and bits per byte of raw text, of each part of a mixture too, and samples."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from llm.config.training import Precision
from llm.data.rows import Part, Rows, TokenRows
from llm.errors import DivergedError
from llm.model import next_token_nats
from llm.run.console import log
from llm.trainer.recording import DIVERGED_HINT, Recorder
from llm.trainer.rows import RunRows
from llm.trainer.strategy import autocast

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


@contextmanager
def not_training(model: nn.Module) -> Iterator[None]:
    """Have a model be without its dropout while the block runs."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


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
    mixed = rows if isinstance(rows, TokenRows) and rows.parts else None
    nats = torch.zeros(len(mixed.parts) if mixed else 1, dtype=torch.float64, device="cpu")
    with not_training(model):
        for batch, micro_batch in zip(loader, loader.batch_sampler or (), strict=True):
            moved = {k: value.to(device) if isinstance(value, torch.Tensor) else value for k, value in batch.items()}
            rows_here: Any = micro_batch.rows  # type: ignore[attr-defined]  # torch's type: a list
            part = mixed.part_of(rows_here[0]) if mixed else 0
            nats[part] += next_token_nats(model, moved).double().cpu()
    sums = add_up(nats).tolist()
    whole = _evaluation(math.fsum(sums), rows)
    if mixed is None:
        return whole
    parts = zip(mixed.parts.items(), sums, strict=True)
    return replace(whole, parts={name: _evaluation(total, part) for (name, part), total in parts})


def _evaluation(nats: float, rows: Rows | Part) -> Evaluation:
    return Evaluation(
        loss=nats / int(rows.num_labels.sum()),
        bits_per_byte=bits_per_byte(nats, raw_bytes=rows.raw_bytes, lost_bytes=rows.lost_bytes),
    )


class Validation:
    """Held-out loss, samples, and which step was the best; its record is written by the recorder."""

    def __init__(
        self,
        rows: RunRows,
        *,
        recorder: Recorder,
        precision: Precision,
        sample: Callable[[], list[dict[str, str]]],
        whole_model: Callable[[pl.LightningModule], AbstractContextManager[nn.Module]],
    ) -> None:
        self._rows, self._recorder = rows, recorder
        self._precision, self._sample = precision, sample
        self._whole_model = whole_model  # which one rank can call without the others
        self.best_step: int | None = None  # of the lowest loss
        self._best_loss = math.inf

    def run(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure, sample and write.

        Raises:
            DivergedError: the loss is not finite.
        """

        def add_up(nats: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(trainer.strategy.reduce(nats.to(module.device), reduce_op="sum"))

        def measure(model: nn.Module) -> Evaluation:
            loader, held_out = self._rows.held_out_loader, self._rows.held_out
            return evaluate(model, loader, held_out, device=module.device, add_up=add_up)

        with self._recorder.pause(), self._whole_model(module) as model:
            with autocast(self._precision, module.device):
                result = self._rows.fit(lambda: measure(model))
            if not math.isfinite(result.loss):
                raise DivergedError(f"val/loss is {result.loss} at step {trainer.global_step}. {DIVERGED_HINT}")
            if result.loss < self._best_loss:
                self._best_loss, self.best_step = result.loss, trainer.global_step
            with not_training(model):  # nor without a cache, which blocks that run again have none of
                samples = self._sample() if trainer.is_global_zero else ()
            self._recorder.write(trainer, result.metrics(), samples=samples)
        numbers = (trainer.global_step, trainer.max_steps, result.loss, result.bits_per_byte)
        log.info("step %d of %d: val/loss %.3f, val/bits_per_byte %.3f", *numbers)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best_step": self.best_step, "best_loss": None if self.best_step is None else self._best_loss}

    def load(self, state: dict[str, Any]) -> None:
        self.best_step = state["best_step"]
        self._best_loss = math.inf if self.best_step is None else state["best_loss"]
