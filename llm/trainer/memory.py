"""Memory: how much training holds, and fewer rows at once where it runs out.

A step that ran out of memory is done again in smaller parts, from the weights it began with and on the same rows: its
loss is the same up to the order of sums; dropout, which is drawn for each part, is another draw.
"""

import gc
import json
import os
from pathlib import Path

import torch

from llm.data import EvaluationBatches, TrainingBatches
from llm.data.rows import Batch
from llm.environment import ask_for_another_launch
from llm.errors import ShortOfMemoryError, StoppedError, is_out_of_memory
from llm.run.console import log
from llm.run.files import write_json
from llm.trainer.loading import StepRows

FILE = "micro_batch.json"  # in a run's folder: the size that memory left, with which the run goes on


class MicroBatches:
    """The micro-batches of a step, of as many rows as the memory takes."""

    def __init__(
        self,
        folder: Path,
        rows: StepRows,
        batches: TrainingBatches,
        held_out: EvaluationBatches,
        *,
        asked: int | None,
        sequence_length: int,
    ) -> None:
        self._folder, self._rows, self._batches, self._held_out = folder, rows, batches, held_out
        self._asked, self._rows_per_step, self._sequence_length = asked, batches.rows_per_step, sequence_length

    @property
    def per_step(self) -> int:
        return self._rows_per_step // self._batches.micro_batch_size

    def read(self, step: int) -> list[Batch]:
        return self._rows.__getitems__(self._batches.of(step))

    def reduce(self, error: Exception, *, step: int, world_size: int) -> None:
        """Take fewer rows from now on, and in a later start, where memory is what ran out in the passes of a step.

        Raises:
            ShortOfMemoryError: there is nothing left to reduce.
            Exception: it was something else; or there are other devices, which wait for what this one had to give.
        """
        if not is_out_of_memory(error):
            raise error
        size = self._batches.micro_batch_size
        if (fewer := smaller(self._rows_per_step, size)) is None:
            raise ShortOfMemoryError(
                f"the device's memory does not hold one row of data.sequence_length={self._sequence_length}. "
                "Lower it, choose a smaller model, or share the model out over more devices with trainer.strategy=fsdp."
            ) from error
        log.warning(
            "memory ran out in step %d with %d rows at once: from now on %d, in %d parts a step, whose rows and loss "
            "stay what they were",
            step + 1,
            size,
            fewer,
            self._rows_per_step // fewer,
        )
        write_json(self._folder / FILE, {"rows": self._rows_per_step, "asked": self._asked, "size": fewer})
        if world_size > 1:
            raise error
        self._batches.micro_batch_size = self._held_out.batch_size = fewer

    def explain(self, error: Exception) -> None:
        """Say why a training ended, where memory ran out on this device or, of several, on another.

        Raises:
            StoppedError: several processes have to begin anew; launch_ranks does that by itself.
            ShortOfMemoryError: memory ran out where nothing can be done again.
        """
        kept = kept_size(self._folder, rows=self._rows_per_step, asked=self._asked)
        size = self._batches.micro_batch_size
        if kept is not None and kept < size:
            ask_for_another_launch()
            raise StoppedError(
                "a device ran out of memory; the next start takes fewer rows at once, and goes on from the last "
                "checkpoint. Start the same command again."
            ) from error
        if is_out_of_memory(error):
            fewer = f"Set trainer.micro_batch_size below {size}, or choose" if size > 1 else "Choose"
            raise ShortOfMemoryError(
                f"the device ran out of memory outside the passes of a training step. {fewer} a smaller model."
            ) from error


def smaller(rows: int, size: int) -> int | None:
    """The largest divisor of `rows` that is at most half of `size`; None if there is none."""
    return max((part for part in range(1, size // 2 + 1) if rows % part == 0), default=None)


def kept_size(folder: Path, *, rows: int, asked: int | None) -> int | None:
    """The size that a run goes on with, where it shares its steps out as it did."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return int(kept["size"]) if (kept["rows"], kept["asked"]) == (rows, asked) else None


def memory_in_use(device: torch.device) -> int:
    """Bytes. On a GPU the peak of torch's allocator so far, which the host counts: nothing waits for the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes()


def resident_bytes() -> int:
    """What this process has in RAM now; where the system does not say, the most that it had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    from llm.tokenizer import peak_memory_bytes

    return peak_memory_bytes()


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
