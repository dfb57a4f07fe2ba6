"""Rows and their order -> the loaders of training and validation, which know how long they were waited for."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from llm.data import EvaluationBatches, MicroBatch, Rows, TrainingBatches
from llm.data.rows import Batch
from llm.environment import is_on_slurm
from llm.model import document_bounds
from llm.run.signals import SIGNALS


class StepRows:
    """The rows of whole steps: what the loader asks for is a step's micro-batches, and each is read by itself."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitems__(self, micro_batches: list[MicroBatch]) -> list[Batch]:
        """Each with where documents begin in it, found while it is on the host: later a GPU would be waited for."""
        read = [self._rows.__getitems__(each) for each in micro_batches]
        return [batch | {"document_bounds": document_bounds(batch["position_ids"])} for batch in read]


class TimedLoader(DataLoader[Any]):
    """torch's, with a clock around each batch that is asked for. Moving it to the device comes after."""

    waited_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # of what is given out, as DataLoader's own are
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_seconds += time.perf_counter() - began
            yield batch


def loader(
    rows: Rows | StepRows, batches: TrainingBatches | EvaluationBatches, *, device: torch.device, num_workers: int
) -> TimedLoader:
    return TimedLoader(
        rows,  # type: ignore[arg-type]  # has the __getitems__ that torch looks for
        batch_sampler=batches,  # type: ignore[arg-type]  # gives what __getitems__ takes
        collate_fn=_unchanged,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_run,
    )


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
