"""Checkpoints at step boundaries, and an orderly stop: a signal sets a flag, the step ends, the state is saved."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from llm.config import TrainerConfig
from llm.errors import DamagedError, StoppedError
from llm.run import forget_earlier
from llm.trainer.checkpoint import find_fault, folder_of, keep
from llm.trainer.meter import Meter, ends_step, is_due
from llm.trainer.module import NextTokenModule
from llm.trainer.validation import Validation


class StopFlag:
    """Set by the first signal that comes while steps are under way."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def raise_flag(self, name: str) -> None:
        self.signal_name = name


class Saving(pl.Callback):
    """Saves every so many steps or minutes, at the last step, at the best validation, and when a signal asks for it."""

    def __init__(
        self,
        checkpoints: Path,
        config: TrainerConfig,
        *,
        meter: Meter,
        validation: Validation,
        stop: StopFlag,
        kept_step: int | None = None,  # saved whatever the others are, and kept
    ) -> None:
        self._checkpoints, self._config, self._kept_step = checkpoints, config, kept_step
        self._meter, self._validation, self._stop = meter, validation, stop
        self._saved_at = time.monotonic()
        self._hosts: Any = None  # the ranks, to be asked without waiting for their devices

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = time.monotonic()
        if trainer.world_size > 1:
            self._hosts = torch.distributed.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        is_best = self._config.keep_best and self._validation.best_step == trainer.global_step
        stop, is_late = self._ask_ranks(trainer)
        is_kept = trainer.global_step == self._kept_step
        if stop or is_late or is_best or is_kept or is_due(trainer, self._config.checkpoint_every_steps):
            assert isinstance(pl_module, NextTokenModule)
            self._meter.settle(trainer, pl_module)
            with self._meter.pause():
                self._save(trainer)
        if stop:
            raise StoppedError(
                f"stopped by {self._stop.signal_name or 'another rank'} after step {trainer.global_step}, which is "
                "saved. Start the same command again to go on."
            )

    def save_as_it_is(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save where a step was begun but changed nothing, unless the end of the one before was saved."""
        if not folder_of(self._checkpoints, trainer.global_step).exists():
            assert isinstance(module, NextTokenModule)
            self._meter.settle(trainer, module)
            self._save(trainer)

    def _ask_ranks(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """(whether any rank was told to stop, whether a save by the clock is due), the same on all of them."""
        minutes = self._config.checkpoint_every_minutes
        is_late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        urgency = 2 if self._stop.signal_name else int(is_late)
        if trainer.world_size > 1:
            everywhere = torch.tensor(urgency)
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MAX, group=self._hosts)
            urgency = int(everywhere)
        return urgency == 2, urgency >= 1

    def _save(self, trainer: pl.Trainer) -> None:
        """Older ones go only when the new one is on the disk as it should be."""
        path = folder_of(self._checkpoints, trainer.global_step)
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        if not trainer.is_global_zero:
            return
        if fault := find_fault(path):
            raise DamagedError(f"{path} is not what was written ({fault}). Check the disk; older checkpoints are kept.")
        forget_earlier(self._checkpoints.parent)
        best = self._validation.best_step if self._config.keep_best else None
        keep(self._checkpoints, newest=self._config.keep_checkpoints, steps=(best, self._kept_step))
