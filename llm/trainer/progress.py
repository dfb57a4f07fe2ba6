"""The progress bar: step, loss, tokens per second, time left; where there is no terminal, plain log lines."""

from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm.run import console, log
from llm.trainer.meter import Meter, ends_step, is_due

LINES = 10  # about how many log lines a run gets where there is no terminal


class ProgressBar(pl.Callback):
    """Shows what the meter measured last."""

    def __init__(self, meter: Meter, *, label: str) -> None:
        self._meter, self._label = meter, label
        self._bar: Progress | None = None
        self._said: int | None = None  # the step of the last log line

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and console().is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console(),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._label, total=trainer.max_steps, completed=trainer.global_step, shown=""
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx) or not trainer.is_global_zero:
            return
        if self._bar:
            self._bar.update(self._task, completed=trainer.global_step, shown=self._shown())
        elif is_due(trainer, max(1, trainer.max_steps // LINES)) and self._meter.latest:
            self._say(trainer.max_steps)

    def _say(self, max_steps: int) -> None:
        """One line of what was measured last, under its own step; nothing where that has been said."""
        if (step := self._meter.latest["step"]) != self._said:
            log.info("step %d of %d: %s", step, max_steps, self._shown(with_time=True))
        self._said = step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _shown(self, *, with_time: bool = False) -> str:
        latest = self._meter.latest
        if not latest:
            return ""
        loss = f"{latest['train/loss']:.3f}" if "train/loss" in latest else "not finite"
        left = f"  {clock(latest['throughput/seconds_left'])} left" if with_time else ""
        return f"loss {loss}  {latest['throughput/tokens_per_second']:,.0f} tokens/s{left}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
