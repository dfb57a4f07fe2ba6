"""Tokens, seconds, loss, throughput, memory and time left of the training steps; a record every log_every_steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from llm.run import process_rank
from llm.trainer.journal import Journal
from llm.trainer.memory import memory_in_use
from llm.trainer.module import NextTokenModule
from llm.trainer.waiting import waited_seconds

DIVERGED_HINT = "Lower optimizer.learning_rate, or raise optimizer.warmup_steps."


class Meter(pl.Callback):
    """Counts steps as they end. Its counts are part of a checkpoint, so a resumed run goes on counting."""

    def __init__(self, journal: Journal, *, every_steps: int, flops_per_token: float, peak_flops: float) -> None:
        self._journal, self._every_steps = journal, every_steps
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self.tokens = 0  # labels trained on, over all ranks
        self.latest: dict[str, Any] = {}  # the last record
        self._seconds_before = 0.0  # of earlier attempts
        self._started = self._mark = self._began_steps = time.monotonic()
        self._first_step = 0  # of this attempt
        self._waited = 0.0  # for batches, up to the last record
        self._paused = 0.0  # since the last record: validation and saving are not training
        self._nats: torch.Tensor | float = 0.0  # since the last record, of the steps that were not skipped
        self._step_nats: torch.Tensor | float = 0.0  # of the step that is under way
        self._interval_tokens = 0
        self._interval_skipped: torch.Tensor | float = 0.0  # of these, the labels of skipped steps
        self.skipped: torch.Tensor | float = 0.0  # steps so far

    @property
    def seconds(self) -> float:
        """Wall time of the run, earlier attempts included."""
        return self._seconds_before + time.monotonic() - self._started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the block's time out of the throughput."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def place(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What every record begins with."""
        return {"step": trainer.global_step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._journal.open()
        self._first_step, self._waited = trainer.global_step, waited_seconds(trainer.train_dataloader)
        self._mark = self._began_steps = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, NextTokenModule)
        self._step_nats = self._step_nats + outputs["nats"]
        if not ends_step(trainer, batch_idx):
            return
        skipped = pl_module.is_skipped
        self.skipped = self.skipped + skipped
        self._nats = self._nats + torch.where(skipped > 0, 0.0, self._step_nats)
        self._interval_skipped = self._interval_skipped + skipped * batch["num_labels"]
        self._step_nats = 0.0
        self.tokens += batch["num_labels"]
        self._interval_tokens += batch["num_labels"]
        if is_due(trainer, self._every_steps):
            self._write(trainer, pl_module)

    def settle(self, trainer: pl.Trainer, module: NextTokenModule) -> None:
        """Sum the loss since the last record over the ranks, for rank zero to keep: a checkpoint holds what it has."""
        nats = torch.as_tensor(
            trainer.strategy.reduce(torch.as_tensor(self._nats, device=module.device), reduce_op="sum")
        )
        self._nats = nats if trainer.is_global_zero else 0.0

    def _write(self, trainer: pl.Trainer, module: NextTokenModule) -> None:
        self.settle(trainer, module)
        seconds = max(time.monotonic() - self._mark - self._paused, 1e-9)
        waited = waited_seconds(trainer.train_dataloader)
        speed = self._interval_tokens / seconds
        counted = self._interval_tokens - int(self._interval_skipped)
        self.latest = self.place(trainer) | ({"train/loss": float(self._nats) / counted} if counted else {})
        self.latest |= {
            "train/flops": self.tokens * self._flops_per_token,
            "train/skipped_steps": int(self.skipped),
            "train/gradient_norm": float(module.gradient_norm),
            "train/learning_rate": trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[-1],
            "throughput/tokens_per_second": speed,
            "throughput/mfu": speed * self._flops_per_token / (self._peak_flops * trainer.world_size),
            "throughput/data_wait_share": min(1.0, (waited - self._waited) / seconds),
            "throughput/seconds_left": round(self._seconds_left(trainer), 1),
            "memory/gigabytes": round(memory_in_use(module.device) / 1e9, 4),
        }
        self._journal.write(self.latest)
        self._mark, self._paused, self._waited = time.monotonic(), 0.0, waited
        self._nats, self._interval_tokens, self._interval_skipped = 0.0, 0, 0.0

    def _seconds_left(self, trainer: pl.Trainer) -> float:
        """At the pace of this attempt, its validations and checkpoints included."""
        done = trainer.global_step - self._first_step
        return (trainer.max_steps - trainer.global_step) * (time.monotonic() - self._began_steps) / done

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "nats": float(self._nats),
            "interval_tokens": self._interval_tokens,
            "interval_skipped": int(self._interval_skipped),
            "skipped": int(self.skipped),
            "journal": self._journal.sizes(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self._seconds_before = state_dict["tokens"], state_dict["seconds"]
        self._nats = state_dict["nats"] if process_rank() == 0 else 0.0
        self._interval_tokens = state_dict["interval_tokens"]
        self._interval_skipped, self.skipped = float(state_dict["interval_skipped"]), float(state_dict["skipped"])
        self._journal.open(state_dict["journal"])


def ends_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_due(trainer: pl.Trainer, every_steps: int) -> bool:
    """Whether something that happens every so many steps, and at the last, happens now."""
    return trainer.global_step % every_steps == 0 or trainer.global_step == trainer.max_steps
