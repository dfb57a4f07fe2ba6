"""Rows and their order -> the loaders of training and validation, with as many rows at once as the memory holds.

What ran out of memory is done again in smaller parts, from the weights it began with and on the same rows: its loss is
the same up to the order of sums; dropout, which is drawn for each part, is another draw.
"""

import gc
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from llm.config.data import DataConfig
from llm.config.training import Accelerator, TrainerConfig
from llm.data.order import EvaluationBatches, MicroBatch, TrainingBatches
from llm.data.rows import Batch, Rows, TokenRows
from llm.environment import ask_for_another_launch, is_on_slurm, process_rank
from llm.errors import MachineError, StoppedError, is_out_of_memory
from llm.model import document_bounds
from llm.run.console import log
from llm.run.files import write_json
from llm.run.launch import SIGNALS

FILE = "micro_batch.json"  # in a run's folder: the size that memory left, with which the run goes on
CPU_TOKENS = 1024  # per forward pass: the logits of 8192 tokens no longer fit a cache (5.6k against 3.6k tokens/s)
Result = TypeVar("Result")


class StepRows:
    """The rows of whole steps: what the loader asks for is a step's micro-batches, and each is read by itself."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitems__(self, micro_batches: list[MicroBatch]) -> list[Batch]:
        """Each with where documents begin in it, found while it is on the host: later a GPU would be waited for."""
        read = [self._rows.__getitems__(each) for each in micro_batches]
        return [batch | {"document_bounds": document_bounds(batch["position_ids"])} for batch in read]


class RunRows:
    """What a run reads on this rank, and how much of it at once."""

    def __init__(
        self, train: Rows, held_out: Rows, data: DataConfig, config: TrainerConfig, *, seed: int, folder: Path
    ) -> None:
        self._folder, self._config, self.held_out = folder, config, held_out
        self._per_step, self._steps = data.batch_size // config.world_size, StepRows(train)
        size = self._kept_size() or micro_batch_size(data, config)
        share: dict[str, int] = {"rank": process_rank(), "world_size": config.world_size}
        self.training = TrainingBatches(
            train.num_labels,
            batch_size=data.batch_size,
            micro_batch_size=size,
            num_steps=config.max_steps,
            seed=seed,
            shares=train.shares if isinstance(train, TokenRows) else (),
            **share,
        )
        edges = held_out.first_rows if isinstance(held_out, TokenRows) else (0,)
        self._evaluation = EvaluationBatches(held_out.num_labels, batch_size=size, edges=edges, **share)
        self.train_loader = self._loader(self._steps, self.training)
        self.held_out_loader = self._loader(held_out, self._evaluation)

    def cut(self, batch: list[Batch], step: int) -> list[Batch]:
        """A step's micro-batches; where memory ran out since they were read, in smaller ones, on the host."""
        is_right = len(batch) * self.training.micro_batch_size == self._per_step
        return batch if is_right else self._steps.__getitems__(self.training.of(step))

    def fit(self, passes: Callable[[], Result]) -> Result:
        """What `passes` gives; where memory runs out, once more with fewer rows, now and in a later start.

        Raises:
            Exception: that of `passes`: it was something else, or a single row; or there are other devices, which
                wait for what this one had to give.
        """
        while True:
            try:
                return passes()
            except Exception as error:
                self._take_fewer(error)
            gc.collect()  # only here is the error gone, whose frames hold the activations
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            torch.compiler.reset()  # a second size would make the sizes symbolic, which kernels are slower for

    def explain(self, error: Exception) -> None:
        """Say why a training ended, where memory ran out on this device or, of several, on another.

        Raises:
            StoppedError: several processes have to begin anew; launch_ranks does that by itself.
            MachineError: memory ran out where nothing can be done again.
        """
        size = self.training.micro_batch_size
        if (self._kept_size() or size) < size:
            ask_for_another_launch()
            raise StoppedError(
                "a device ran out of memory; the next start takes fewer rows at once, and goes on from the last "
                "checkpoint. Start the same command again."
            ) from error
        if is_out_of_memory(error):
            raise MachineError(
                f"the device ran out of memory with trainer.micro_batch_size={size}. Lower that, or "
                "data.sequence_length; choose a smaller model; or share it out over more devices with "
                "trainer.strategy=fsdp.",
                kind="out_of_memory",
            ) from error

    def _take_fewer(self, error: Exception) -> None:
        """The largest divisor of a step's rows that is at most half of what there was."""
        size = self.training.micro_batch_size
        fewer = max((part for part in range(1, size // 2 + 1) if self._per_step % part == 0), default=None)
        if fewer is None or not is_out_of_memory(error):
            raise error
        log.error("memory ran out with %d rows at once: from now on %d, with the same rows a step", size, fewer)
        known = {"rows": self._per_step, "asked": self._config.micro_batch_size, "size": fewer}
        write_json(self._folder / FILE, known)
        if self._config.world_size > 1:
            raise error
        self.training.micro_batch_size = self._evaluation.batch_size = fewer

    def _kept_size(self) -> int | None:
        """The size that the run came to, where it shares its steps out as it did."""
        try:
            kept = json.loads((self._folder / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        is_alike = (kept["rows"], kept["asked"]) == (self._per_step, self._config.micro_batch_size)
        return int(kept["size"]) if is_alike else None

    def _loader(self, rows: Rows | StepRows, batches: TrainingBatches | EvaluationBatches) -> DataLoader[Any]:
        return DataLoader(
            rows,  # type: ignore[arg-type]  # has the __getitems__ that torch looks for
            batch_sampler=batches,  # type: ignore[arg-type]  # gives what __getitems__ takes
            collate_fn=_unchanged,
            num_workers=self._config.num_workers,
            pin_memory=device_of(self._config).type == "cuda",
            worker_init_fn=_leave_signals_to_the_run,
        )


def micro_batch_size(data: DataConfig, config: TrainerConfig) -> int:
    """Rows per forward pass to begin with: the user's; else all of a step's on a GPU, as suit the cache on a CPU."""
    rows = data.batch_size // config.world_size
    if config.micro_batch_size is not None:
        return config.micro_batch_size
    if device_of(config).type == "cuda":
        return rows
    most = max(1, CPU_TOKENS // data.sequence_length)
    return max(divisor for divisor in range(1, rows + 1) if rows % divisor == 0 and divisor <= most)


def device_of(config: TrainerConfig) -> torch.device:
    """The kind of device that a run is trained on."""
    use_gpu = config.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def _unchanged(batch: Any) -> Any:
    """Rows come as a whole batch."""
    return batch


def _leave_signals_to_the_run(_worker: int) -> None:
    """A worker ends when the run ends it; a Ctrl-C in the terminal reaches it too, and must not.

    Nor must Slurm's SIGTERM, which comes to every process of a job: a worker also ends when it is told to, or alone.
    """
    for number in SIGNALS:
        is_for_it = number == signal.SIGTERM and not is_on_slurm()
        signal.signal(number, signal.SIG_DFL if is_for_it else signal.SIG_IGN)
