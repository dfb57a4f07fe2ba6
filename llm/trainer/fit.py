"""A model, rows and a run's folder -> the trained model: the parts of this package around Lightning's trainer."""

import copy
import logging
import signal
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig

from llm.config import Accelerator, DataConfig, OptimizerConfig, TrainerConfig
from llm.data import EvaluationBatches, MixedRows, Rows, TrainingBatches
from llm.errors import ConfigError, UserError
from llm.logger import RunLogger
from llm.optimizer import extension_step
from llm.run import SIGNALS, is_on_slurm, log, on_signal, process_rank
from llm.trainer.checkpoint import CheckpointFolders, newest_good, step_of
from llm.trainer.compiler import refuse_what_does_not_compile
from llm.trainer.health import Health
from llm.trainer.journal import Journal
from llm.trainer.memory import release
from llm.trainer.meter import Meter
from llm.trainer.micro_batch import MicroBatches, kept_size
from llm.trainer.module import NextTokenModule
from llm.trainer.profile import Profile
from llm.trainer.progress import ProgressBar
from llm.trainer.saving import Saving, StopFlag
from llm.trainer.space import require_space
from llm.trainer.strategy import environment, gather, gathered, is_shared_out, strategy_of
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


def require_rows(rows: Rows, config: TrainerConfig) -> None:
    """Refuse more devices than there are rows: known as soon as these are read, before there is a model.

    Raises:
        ConfigError: there are more.
    """
    if len(rows) < config.world_size:
        raise ConfigError(
            f"trainer.devices={config.devices} on trainer.num_nodes={config.num_nodes} share out {len(rows)} training "
            "rows, which leaves some without one. Use fewer devices, or more text."
        )


def fit(task: Fit) -> None:
    """Train task.model in place; an interrupted run goes on from its newest good checkpoint.

    Raises:
        StoppedError: a signal came; the state is saved. Or one of several devices ran out of memory.
        DivergedError: the gradients, or the validation's loss, are not finite.
        StorageError: the disk has no room for the checkpoints.
        ShortOfMemoryError: a device has no room for a single row.
        ConfigError: there are more devices than rows, or torch.compile fails at the model.
    """
    require_rows(task.train_rows, task.trainer)
    if (warmup := task.optimizer.warmup_steps) > (steps := task.trainer.max_steps):
        log.warning(
            "optimizer.warmup_steps=%d, but the run has %d steps: it ends at %.0f %% of the peak learning rate",
            warmup,
            steps,
            100 * steps / warmup,
        )
    stop, journal = StopFlag(), Journal(task.folder, task.logger)
    with warnings.catch_warnings(), on_signal(stop.raise_flag), closing(journal):
        _ignore_known_warnings()
        while not _attempt(task, stop, journal):
            release(_device(task.trainer))


def _attempt(task: Fit, stop: StopFlag, journal: Journal) -> bool:
    """Whether training came to its end; if not, memory ran out, and the next attempt takes fewer rows at once."""
    micro_rows, is_tried = _micro_batch_size(task)
    batches, held_out = _training_batches(task, micro_rows), _held_out_batches(task, micro_rows)
    task.model.train()  # a loaded model comes in eval mode, without its dropout
    if task.trainer.activation_checkpointing:
        checkpointed: Any = task.model
        checkpointed.activation_checkpointing_enable()
    is_shared = is_shared_out(task.trainer)
    trained = copy.deepcopy(task.model) if is_shared else task.model
    module = NextTokenModule(
        trained,
        task.optimizer,
        max_steps=task.trainer.max_steps,
        seed=task.seed,
        compile=task.trainer.compile,
    )
    saving, callbacks = _callbacks(task, batches, held_out, stop, journal)
    micro_batches = MicroBatches(
        task.folder,
        batches,
        held_out,
        asked=task.trainer.micro_batch_size,
        is_tried=is_tried,
        sequence_length=task.data.sequence_length,
        saving=saving,
    )
    trainer = _lightning_trainer(task, [*callbacks, micro_batches], accumulate=batches.micro_batches_per_step)
    _take_over_signals(trainer)
    if resume_from := _resume_from(task, trainer, module):
        batches.start_step = step_of(resume_from)
        log.info("going on from %s", resume_from)
    is_extensible = extension_step(task.optimizer, max_steps=task.trainer.max_steps) is not None
    require_space(task.folder / "checkpoints", task.model, task.trainer, kept=int(is_extensible))
    loader = _loader(task.train_rows, batches, task.trainer)
    try:
        trainer.fit(module, loader, ckpt_path=resume_from, weights_only=True)
    except Exception as error:
        refuse_what_does_not_compile(error)
        micro_batches.explain(error)
        return False
    if is_shared:
        gather(trained, into=task.model)
    return True


def _resume_from(task: Fit, trainer: pl.Trainer, module: NextTokenModule) -> Path | None:
    """The checkpoint to go on from: rank zero looks, and sets damaged ones aside; the others are told what it found.

    Each by itself, they would rename one folder at once, and could go on from different steps.
    """
    trainer.strategy.connect(module)  # as trainer.fit does once more: it is what the ranks are joined through
    trainer.strategy.setup_environment()
    found: Path | UserError | None = None
    if trainer.is_global_zero:
        try:
            found = newest_good(task.folder / "checkpoints", task.identity)
        except UserError as error:
            found = error
    found = trainer.strategy.broadcast(found)
    if isinstance(found, UserError):
        raise found
    return found


