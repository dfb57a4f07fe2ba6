"""A step, from its batch to what follows it: loss, backward, clip, step; then record, validate, save."""

import math
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import nn

from llm import optimizer
from llm.config.training import OptimizerConfig, TrainerConfig
from llm.data.rows import Batch
from llm.errors import DamagedError, DivergedError, StoppedError
from llm.model import compiled, next_token_loss
from llm.run.console import log
from llm.run.owner import forget_earlier
from llm.trainer.checkpoint import find_fault, folder_of, keep
from llm.trainer.recording import DIVERGED_HINT, Recorder, is_due
from llm.trainer.rows import RunRows
from llm.trainer.strategy import autocast, share_out, whole
from llm.trainer.validation import Evaluation, evaluate, not_training


class NextTokenModule(pl.LightningModule):
    """Trains the parameters of `model` that require gradients; pretraining and LoRA differ in the model and the rows.

    A batch is a whole step: the micro-batches of this rank. So steps are what Lightning counts, however they are cut.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        trainer: TrainerConfig,
        *,
        seed: int,
        rows: RunRows,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what is trained; a frozen base comes from its own folder
        self.model = model
        _ask_nothing_of_the_device(model)
        # not the model itself: validation and samples call it in shapes of their own, which need no graphs
        self._passes = compiled() if trainer.compile else None
        self._config, self._max_steps, self._precision = config, trainer.max_steps, trainer.precision
        self._seed, self._rows = seed, rows
        self._trained: list[nn.Parameter] = []  # kept, for a walk through the modules at each step takes its time

    def configure_model(self) -> None:
        """Share the model out where the strategy has the devices do so."""
        if self._device_mesh is not None:
            share_out(self.model, self._device_mesh["data_parallel"])

    def configure_optimizers(self) -> dict[str, Any]:
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        made, schedule = optimizer.build(self.model, self._config, max_steps=self._max_steps)
        return {"optimizer": made, "lr_scheduler": schedule}

    def training_step(self, batch: list[Batch], step: int) -> dict[str, Any]:
        """(`nats` of this rank, `gradient_norm`): one that is not finite says that the step was skipped."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        nats = self._rows.fit(lambda: self._forward_and_backward(batch, step))
        norm = clip_and_step(optimizer, self._trained, max_norm=self._config.gradient_clip_norm)
        optimizer.zero_grad()
        schedule.step()
        return {"nats": nats, "gradient_norm": norm}

    def _forward_and_backward(self, batch: list[Batch], step: int) -> torch.Tensor:
        """The gradients of the step's mean loss over labels: each weighs the same, on any micro-batch and rank.

        A loss that is not finite gives gradients that are not, on every rank, whatever the model's own would be.
        """
        self.optimizers().zero_grad()  # what is there after memory ran out
        batch = self.trainer.strategy.batch_to_device(self._rows.cut(batch, step), self.device)
        nats = torch.zeros((), device=self.device)
        for number, micro_batch in enumerate(batch):
            seed_dropout(self._seed, step * len(batch) + number, rank=self.global_rank, device=self.device)
            with autocast(self._precision, self.device):
                here, loss = next_token_loss(self.model, micro_batch, passes=self._passes)
            finite = torch.where(here.detach().isfinite(), 1.0, math.nan)
            ranks = self.trainer.world_size  # over which gradients are averaged, with the last micro-batch
            is_last, strategy = number + 1 == len(batch), self.trainer.strategy
            is_averaged = is_last or not isinstance(strategy, ParallelStrategy)
            with nullcontext() if is_averaged else strategy.block_backward_sync():
                self.manual_backward(loss * finite * (ranks / micro_batch["num_labels"]))
            nats = nats + here.detach()
        return nats

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained, and the buffers."""
        frozen = {
            name for name, parameter in self.named_parameters(remove_duplicate=False) if not parameter.requires_grad
        }
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}


class AfterStep(pl.Callback):
    """What follows a step, in this order: its record, a validation, a checkpoint, and the stop that was asked for."""

    def __init__(
        self,
        config: TrainerConfig,
        rows: RunRows,
        recorder: Recorder,
        *,
        checkpoints: Path,
        kept_step: int | None,  # saved whatever the others are, and kept
        sample: Callable[[], list[dict[str, str]]],
        whole_model: Callable[[pl.LightningModule], AbstractContextManager[nn.Module]],  # for a rank by itself
        stop: list[str],  # the signal that came, if one has
    ) -> None:
        self._config, self._rows, self._recorder = config, rows, recorder
        self._checkpoints, self._kept_step = checkpoints, kept_step
        self._sample, self._whole_model, self._stop = sample, whole_model, stop
        self._best_step: int | None = None  # of the lowest held-out loss
        self._best_loss = math.inf
        self._hosts: Any = None  # the ranks, to be asked without waiting for their devices

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recorder.start(trainer)
        self._saved_at = time.monotonic()
        if trainer.world_size > 1:
            self._hosts = torch.distributed.new_group(backend="gloo")
        if self._best_step is None:  # else a resumed run has it behind it
            self._validate(trainer, pl_module)
        self._recorder.end_step()

    def on_train_batch_start(self, *_: Any) -> None:
        self._recorder.begin_step()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recorder.record(trainer, num_labels=batch[0]["num_labels"], **outputs)
        if is_due(trainer, self._config.validate_every_steps):
            self._validate(trainer, pl_module)
        is_late, is_to_stop = self._asked(trainer)
        kept = {self._kept_step, self._best_step if self._config.keep_best else None}
        if is_late or trainer.global_step in kept or is_due(trainer, self._config.checkpoint_every_steps):
            self._recorder.sum_loss(trainer)
            with self._recorder.pause():
                self._save(trainer, kept)
        if is_to_stop:
            raise StoppedError(
                f"stopped by {self._stop[0] if self._stop else 'another rank'} after step {trainer.global_step}, which "
                "is saved. Start the same command again to go on."
            )
        self._recorder.end_step()

    def _validate(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure, sample and write.

        Raises:
            DivergedError: the loss is not finite.
        """

        def add_up(nats: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(trainer.strategy.reduce(nats.to(module.device), reduce_op="sum"))

        def measure() -> Evaluation:
            loader, held_out = self._rows.held_out_loader, self._rows.held_out
            return evaluate(model, loader, held_out, device=module.device, add_up=add_up)

        with self._recorder.pause(), self._whole_model(module) as model:
            with autocast(self._config.precision, module.device):
                result = self._rows.fit(measure)
            if not math.isfinite(result.loss):
                raise DivergedError(f"val/loss is {result.loss} at step {trainer.global_step}. {DIVERGED_HINT}")
            if result.loss < self._best_loss:
                self._best_loss, self._best_step = result.loss, trainer.global_step
            with not_training(model):  # nor without a cache, which blocks that run again have none of
                samples = self._sample() if trainer.is_global_zero else ()
            blocks = {"raw_bytes": result.block_bytes, "nats": result.block_nats} if result.block_bytes else None
            self._recorder.write(trainer, result.metrics(), samples=samples, blocks=blocks)
        numbers = (trainer.global_step, trainer.max_steps, result.loss, result.bits_per_byte)
        log.info("step %d of %d: val/loss %.3f, val/bits_per_byte %.3f", *numbers)

    def _asked(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """(whether a checkpoint is wanted by the clock or a signal, whether the run is to stop), alike on all ranks."""
        minutes = self._config.checkpoint_every_minutes
        is_late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        urgency = 2 if self._stop else int(is_late)
        if trainer.world_size > 1:
            everywhere = torch.tensor(urgency)
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MAX, group=self._hosts)
            urgency = int(everywhere)
        return urgency > 0, urgency == 2

    def _save(self, trainer: pl.Trainer, kept: Collection[int | None]) -> None:
        """Older checkpoints go only when the new one is on the disk as it should be."""
        path = folder_of(self._checkpoints, trainer.global_step)
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        if not trainer.is_global_zero:
            return
        if fault := find_fault(path):
            raise DamagedError(f"{path} is not what was written ({fault}). Check the disk; older checkpoints are kept.")
        forget_earlier(self._checkpoints.parent)
        keep(self._checkpoints, newest=self._config.keep_checkpoints, steps=kept)

    def state_dict(self) -> dict[str, Any]:
        best_loss = None if self._best_step is None else self._best_loss
        return self._recorder.state() | {"best_step": self._best_step, "best_loss": best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recorder.load(state_dict)
        self._best_step = state_dict["best_step"]
        self._best_loss = math.inf if self._best_step is None else state_dict["best_loss"]


def clip_and_step(optimizer: Any, parameters: list[nn.Parameter], *, max_norm: float) -> float:
    """The norm of the gradients before they are clipped; not finite: weights and state are what they were."""
    norm = float(whole(nn.utils.clip_grad_norm_(parameters, max_norm).detach()))
    if not math.isfinite(norm):
        optimizer.zero_grad()  # without gradients any optimizer of torch leaves weights and state alone
    optimizer.step()
    return norm


def seed_dropout(seed: int, micro_batch: int, *, rank: int, device: torch.device) -> None:
    """Have dropout be drawn from these alone: a resumed run draws what an uninterrupted one does.

    torch.manual_seed writes down its caller's stack for each kind of device that is not there, 0.7 ms at each step.
    """
    drawn = int(np.random.SeedSequence([seed, micro_batch, rank]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(drawn)
    if device.type == "cuda":
        torch.cuda.manual_seed(drawn)
    elif device.type != "cpu":
        torch.manual_seed(drawn)


def _ask_nothing_of_the_device(model: nn.Module) -> None:
    """Leave out a warning of transformers about padding, for which it reads input_ids from the device at each step."""
    for part in model.modules():
        if hasattr(part, "warn_if_padding_and_no_attention_mask"):
            part.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
