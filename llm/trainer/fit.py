"""A model, rows and a run's folder -> the trained model: the parts of this package around Lightning's trainer."""

import logging
import signal
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig

from llm.config import Accelerator, DataConfig, OptimizerConfig, TrainerConfig
from llm.data import EvaluationBatches, MixedRows, Rows, TrainingBatches
from llm.logger import RunLogger
from llm.optimizer import extension_step
from llm.run import SIGNALS, launch_id, log, on_signal, process_rank
from llm.trainer.checkpoint import CheckpointFolders, newest_good, step_of
from llm.trainer.health import Health
from llm.trainer.journal import Journal
from llm.trainer.meter import Meter
from llm.trainer.module import NextTokenModule
from llm.trainer.profile import Profile
from llm.trainer.progress import ProgressBar
from llm.trainer.saving import Saving, StopFlag
from llm.trainer.space import require_space
from llm.trainer.throughput import flops_per_token, peak_flops
from llm.trainer.validation import Validation
from llm.trainer.waiting import TimedLoader

CPU_TOKENS = 1024  # per forward pass: the logits of 8192 tokens no longer fit a cache (5.6k against 3.6k tokens/s)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Everything that one training takes."""

    model: nn.Module
    model_config: PreTrainedConfig
    train_rows: Rows
    held_out_rows: Rows
    data: DataConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    seed: int
    folder: Path  # of the run
    logger: RunLogger
    sample: Callable[[], list[dict[str, str]]]  # texts from fixed prompts, by the model as it is
    label: str  # what the progress bar calls it
    identity: dict[str, Any] = field(default_factory=dict)  # of the run: a checkpoint of another one is refused


def fit(task: Fit) -> None:
    """Train task.model in place; an interrupted run goes on from its newest good checkpoint.

    Raises:
        StoppedError: a signal came; the state is saved.
        DivergedError: the gradients, or the validation's loss, are not finite.
        StorageError: the disk has no room for the checkpoints.
    """
    checkpoints = task.folder / "checkpoints"
    resume_from = newest_good(checkpoints, task.identity)
    require_space(checkpoints, task.model, task.trainer)
    micro_batch_size = _micro_batch_size(task)
    batches = TrainingBatches(
        task.train_rows.num_labels,
        batch_size=task.data.batch_size,
        micro_batch_size=micro_batch_size,
        num_steps=task.trainer.max_steps,
        seed=task.seed,
        rank=process_rank(),
        world_size=task.trainer.world_size,
        shares=task.train_rows.shares if isinstance(task.train_rows, MixedRows) else (),
    )
    if resume_from:
        batches.start_step = step_of(resume_from)
        log.info("going on from %s", resume_from)
    held_out = EvaluationBatches(
        task.held_out_rows.num_labels,
        batch_size=micro_batch_size,
        rank=process_rank(),
        world_size=task.trainer.world_size,
        edges=task.held_out_rows.first_rows if isinstance(task.held_out_rows, MixedRows) else (0,),
    )
    task.model.train()  # a loaded model comes in eval mode, without its dropout
    if task.trainer.activation_checkpointing:
        checkpointed: Any = task.model
        checkpointed.activation_checkpointing_enable()
    module = NextTokenModule(
        task.model,
        task.optimizer,
        max_steps=task.trainer.max_steps,
        seed=task.seed,
        compile=task.trainer.compile,
    )
    stop = StopFlag()
    journal = Journal(task.folder, task.logger)
    trainer = _lightning_trainer(task, checkpoints, batches, held_out, stop, journal, micro_batch_size=micro_batch_size)
    _leave_signals_alone(trainer)
    with warnings.catch_warnings(), on_signal(stop.raise_flag), closing(journal):
        _ignore_known_warnings()
        trainer.fit(module, _loader(task.train_rows, batches, task.trainer), ckpt_path=resume_from, weights_only=True)


