"""A model, rows and a run's folder -> the trained model: the parts of this package around Lightning's trainer."""

import copy
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from transformers import PreTrainedConfig

from llm.config.data import DataConfig
from llm.config.training import Accelerator, OptimizerConfig, TrainerConfig
from llm.data import EvaluationBatches, MixedRows, Rows, TrainingBatches
from llm.environment import process_rank
from llm.errors import ConfigError, UserError
from llm.logger import RunLogger
from llm.optimizer import extension_step
from llm.run.console import log
from llm.run.signals import on_signal
from llm.trainer.checkpoint import CheckpointFolders, newest_good, step_of
from llm.trainer.compiler import refuse_what_does_not_compile
from llm.trainer.loading import StepRows, loader
from llm.trainer.memory import MicroBatches, kept_size
from llm.trainer.module import AfterStep, NextTokenModule
from llm.trainer.recording import Recorder
from llm.trainer.saving import Saving, StopFlag, require_space
from llm.trainer.strategy import environment, gather, gathered, is_shared_out, strategy_of
from llm.trainer.throughput import flops_per_token, peak_flops
from llm.trainer.validation import Validation

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
    stop = StopFlag()
    with warnings.catch_warnings(), on_signal(stop.set):
        _ignore_known_warnings()
        _train(task, stop)


def _train(task: Fit, stop: StopFlag) -> None:
    config, device, checkpoints = task.trainer, _device(task.trainer), task.folder / "checkpoints"
    batches, held_out = _batches(task)
    micro_batches = MicroBatches(
        task.folder,
        StepRows(task.train_rows),
        batches,
        held_out,
        asked=config.micro_batch_size,
        sequence_length=task.data.sequence_length,
    )
    train_loader = loader(StepRows(task.train_rows), batches, device=device, num_workers=config.num_workers)
    held_out_loader = loader(task.held_out_rows, held_out, device=device, num_workers=config.num_workers)
    model = _model_to_train(task)
    module = NextTokenModule(model, task.optimizer, config, seed=task.seed, micro_batches=micro_batches)
    flops, peak = _measure(task, device)
    with Recorder(
        task.folder,
        task.logger,
        config,
        label=task.label,
        loader=train_loader,
        flops_per_token=flops,
        peak_flops=peak,
        documents_of=lambda step: task.train_rows.describe(batches.rows_of(step)),
    ) as recorder:
        validation = Validation(
            held_out_loader,
            task.held_out_rows,
            recorder=recorder,
            precision=config.precision,
            sample=task.sample,
            whole_model=partial(_whole_model, task),
        )
        kept_step = extension_step(task.optimizer, max_steps=config.max_steps)
        saving = Saving(checkpoints, config, recorder=recorder, stop=stop, kept_step=kept_step)
        trainer = _lightning_trainer(task, AfterStep(config, recorder, validation, saving))
        if resume_from := _resume_from(task, trainer, module):
            batches.start_step = step_of(resume_from)
            log.info("going on from %s", resume_from)
        require_space(checkpoints, task.model, config, kept=int(kept_step is not None))
        try:
            trainer.fit(module, train_loader, ckpt_path=resume_from, weights_only=True)
        except Exception as error:
            refuse_what_does_not_compile(error)
            micro_batches.explain(error)
            raise
    if is_shared_out(config):
        gather(model, into=task.model)


def _model_to_train(task: Fit) -> nn.Module:
    """task.model; where it will be shared out, a copy, for it stays whole."""
    task.model.train()  # a loaded model comes in eval mode, without its dropout
    if task.trainer.activation_checkpointing:
        checkpointed: Any = task.model
        checkpointed.activation_checkpointing_enable()
    return copy.deepcopy(task.model) if is_shared_out(task.trainer) else task.model


def _measure(task: Fit, device: torch.device) -> tuple[float, float]:
    """(FLOPs of a token, FLOP/s of the device): what MFU is made of."""
    peak, source = peak_flops(device, task.trainer.precision)
    flops = flops_per_token(task.model, task.model_config, sequence_length=task.data.sequence_length)
    log.info("MFU is measured against %.3g FLOP/s (%s); a token takes %.3g FLOPs", peak, source, flops)
    return flops, peak


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


def _batches(task: Fit) -> tuple[TrainingBatches, EvaluationBatches]:
    """The order of the rows to train on, and of the held-out ones; cut as the run was that is gone on with."""
    rows, config = task.data.batch_size // task.trainer.world_size, task.trainer
    kept = kept_size(task.folder, rows=rows, asked=config.micro_batch_size)
    size = kept or micro_batch_size(task.data, config)
    train, held_out = task.train_rows, task.held_out_rows
    training = TrainingBatches(
        train.num_labels,
        batch_size=task.data.batch_size,
        micro_batch_size=size,
        num_steps=config.max_steps,
        seed=task.seed,
        rank=process_rank(),
        world_size=config.world_size,
        shares=train.shares if isinstance(train, MixedRows) else (),
    )
    evaluation = EvaluationBatches(
        held_out.num_labels,
        batch_size=size,
        rank=process_rank(),
        world_size=config.world_size,
        edges=held_out.first_rows if isinstance(held_out, MixedRows) else (0,),
    )
    return training, evaluation


def micro_batch_size(data: DataConfig, config: TrainerConfig) -> int:
    """Rows per forward pass to begin with: the user's; else all of a step's on a GPU, as suit the cache on a CPU."""
    rows = data.batch_size // config.world_size
    if config.micro_batch_size is not None:
        return config.micro_batch_size
    if _device(config).type == "cuda":
        return rows
    most = max(1, CPU_TOKENS // data.sequence_length)
    return max(divisor for divisor in range(1, rows + 1) if rows % divisor == 0 and divisor <= most)


def _device(config: TrainerConfig) -> torch.device:
    use_gpu = config.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def _lightning_trainer(task: Fit, callback: pl.Callback) -> pl.Trainer:
    config = task.trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # what it says of itself, we say ourselves
    trainer = pl.Trainer(
        accelerator=config.accelerator.value,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy_of(config),
        max_steps=config.max_steps,
        max_epochs=1,
        callbacks=[callback],
        plugins=[CheckpointFolders(task.identity), environment()],
        default_root_dir=task.folder,
        logger=False,
        enable_checkpointing=False,  # Lightning's own; Saving does it
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    # Of its own, the first ends within a step, with exit code 0 and nothing saved; the second asks the ranks at each
    # step about the first, for which it waits for the device. Saving does both. (A test knows these two by name.)
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _whole_model(task: Fit, module: pl.LightningModule) -> AbstractContextManager[nn.Module]:
    """task.model with the weights of now; it is what is trained, unless that is shared out."""
    assert isinstance(module, NextTokenModule)
    if not is_shared_out(task.trainer):
        return nullcontext(task.model)
    return gathered(module.model, into=task.model, device=module.device)


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