def _training_batches(task: Fit, micro_rows: int) -> TrainingBatches:
    return TrainingBatches(
        task.train_rows.num_labels,
        batch_size=task.data.batch_size,
        micro_batch_size=micro_rows,
        num_steps=task.trainer.max_steps,
        seed=task.seed,
        rank=process_rank(),
        world_size=task.trainer.world_size,
        shares=task.train_rows.shares if isinstance(task.train_rows, MixedRows) else (),
    )


def _held_out_batches(task: Fit, micro_rows: int) -> EvaluationBatches:
    return EvaluationBatches(
        task.held_out_rows.num_labels,
        batch_size=micro_rows,
        rank=process_rank(),
        world_size=task.trainer.world_size,
        edges=task.held_out_rows.first_rows if isinstance(task.held_out_rows, MixedRows) else (0,),
    )


def _micro_batch_size(task: Fit) -> tuple[int, bool]:
    """(rows per forward pass to begin with, whether to try first if they fit).

    What the run goes on with; else as it begins.
    """
    rows, asked = task.data.batch_size // task.trainer.world_size, task.trainer.micro_batch_size
    if size := kept_size(task.folder, rows=rows, asked=asked):
        return size, False
    return micro_batch_size(task.data, task.trainer), asked is None and _is_tried(_device(task.trainer))


def micro_batch_size(data: DataConfig, config: TrainerConfig) -> int:
    """Rows per forward pass: the user's; else all of a step's on a GPU, and few enough for the cache on a CPU."""
    rows = data.batch_size // config.world_size
    if config.micro_batch_size is not None:
        return config.micro_batch_size
    if _is_tried(_device(config)):
        return rows
    most = max(1, CPU_TOKENS // data.sequence_length)
    return max(divisor for divisor in range(1, rows + 1) if rows % divisor == 0 and divisor <= most)


def _is_tried(device: torch.device) -> bool:
    return device.type == "cuda"


def _device(config: TrainerConfig) -> torch.device:
    use_gpu = config.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def _callbacks(
    task: Fit, batches: TrainingBatches, held_out: EvaluationBatches, stop: StopFlag, journal: Journal
) -> tuple[Saving, list[pl.Callback]]:
    """What looks on as steps end, in the order in which it does; Saving comes last, and by itself too."""
    config = task.trainer
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
        whole_model=partial(_whole_model, task),
    )
    health = Health(
        meter,
        every_steps=config.log_every_steps,
        stop_after=config.stop_after_skipped_steps,
        documents_of=lambda step: task.train_rows.describe(batches.rows_of(step)),
    )
    saving = Saving(
        task.folder / "checkpoints",
        config,
        meter=meter,
        validation=validation,
        stop=stop,
        kept_step=extension_step(task.optimizer, max_steps=config.max_steps),
    )
    return saving, [meter, *profiles, health, ProgressBar(meter, label=task.label), validation, saving]


def _lightning_trainer(task: Fit, callbacks: list[pl.Callback], *, accumulate: int) -> pl.Trainer:
    config = task.trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # what it says of itself, we say ourselves
    return pl.Trainer(
        accelerator=config.accelerator.value,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy_of(config),
        precision=config.precision.value,
        max_steps=config.max_steps,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=callbacks,
        plugins=[CheckpointFolders(task.identity), environment()],
        default_root_dir=task.folder,
        logger=False,
        enable_checkpointing=False,  # Lightning's own; Saving does it
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )


def _whole_model(task: Fit, module: pl.LightningModule) -> AbstractContextManager[nn.Module]:
    """task.model with the weights of now; it is what is trained, unless that is shared out."""
    assert isinstance(module, NextTokenModule)
    if not is_shared_out(task.trainer):
        return nullcontext(task.model)
    return gathered(module.model, into=task.model, device=module.device)


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
    """A worker ends when the run ends it; a Ctrl-C in the terminal reaches it too, and must not.

    Nor must Slurm's SIGTERM, which comes to every process of a job: a worker also ends when it is told to, or alone.
    """
    for number in SIGNALS:
        is_for_it = number == signal.SIGTERM and not is_on_slurm()
        signal.signal(number, signal.SIG_DFL if is_for_it else signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    """Collate for rows that come as a whole batch."""
    return batch


def _take_over_signals(trainer: pl.Trainer) -> None:
    """Keep Lightning from its own SIGTERM handler, which ends within a step, with exit code 0 and nothing saved.

    And from asking the ranks about it before each micro-batch, for which it waits for the device; Saving asks them.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def _ignore_known_warnings() -> None:
    """Warnings of Lightning about choices that are ours."""
    for message in (
        ".*does not have many workers.*",  # a memory-mapped read is faster without (16 against 89 M tokens/s)
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",  # TrainingBatches.start_step
        ".*`training_step` and `validation_step`.*",
        ".*GPU available but not used.*",
        ".*The `srun` command is available on your system but is not used.*",  # one process of ours needs none
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's use of a torch function
        ".*torch.jit.script_method.*",  # what torch.compile imports
    ):
        warnings.filterwarnings("ignore", message=message)
