"""trainer.profile_steps -> profile.json in the run's folder: what the host and the device did in some steps."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity

from llm.run import TEMPORARY, log, process_rank
from llm.trainer.meter import Meter, ends_step

WARM_UP_STEPS = 5  # of this attempt: the first steps fill caches, choose kernels and compile
FILE = "profile.json"


class Profile(pl.Callback):
    """Traces the first steps after the warm-up, on rank zero; the time that writing takes is left out of throughput."""

    def __init__(self, folder: Path, meter: Meter, *, num_steps: int) -> None:
        self._path, self._meter, self._num_steps = folder / FILE, meter, num_steps
        self._first_step = 0
        self._profiler: torch.profiler.profile | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_step = trainer.global_step + WARM_UP_STEPS
        if process_rank() == 0 and self._first_step + self._num_steps > trainer.max_steps:
            log.warning(
                "trainer.profile_steps=%d: nothing is traced, for %d steps are left, and the first %d warm up",
                self._num_steps,
                trainer.max_steps - trainer.global_step,
                WARM_UP_STEPS,
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if process_rank() > 0 or not ends_step(trainer, batch_idx):
            return
        if self._profiler is not None and trainer.global_step == self._first_step + self._num_steps:
            with self._meter.pause():
                self._stop()
                log.info(
                    "steps %d to %d are traced in %s: open it at https://ui.perfetto.dev, or in chrome://tracing",
                    self._first_step + 1,
                    trainer.global_step,
                    self._path,
                )
        elif trainer.global_step == self._first_step <= trainer.max_steps - self._num_steps:
            with self._meter.pause():
                self._start()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()

    def _stop(self) -> None:
        assert self._profiler is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or the kernels that are under way would be missing
        self._profiler.stop()
        temporary = self._path.with_name(f"{TEMPORARY}{FILE}")
        self._profiler.export_chrome_trace(str(temporary))
        temporary.replace(self._path)
        self._profiler = None
