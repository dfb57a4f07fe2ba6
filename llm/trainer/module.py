"""A step, from its batch to what follows it: loss, backward, clip, step; then record, validate, save."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import nn

from llm import optimizer
from llm.config.training import OptimizerConfig, TrainerConfig
from llm.data.rows import Batch
from llm.model import compiled, next_token_loss
from llm.trainer.checkpoint import Saving
from llm.trainer.recording import Recorder, is_due
from llm.trainer.rows import RunRows
from llm.trainer.strategy import autocast, share_out, whole
from llm.trainer.validation import Validation


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

    def __init__(self, config: TrainerConfig, recorder: Recorder, validation: Validation, saving: Saving) -> None:
        self._config, self._recorder, self._validation, self._saving = config, recorder, validation, saving

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recorder.start(trainer)
        self._saving.start(trainer)
        if self._validation.best_step is None:  # else a resumed run has it behind it
            self._validation.run(trainer, pl_module)
        self._recorder.end_step()

    def on_train_batch_start(self, *_: Any) -> None:
        self._recorder.begin_step()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recorder.record(trainer, num_labels=batch[0]["num_labels"], **outputs)
        if is_due(trainer, self._config.validate_every_steps):
            self._validation.run(trainer, pl_module)
        best_step = self._validation.best_step
        is_to_save, is_to_stop = self._saving.asked(trainer, best_step=best_step)
        if is_to_save:
            self._recorder.sum_loss(trainer)
            with self._recorder.pause():
                self._saving.save(trainer, best_step=best_step)
        if is_to_stop:
            self._saving.end(trainer)
        self._recorder.end_step()

    def state_dict(self) -> dict[str, Any]:
        return self._recorder.state() | self._validation.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recorder.load(state_dict)
        self._validation.load(state_dict)


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