def _micro_batch_size(task: Fit) -> int:
    """Rows per forward pass: the user's; else all of a step's on a GPU, and few enough for the cache on a CPU."""
    rows = task.data.batch_size // task.trainer.world_size
    if task.trainer.micro_batch_size is not None:
        return task.trainer.micro_batch_size
    if _device(task.trainer).type == "cuda":
        return rows
    most = max(1, CPU_TOKENS // task.data.sequence_length)
    return max(divisor for divisor in range(1, rows + 1) if rows % divisor == 0 and divisor <= most)


def _device(config: TrainerConfig) -> torch.device:
    use_gpu = config.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def _lightning_trainer(
    task: Fit,
    checkpoints: Path,
    batches: TrainingBatches,
    held_out: EvaluationBatches,
    stop: StopFlag,
    journal: Journal,
    *,
    micro_batch_size: int,
) -> pl.Trainer:
    config = task.trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # what it says of itself, we say ourselves
    peak, peak_source = peak_flops(_device(config), config.precision)
    flops = flops_per_token(task.model, task.model_config, sequence_length=task.data.sequence_length)
    log.info("MFU is measured against %.3g FLOP/s (%s); a token takes %.3g FLOPs", peak, peak_source, flops)
    meter = Meter(journal, every_steps=config.log_every_steps, flops_per_token=flops, peak_flops=peak)
    profiles = [Profile(task.folder, meter, num_steps=config.profile_steps)] if config.profile_steps else []
    validation = Validation(
        _loader(task.held_out_rows, held_out, config),
        task.held_out_rows,
        journal=journal,
        meter=meter,
        every_steps=config.validate_every_steps,
        sample=task.sample,
    )
    health = Health(
        meter,
        every_steps=config.log_every_steps,
        stop_after=config.stop_after_skipped_steps,
        documents_of=lambda step: task.train_rows.describe(batches.rows_of(step)),
    )
    saving = Saving(
        checkpoints,
        config,
        meter=meter,
        validation=validation,
        stop=stop,
        kept_step=extension_step(task.optimizer, max_steps=config.max_steps),
    )
    return pl.Trainer(
        accelerator=config.accelerator.value,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy="ddp" if config.world_size > 1 else "auto",
        precision=config.precision.value,
        max_steps=config.max_steps,
        max_epochs=1,
        accumulate_grad_batches=task.data.batch_size // (micro_batch_size * config.world_size),
        callbacks=[meter, *profiles, health, ProgressBar(meter, label=task.label), validation, saving],
        plugins=[
            CheckpointFolders(task.identity),
            TorchElasticEnvironment() if launch_id() else LightningEnvironment(),
        ],
        default_root_dir=task.folder,
        logger=False,
        enable_checkpointing=False,  # Lightning's own; Saving does it
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )


def _loader(rows: Rows, batches: TrainingBatches | EvaluationBatches, config: TrainerConfig) -> DataLoader[Any]:
    return TimedLoader(
        rows,  # type: ignore[arg-type]  # has the __getitems__ that torch looks for
        batch_sampler=batches,  # type: ignore[arg-type]  # gives what __getitems__ takes
        collate_fn=_as_it_is,
        num_workers=config.num_workers,
        pin_memory=_device(config).type == "cuda",
        worker_init_fn=_leave_signals_to_the_run,
    )


def _leave_signals_to_the_run(_worker: int) -> None:
    """A worker ends when the run ends it; a Ctrl-C in the terminal reaches it too, and must not."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    """Collate for rows that come as a whole batch."""
    return batch


def _leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep Lightning from its own SIGTERM handler, which ends within a step, with exit code 0 and nothing saved."""
    trainer._signal_connector.register_signal_handlers = lambda: None


def _ignore_known_warnings() -> None:
    """Warnings of Lightning about choices that are ours."""
    for message in (
        ".*does not have many workers.*",  # a memory-mapped read is faster without (16 against 89 M tokens/s)
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",  # TrainingBatches.start_step
        ".*`training_step` and `validation_step`.*",
        ".*GPU available but not used.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's use of a torch function
        ".*torch.jit.script_method.*",  # what torch.compile imports
    ):
        warnings.filterwarnings("ignore", message=message)
