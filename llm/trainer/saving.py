"""Checkpoints between steps, room for them on the disk, and an orderly stop: the step ends, its state is saved."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from llm.config.training import TrainerConfig
from llm.errors import DamagedError, StoppedError, StorageError
from llm.run.earlier import forget_earlier
from llm.trainer.checkpoint import PREFIX, find_fault, folder_of, keep
from llm.trainer.recording import Recorder, is_due

STATES = 3  # of a parameter in a checkpoint: its value and AdamW's two moments


class StopFlag:
    """Set by the first signal that comes while steps are under way."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def set(self, name: str) -> None:
        self.signal_name = name


class Saving:
    """Saves every so many steps or minutes, at the last step, at the best validation, and when a signal asks for it."""

    def __init__(
        self,
        checkpoints: Path,
        config: TrainerConfig,
        *,
        recorder: Recorder,
        stop: StopFlag,
        kept_step: int | None = None,  # saved whatever the others are, and kept
    ) -> None:
        self._checkpoints, self._config, self._kept_step = checkpoints, config, kept_step
        self._recorder, self._stop = recorder, stop
        self._saved_at = time.monotonic()
        self._hosts: Any = None  # the ranks, to be asked without waiting for their devices

    def start(self, trainer: pl.Trainer) -> None:
        self._saved_at = time.monotonic()
        if trainer.world_size > 1:
            self._hosts = torch.distributed.new_group(backend="gloo")

    def save_if_due(self, trainer: pl.Trainer, *, best_step: int | None) -> None:
        """Save the step that has ended, where it is one to save.

        Raises:
            StoppedError: a signal came; the step is saved.
        """
        step, best_step = trainer.global_step, best_step if self._config.keep_best else None
        stops, is_late = self._ask_ranks(trainer)
        is_due_now = is_due(trainer, self._config.checkpoint_every_steps)
        if stops or is_late or is_due_now or step in (best_step, self._kept_step):
            self._recorder.sum_loss(trainer)
            with self._recorder.pause():
                self._save(trainer, keep_steps=(best_step, self._kept_step))
        if stops:
            raise StoppedError(
                f"stopped by {self._stop.signal_name or 'another rank'} after step {step}, which is saved. Start the "
                "same command again to go on."
            )

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

    def _save(self, trainer: pl.Trainer, *, keep_steps: tuple[int | None, ...]) -> None:
        """Older ones go only when the new one is on the disk as it should be."""
        path = folder_of(self._checkpoints, trainer.global_step)
        trainer.save_checkpoint(path)
        self._saved_at = time.monotonic()
        if not trainer.is_global_zero:
            return
        if fault := find_fault(path):
            raise DamagedError(f"{path} is not what was written ({fault}). Check the disk; older checkpoints are kept.")
        forget_earlier(self._checkpoints.parent)
        keep(self._checkpoints, newest=self._config.keep_checkpoints, steps=keep_steps)


def require_space(checkpoints: Path, model: nn.Module, config: TrainerConfig, *, kept: int = 0) -> None:
    """Refuse to start what could not be saved; so many checkpoints are `kept` beside the newest and the best.

    Raises:
        StorageError: the disk has less free than the checkpoints still to come and the finished model take.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    number = config.keep_checkpoints + config.keep_best + kept + 1  # the new one is written before an old one goes
    to_come = max(1, number - len(list(checkpoints.glob(f"{PREFIX}*"))))
    needed = (to_come * STATES + 1) * trained
    free = shutil.disk_usage(checkpoints.parent).free
    if free < needed:
        raise StorageError(
            f"{checkpoints.parent}: {free / 1e9:.2f} GB are free on the disk, but {to_come} checkpoints of "
            f"{STATES * trained / 1e9:.2f} GB and the model take {needed / 1e9:.2f} GB. Free some, lower "
            "trainer.keep_checkpoints, or set outputs to a folder on another disk."
        )
