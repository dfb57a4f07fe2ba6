"""Steps as they end -> metrics.jsonl, samples.jsonl and validation.jsonl, for the logger; a progress bar, a trace."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.profiler import ProfilerActivity, profile
from torch.profiler import schedule as schedule_of

from llm.config.training import TrainerConfig
from llm.environment import process_rank
from llm.errors import DivergedError
from llm.logger.live import RunLogger
from llm.run.console import console, log
from llm.run.devices import resident_bytes
from llm.run.files import TEMPORARY
from llm.run.record import MetricsLog

DIVERGED_HINT = "Lower optimizer.learning_rate, or raise optimizer.warmup_steps."
MOST_NAMED = 4  # rows of a step whose documents a message names
LINES = 10  # about how many log lines a run gets where there is no terminal
PROFILE = "profile.json"
PROFILE_WARM_UP = 5  # steps of this attempt: the first ones fill caches, choose kernels and compile


@dataclass
class Counts:
    """What a checkpoint keeps of the records of a run."""

    tokens: int = 0  # labels trained on, over all ranks
    seconds: float = 0.0  # wall time of earlier attempts
    skipped: int = 0  # steps
    in_a_row: int = 0  # of these, the last ones
    gradient_norm: float = 0.0  # of the last step that was not skipped, before clipping
    # since the last record
    nats: torch.Tensor | float = 0.0  # of the steps that were not skipped
    interval_tokens: int = 0
    interval_skipped: int = 0  # tokens of skipped steps
    journal: dict[str, int] = field(default_factory=dict)  # bytes of the files, by name


class Recorder:
    """Counts steps, and writes a record every log_every_steps.

    Files are written on rank zero; on the other ranks it only counts.
    """

    def __init__(
        self,
        folder: Path,
        logger: RunLogger,
        config: TrainerConfig,
        *,
        label: str,  # what the progress bar calls the run
        flops_per_token: float,
        bytes_per_token: float,  # of the training text, raw, for each label
        peak_flops: float,
        documents_of: Callable[[int], list[str]],  # in the step that is counted from 0
        has_blocks: bool,  # whether what is held out has them
    ) -> None:
        self._folder, self._logger, self._config, self._label = folder, logger, config, label
        self._flops_per_token, self._bytes_per_token = flops_per_token, bytes_per_token
        self._peak_flops, self._documents_of = peak_flops, documents_of
        self._journal = ["metrics", "samples", *(["validation"] if has_blocks else [])]  # files of JSON lines
        self._closing = ExitStack()
        self._counts = Counts()
        self._files: dict[str, MetricsLog] = {}
        self._bar: Progress | None = None
        self._profiler: profile | None = None
        self._said = 0  # the step of the last log line
        self._paused = self._waited = 0.0  # seconds since the last record: validation and saving; waiting for data

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.close()

    def start(self, trainer: pl.Trainer) -> None:
        """Open the files: what came after the checkpoint that is gone on from is cut off, to be written anew."""
        self._started = self._mark = time.monotonic()
        self._first_step = trainer.global_step
        if process_rank() > 0:
            return
        self._files = {
            name: MetricsLog(self._folder / f"{name}.jsonl", size=self._counts.journal.get(name, 0))
            for name in self._journal
        }
        for file in self._files.values():
            self._closing.callback(file.close)
        self._logger.follow()
        self._bar = self._start_bar(trainer)
        if self._config.profile_steps is not None:
            self._start_profiler(trainer, self._config.profile_steps)

    def end_step(self) -> None:
        """From now on the next batch is waited for."""
        self._step_ended = time.monotonic()

    def begin_step(self) -> None:
        self._waited += time.monotonic() - self._step_ended

    def record(self, trainer: pl.Trainer, *, nats: torch.Tensor, gradient_norm: float, num_labels: int) -> None:
        """Count a step. `nats` are those of this rank, which are read with a record alone; the rest is of all ranks.

        Raises:
            DivergedError: it is one too many whose gradients are not finite.
        """
        counts, is_skipped = self._counts, not math.isfinite(gradient_norm)
        counts.tokens += num_labels
        counts.interval_tokens += num_labels
        if is_skipped:
            counts.interval_skipped += num_labels
            counts.skipped += 1
            counts.in_a_row += 1
        else:
            counts.nats = counts.nats + nats
            counts.gradient_norm, counts.in_a_row = gradient_norm, 0
        if self._profiler:
            with self.pause():
                self._profiler.step()
        if is_due(trainer, self._config.log_every_steps):
            self._write_record(trainer)
        if is_skipped:
            self._tell_of_skipped(trainer.global_step)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step)

    def write(
        self,
        trainer: pl.Trainer,
        measured: dict[str, Any],
        *,
        samples: Sequence[dict[str, str]] = (),
        blocks: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write what was measured after a step, of blocks of held-out text too, and texts that the model made then.

        Gives the whole record.
        """
        step = trainer.global_step
        record = {"step": step, "tokens": self._counts.tokens, "seconds": round(self._seconds, 3)} | measured
        if self._files:
            for sample in samples:
                self._files["samples"].append({"step": step} | sample)
            if blocks:
                fed = {"bytes": self._counts.tokens * self._bytes_per_token}
                fed |= {"flops": self._counts.tokens * self._flops_per_token}
                self._files["validation"].append({"step": step} | fed | blocks)
            self._files["metrics"].append(record)
        return record

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the block's time out of the throughput."""
        began = time.monotonic()
        yield
        self._paused += time.monotonic() - began

    def sum_loss(self, trainer: pl.Trainer) -> float:
        """Sum the loss since the last record over the ranks, for rank zero to keep: a checkpoint holds what it has."""
        mine = torch.as_tensor(self._counts.nats, device=trainer.strategy.root_device)
        nats = float(torch.as_tensor(trainer.strategy.reduce(mine, reduce_op="sum")))
        self._counts.nats = nats if trainer.is_global_zero else 0.0
        return nats

    @property
    def _seconds(self) -> float:
        """Wall time of the run, earlier attempts included."""
        return self._counts.seconds + time.monotonic() - self._started

    def _write_record(self, trainer: pl.Trainer) -> None:
        counts, nats, now = self._counts, self.sum_loss(trainer), time.monotonic()
        seconds = max(now - self._mark - self._paused, 1e-9)
        speed = counts.interval_tokens / seconds
        counted = counts.interval_tokens - counts.interval_skipped
        pace = (now - self._started) / (trainer.global_step - self._first_step)  # with validations and checkpoints
        measured = {"train/loss": nats / counted} if counted else {}
        measured |= {
            "train/flops": counts.tokens * self._flops_per_token,
            "train/skipped_steps": counts.skipped,
            "train/gradient_norm": counts.gradient_norm,
            "train/learning_rate": trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[-1],
            "throughput/tokens_per_second": speed,
            "throughput/mfu": speed * self._flops_per_token / (self._peak_flops * trainer.world_size),
            "throughput/data_wait_share": min(1.0, self._waited / seconds),
            "throughput/seconds_left": round((trainer.max_steps - trainer.global_step) * pace, 1),
            "memory/gigabytes": round(memory_in_use(trainer.strategy.root_device) / 1e9, 4),
        }
        record = self.write(trainer, measured)
        if self._bar:
            self._show(self._bar, trainer, record)
        self._mark, self._paused, self._waited = time.monotonic(), 0.0, 0.0
        counts.nats, counts.interval_tokens, counts.interval_skipped = 0.0, 0, 0

    def _tell_of_skipped(self, step: int) -> None:
        documents = self._documents_of(step - 1)
        more = f", and {len(documents) - MOST_NAMED} rows more" if len(documents) > MOST_NAMED else ""
        where = f"step {step} ({', '.join(documents[:MOST_NAMED])}{more})"
        if self._counts.in_a_row >= self._config.stop_after_skipped_steps:
            raise DivergedError(
                f"the gradients of {self._counts.in_a_row} steps in a row are not finite, the last at {where}; none "
                f"of them reached the weights. {DIVERGED_HINT} trainer.stop_after_skipped_steps says how many steps "
                "are borne."
            )
        log.warning("skipped %s: its gradients are not finite (%d steps skipped so far)", where, self._counts.skipped)

    def _start_bar(self, trainer: pl.Trainer) -> Progress:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"), TimeElapsedColumn())
        bar = Progress(
            *(TextColumn("{task.description}"), *columns, TextColumn("left"), TimeRemainingColumn()),
            console=console(),
            disable=not console().is_terminal,
        )
        bar.add_task(self._label, total=trainer.max_steps, completed=trainer.global_step, shown="")
        bar.start()
        self._closing.callback(bar.stop)
        return bar

    def _show(self, bar: Progress, trainer: pl.Trainer, record: dict[str, Any]) -> None:
        """A record beside the bar; where there is no terminal, a log line now and then."""
        step, total = trainer.global_step, trainer.max_steps
        loss = f"{record['train/loss']:.3f}" if "train/loss" in record else "not finite"
        shown = f"loss {loss}  {record['throughput/tokens_per_second']:,.0f} tokens/s"
        if not bar.disable:
            bar.update(bar.task_ids[0], shown=shown)
        elif step - self._said >= total / LINES or step == total:
            self._said = step
            left = timedelta(seconds=round(record["throughput/seconds_left"]))
            log.info("step %d of %d: %s  %s left", step, total, shown, left)

    def _start_profiler(self, trainer: pl.Trainer, num_steps: int) -> None:
        """Trace so many steps after the warm-up, into profile.json."""
        if PROFILE_WARM_UP + num_steps > (left := trainer.max_steps - trainer.global_step):
            said = "trainer.profile_steps=%d: nothing is traced, for %d steps are left, and the first %d warm up"
            return log.warning(said, num_steps, left, PROFILE_WARM_UP)
        path = self._folder / PROFILE

        def keep(profiler: profile) -> None:
            temporary = path.with_name(f"{TEMPORARY}{PROFILE}")
            profiler.export_chrome_trace(str(temporary))
            temporary.replace(path)
            log.info("%d steps are traced in %s: open it at https://ui.perfetto.dev", num_steps, path)

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        schedule = schedule_of(wait=PROFILE_WARM_UP - 1, warmup=1, active=num_steps, repeat=1)
        self._profiler = self._closing.enter_context(
            profile(activities=activities, schedule=schedule, on_trace_ready=keep)
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; after `sum_loss`."""
        sizes = {name: file.size for name, file in self._files.items()}
        return asdict(replace(self._counts, seconds=self._seconds, journal=sizes or self._counts.journal))

    def load(self, state: dict[str, Any]) -> None:
        self._counts = Counts(**{each.name: state[each.name] for each in fields(Counts)})
        if process_rank() > 0:
            self._counts.nats = 0.0


def is_due(trainer: pl.Trainer, every_steps: int) -> bool:
    """Whether something that happens every so many steps, and at the last, happens now."""
    return trainer.global_step % every_steps == 0 or trainer.global_step == trainer.max_steps


def memory_in_use(device: torch.device) -> int:
    """Bytes. On a GPU the peak of torch's allocator so far, which the host counts: nothing waits for the device."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
