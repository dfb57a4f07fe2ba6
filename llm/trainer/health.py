"""Steps that were skipped, and jumps of the loss -> warnings that name the documents, and after some in a row the end.

Whether a step is skipped is decided on the device (module.py), so that a GPU need not wait for it: the counts are read
after each step on a CPU, and with each record on a GPU.
"""

import statistics
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from llm.errors import DivergedError
from llm.run import log
from llm.trainer.meter import DIVERGED_HINT, Meter, ends_step, is_due
from llm.trainer.module import NextTokenModule

SPIKE_WINDOW = 50  # records of the loss that a new one is held against, once there are SPIKE_LEAST
SPIKE_LEAST = 10
SPIKE_DEVIATIONS = 6.0  # above their mean; a loss that hardly varies must rise by SPIKE_SHARE of it, too
SPIKE_SHARE = 0.1
MOST_NAMED = 4  # rows of a step whose documents a message names


class Health(pl.Callback):
    """Comes after the meter. Its counts are part of a checkpoint."""

    def __init__(
        self, meter: Meter, *, every_steps: int, stop_after: int, documents_of: Callable[[int], list[str]]
    ) -> None:
        self._meter, self._every_steps, self._stop_after = meter, every_steps, stop_after
        self._documents_of = documents_of  # those of the step that is counted from 0
        self._in_a_row = self._most_in_a_row = self._last_skipped = torch.zeros(())
        self._told = 0  # skipped steps that the log has told of
        self._losses: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, NextTokenModule)
        if not ends_step(trainer, batch_idx):
            return
        skipped = pl_module.is_skipped
        self._in_a_row = (self._in_a_row.to(skipped) + 1) * skipped
        self._most_in_a_row = torch.maximum(self._most_in_a_row.to(skipped), self._in_a_row)
        self._last_skipped = torch.where(skipped > 0, trainer.global_step, self._last_skipped.to(skipped))
        is_record = is_due(trainer, self._every_steps)
        if is_record or is_read_at_each_step(skipped):
            self._tell()
        if is_record and "train/loss" in self._meter.latest:
            self._watch(self._meter.latest["train/loss"], trainer.global_step)

    def _tell(self) -> None:
        skipped, most, last = int(self._meter.skipped), int(self._most_in_a_row), int(self._last_skipped)
        self._most_in_a_row = self._in_a_row
        if skipped == self._told:
            return
        self._told = skipped
        documents = self._documents_of(last - 1)
        more = f", and {len(documents) - MOST_NAMED} rows more" if len(documents) > MOST_NAMED else ""
        where = f"step {last} ({', '.join(documents[:MOST_NAMED])}{more})"
        if most >= self._stop_after:
            raise DivergedError(
                f"the gradients of {most} steps in a row are not finite, the last at {where}; none of them reached the "
                f"weights. {DIVERGED_HINT} trainer.stop_after_skipped_steps says how many steps are borne."
            )
        log.warning("skipped %s: its gradients are not finite (%d steps skipped so far)", where, skipped)

    def _watch(self, loss: float, step: int) -> None:
        if len(self._losses) >= SPIKE_LEAST:
            mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
            if loss > mean + max(SPIKE_DEVIATIONS * deviation, SPIKE_SHARE * mean):
                log.warning(
                    "train/loss jumped to %.3f at step %d, from a mean of %.3f over the last %d records",
                    loss,
                    step,
                    mean,
                    len(self._losses),
                )
        self._losses = [*self._losses, loss][-SPIKE_WINDOW:]

    def state_dict(self) -> dict[str, Any]:
        return {
            "in_a_row": float(self._in_a_row),
            "last_skipped": float(self._last_skipped),
            "told": self._told,
            "losses": self._losses,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._in_a_row = self._most_in_a_row = torch.tensor(state_dict["in_a_row"])
        self._last_skipped = torch.tensor(state_dict["last_skipped"])
        self._told, self._losses = state_dict["told"], state_dict["losses"]


def is_read_at_each_step(value: torch.Tensor) -> bool:
    """Whether looking at a tensor costs no wait for its device."""
    return value.device.type == "cpu"
