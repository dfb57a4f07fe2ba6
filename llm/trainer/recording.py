"""Steps as they end -> metrics.jsonl and samples.jsonl, which the logger shows; warnings, a bar and a trace."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile
from torch.profiler import schedule as schedule_of

from llm.config.training import TrainerConfig
from llm.environment import process_rank
from llm.errors import DivergedError
from llm.logger import RunLogger
from llm.run.console import log
from llm.run.files import TEMPORARY
from llm.run.metrics import MetricsLog
from llm.trainer.loading import TimedLoader
from llm.trainer.memory import memory_in_use
from llm.trainer.progress import ProgressBar

DIVERGED_HINT = "Lower optimizer.learning_rate, or raise optimizer.warmup_steps."
MOST_NAMED = 4  # rows of a step whose documents a message names
SPIKE_WINDOW = 50  # records of the loss that a new one is held against, once there are SPIKE_LEAST
SPIKE_LEAST = 10
SPIKE_DEVIATIONS = 6.0  # above their mean; a loss that hardly varies must rise by SPIKE_SHARE of it, too
SPIKE_SHARE = 0.1
PROFILE = "profile.json"
PROFILE_WARM_UP = 5  # steps of this attempt: the first ones fill caches, choose kernels and compile


class Recorder:
    """Counts steps, and writes a record every log_every_steps. Its counts are part of a checkpoint.

    Files are written on rank zero; on the other ranks it only counts.
    """

    def __init__(
        self,
        folder: Path,
        logger: RunLogger,
        config: TrainerConfig,
        *,
        label: str,  # what the progress bar calls the run
        loader: TimedLoader,
        flops_per_token: float,
        peak_flops: float,
        documents_of: Callable[[int], list[str]],  # in the step that is counted from 0
    ) -> None:
        self._folder, self._logger, self._config, self._loader = folder, logger, config, loader
        self._flops_per_token, self._peak_flops, self._documents_of = flops_per_token, peak_flops, documents_of
        self._label = label
        self._closing = ExitStack()
        self._sizes = {"metrics": 0, "samples": 0}  # bytes in the files at the checkpoint that is gone on from
        self._metrics: MetricsLog | None = None
        self._samples: MetricsLog | None = None
        self._progress: ProgressBar | None = None
        self._profiler: profile | None = None
        self._latest: dict[str, Any] = {}  # record of training

        self.tokens = 0  # labels trained on, over all ranks
        self._seconds_before = 0.0  # of earlier attempts
        self._skipped = self._skipped_in_a_row = 0  # steps
        self._gradient_norm = 0.0  # of the last step that was not skipped, before clipping
        self._losses: list[float] = []  # of the last records

        # since the last record
        self._nats: torch.Tensor | float = 0.0  # of the steps that were not skipped
        self._interval_tokens = self._interval_skipped = 0  # labels; of these, those of skipped steps
        self._paused = 0.0  # seconds: validation and saving are not training

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.close()

    def start(self, trainer: pl.Trainer) -> None:
        """Open the files: what came after the checkpoint that is gone on from is cut off, to be written anew."""
        self._started = self._mark = time.monotonic()
        self._first_step, self._waited = trainer.global_step, self._loader.waited_seconds
        if process_rank() > 0:
            return
        self._metrics, self._samples = (
            MetricsLog(self._folder / f"{name}.jsonl", size=self._sizes[name]) for name in ("metrics", "samples")
        )
        for file in (self._metrics, self._samples):
            self._closing.callback(file.close)
        self._logger.follow()
        self._progress = ProgressBar(self._label, done=trainer.global_step, total=trainer.max_steps)
        self._closing.callback(self._progress.stop)
        if self._config.profile_steps is not None:
            self._start_profiler(trainer, self._config.profile_steps)

    def record(self, trainer: pl.Trainer, *, nats: torch.Tensor, gradient_norm: float, num_labels: int) -> None:
        """Count a step. `nats` are those of this rank, which are read with a record alone; the rest is of all ranks.

        Raises:
            DivergedError: it is one too many whose gradients are not finite.
        """
        is_skipped = not math.isfinite(gradient_norm)
        self.tokens += num_labels
        self._interval_tokens += num_labels
        if is_skipped:
            self._interval_skipped += num_labels
            self._skipped += 1
            self._skipped_in_a_row += 1
        else:
            self._nats = self._nats + nats
            self._gradient_norm, self._skipped_in_a_row = gradient_norm, 0
        if self._profiler:
            with self.pause():
                self._profiler.step()
        if is_due(trainer, self._config.log_every_steps):
            self._write_record(trainer)
        if is_skipped:
            self._tell_of_skipped(trainer.global_step)
        if self._progress:
            self._progress.show(trainer.global_step, self._latest)

    def write(
        self, trainer: pl.Trainer, measured: dict[str, Any], *, samples: Sequence[dict[str, str]] = ()
    ) -> dict[str, Any]:
        """Write what was measured after a step, and texts that the model made then; gives the whole record."""
        step = trainer.global_step
        record = {"step": step, "tokens": self.tokens, "seconds": round(self._seconds, 3)} | measured
        if self._metrics and self._samples:
            for sample in samples:
                self._samples.append({"step": step} | sample)
            self._metrics.append(record)
        return record

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the block's time out of the throughput."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def sum_loss(self, trainer: pl.Trainer) -> float:
        """Sum the loss since the last record over the ranks, for rank zero to keep: a checkpoint holds what it has."""
        mine = torch.as_tensor(self._nats, device=trainer.strategy.root_device)
        nats = float(torch.as_tensor(trainer.strategy.reduce(mine, reduce_op="sum")))
        self._nats = nats if trainer.is_global_zero else 0.0
        return nats

    @property
    def _seconds(self) -> float:
        """Wall time of the run, earlier attempts included."""
        return self._seconds_before + time.monotonic() - self._started

    def _write_record(self, trainer: pl.Trainer) -> None:
        nats, device = self.sum_loss(trainer), trainer.strategy.root_device
        now, waited = time.monotonic(), self._loader.waited_seconds
        seconds = max(now - self._mark - self._paused, 1e-9)
        speed = self._interval_tokens / seconds
        counted = self._interval_tokens - self._interval_skipped
        pace = (now - self._started) / (trainer.global_step - self._first_step)  # with validations and checkpoints
        measured = {"train/loss": nats / counted} if counted else {}
        measured |= {
            "train/flops": self.tokens * self._flops_per_token,
            "train/skipped_steps": self._skipped,
            "train/gradient_norm": self._gradient_norm,
            "train/learning_rate": trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[-1],
            "throughput/tokens_per_second": speed,
            "throughput/mfu": speed * self._flops_per_token / (self._peak_flops * trainer.world_size),
            "throughput/data_wait_share": min(1.0, (waited - self._waited) / seconds),
            "throughput/seconds_left": round((trainer.max_steps - trainer.global_step) * pace, 1),
            "memory/gigabytes": round(memory_in_use(device) / 1e9, 4),
        }
        self._latest = self.write(trainer, measured)
        if counted:
            self._tell_of_jump(nats / counted, trainer.global_step)
        self._mark, self._paused, self._waited = time.monotonic(), 0.0, waited
        self._nats, self._interval_tokens, self._interval_skipped = 0.0, 0, 0

    def _tell_of_skipped(self, step: int) -> None:
        documents = self._documents_of(step - 1)
        more = f", and {len(documents) - MOST_NAMED} rows more" if len(documents) > MOST_NAMED else ""
        where = f"step {step} ({', '.join(documents[:MOST_NAMED])}{more})"
        if self._skipped_in_a_row >= self._config.stop_after_skipped_steps:
            raise DivergedError(
                f"the gradients of {self._skipped_in_a_row} steps in a row are not finite, the last at {where}; none "
                f"of them reached the weights. {DIVERGED_HINT} trainer.stop_after_skipped_steps says how many steps "
                "are borne."
            )
        log.warning("skipped %s: its gradients are not finite (%d steps skipped so far)", where, self._skipped)

    def _tell_of_jump(self, loss: float, step: int) -> None:
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

    def _start_profiler(self, trainer: pl.Trainer, num_steps: int) -> None:
        """Trace so many steps after the warm-up, into profile.json."""
        if PROFILE_WARM_UP + num_steps > (left := trainer.max_steps - trainer.global_step):
            log.warning(
                "trainer.profile_steps=%d: nothing is traced, for %d steps are left, and the first %d warm up",
                num_steps,
                left,
                PROFILE_WARM_UP,
            )
            return
        first = trainer.global_step + PROFILE_WARM_UP + 1

        def keep(profiler: profile) -> None:
            temporary = self._folder / f"{TEMPORARY}{PROFILE}"
            profiler.export_chrome_trace(str(temporary))
            temporary.replace(self._folder / PROFILE)
            log.info(
                "steps %d to %d are traced in %s: open it at https://ui.perfetto.dev, or in chrome://tracing",
                first,
                trainer.global_step,
                self._folder / PROFILE,
            )

        self._profiler = self._closing.enter_context(
            profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])],
                schedule=schedule_of(wait=PROFILE_WARM_UP - 1, warmup=1, active=num_steps, repeat=1),
                on_trace_ready=keep,
            )
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; after `sum_loss`."""
        files = {"metrics": self._metrics, "samples": self._samples}
        return {
            "tokens": self.tokens,
            "seconds": self._seconds,
            "nats": self._nats,
            "interval_tokens": self._interval_tokens,
            "interval_skipped": self._interval_skipped,
            "skipped": self._skipped,
            "in_a_row": self._skipped_in_a_row,
            "gradient_norm": self._gradient_norm,
            "losses": self._losses,
            "journal": {name: file.size if file else 0 for name, file in files.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        self.tokens, self._seconds_before = state["tokens"], state["seconds"]
        self._nats = state["nats"] if process_rank() == 0 else 0.0
        self._interval_tokens, self._interval_skipped = state["interval_tokens"], state["interval_skipped"]
        self._skipped, self._skipped_in_a_row = state["skipped"], int(state["in_a_row"])
        self._gradient_norm, self._losses, self._sizes = state["gradient_norm"], state["losses"], state["journal"]


def is_due(trainer: pl.Trainer, every_steps: int) -> bool:
    """Whether something that happens every so many steps, and at the last, happens now."""
    return trainer.global_step % every_steps == 0 or trainer.global_step == trainer.max_steps
