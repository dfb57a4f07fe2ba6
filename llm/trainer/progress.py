"""The progress bar: step, loss, tokens per second, time left; where there is no terminal, plain log lines."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm.run.console import console, log

LINES = 10  # about how many log lines a run gets where there is no terminal


class ProgressBar:
    """Shows the record that was written last."""

    def __init__(self, label: str, *, done: int, total: int) -> None:
        self._total = total
        self._said: int | None = None  # the step of the last log line
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(),
            disable=not console().is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, shown="")
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def show(self, step: int, record: dict[str, Any]) -> None:
        """After a step; a log line is of the record's own step, which is said once."""
        if not self._bar.disable:
            self._bar.update(self._task, completed=step, shown=_shown(record) if record else "")
        elif (
            record
            and record["step"] != self._said
            and (step % max(1, self._total // LINES) == 0 or step == self._total)
        ):
            self._said = record["step"]
            left = clock(record["throughput/seconds_left"])
            log.info("step %d of %d: %s  %s left", self._said, self._total, _shown(record), left)


def _shown(record: dict[str, Any]) -> str:
    loss = f"{record['train/loss']:.3f}" if "train/loss" in record else "not finite"
    return f"loss {loss}  {record['throughput/tokens_per_second']:,.0f} tokens/s"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
