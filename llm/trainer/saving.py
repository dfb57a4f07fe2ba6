"""Checkpoints at step boundaries, and an orderly stop: a signal sets a flag, the step ends, the state is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from llm.errors import StoppedError
from llm.trainer.checkpoint import folder_of, keep_newest
from llm.trainer.meter import Meter, ends_step, is_due
from llm.trainer.module import NextTokenModule

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Set by the first signal; the second one ends the process at once, as it would have without us."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Listen for signals while the block runs."""
        before = {number: signal.signal(number, self._catch) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)


class Saving(pl.Callback):
    """Saves every so many steps, at the last one, and when a signal asks the run to stop."""

    def __init__(self, checkpoints: Path, *, meter: Meter, every_steps: int, keep: int, stop: StopFlag) -> None:
        self._checkpoints, self._meter = checkpoints, meter
        self._every_steps, self._keep, self._stop = every_steps, keep, stop

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        stop = trainer.strategy.reduce_boolean_decision(self._stop.signal_name is not None, all=False)
        if stop or is_due(trainer, self._every_steps):
            assert isinstance(pl_module, NextTokenModule)
            self._meter.settle(trainer, pl_module)  # what diverged must not push out what was good
            with self._meter.pause():
                trainer.save_checkpoint(folder_of(self._checkpoints, trainer.global_step))
                if trainer.is_global_zero:
                    keep_newest(self._checkpoints, self._keep)
        if stop:
            raise StoppedError(
                f"stopped by {self._stop.signal_name or 'another rank'} after step {trainer.global_step}, which is "
                "saved. Start the same command again to go on."
            )
