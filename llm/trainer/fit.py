"""A model, rows and a run's folder -> the trained model: the parts of this package around Lightning's trainer."""

import copy
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from llm.config.data import DataConfig
from llm.config.training import OptimizerConfig, TrainerConfig
from llm.data.rows import Rows, TokenRows
from llm.errors import ConfigError, UserError, first_line
from llm.logger.live import RunLogger
from llm.model import checkpoint_blocks, flops_per_token, halve_experts, halve_residual
from llm.optimizer import extension_step
from llm.run.console import log
from llm.run.devices import peak_flops
from llm.run.launch import on_signal
from llm.trainer.checkpoint import CheckpointFolders, newest_good, require_space, step_of
from llm.trainer.module import AfterStep, NextTokenModule
from llm.trainer.recording import Recorder
from llm.trainer.rows import RunRows, device_of
from llm.trainer.strategy import environment, gather, gathered, is_shared_out, strategy_of

KNOWN_WARNINGS = (  # of Lightning, about choices that are ours
    ".*does not have many workers.*",  # a memory-mapped read is faster without (16 against 89 M tokens/s)
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",  # TrainingBatches.start_step
    ".*`training_step` and `validation_step`.*",
    ".*GPU available but not used.*",
    ".*The `srun` command is available on your system but is not used.*",  # one process of ours needs none
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's use of a torch function
    ".*torch.jit.script_method.*",  # what torch.compile imports
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Everything that one training takes."""

    model: Any  # of Hugging Face transformers, or PEFT's on one
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
        MachineError: the disk has no room for the checkpoints, or a device for a single row.
        ConfigError: torch.compile fails at the model.
    """
    stop: list[str] = []
    if (warmup := task.optimizer.warmup_steps) > (steps := task.trainer.max_steps):
        said = "optimizer.warmup_steps=%d, but the run has %d steps: it ends at %.0f %% of the peak learning rate"
        log.warning(said, warmup, steps, 100 * steps / warmup)
    with warnings.catch_warnings(), on_signal(stop.append):
        for message in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        _train(task, stop)


def _train(task: Fit, stop: list[str]) -> None:
    config, checkpoints = task.trainer, task.folder / "checkpoints"
    rows = RunRows(task.train_rows, task.held_out_rows, task.data, config, seed=task.seed, folder=task.folder)
    model = _model_to_train(task)
    module = NextTokenModule(model, task.optimizer, config, seed=task.seed, rows=rows)
    with _recorder(task, rows) as recorder:
        kept_step = extension_step(task.optimizer, max_steps=config.max_steps)
        after_step = AfterStep(
            config,
            rows,
            recorder,
            checkpoints=checkpoints,
            kept_step=kept_step,
            sample=task.sample,
            whole_model=partial(_whole_model, task),
            stop=stop,
        )
        trainer = _lightning_trainer(task, after_step)
        if resume_from := _resume_from(checkpoints, trainer, module):
            rows.training.start_step = step_of(resume_from)
            log.info("going on from %s", resume_from)
        require_space(checkpoints, task.model, config, kept=int(kept_step is not None))
        try:
            trainer.fit(module, rows.train_loader, ckpt_path=resume_from, weights_only=True)
        except Exception as error:
            _refuse_what_does_not_compile(error)
            rows.explain(error)
            raise
    if is_shared_out(config):
        gather(model, into=task.model)


def _model_to_train(task: Fit) -> nn.Module:
    """task.model; where it will be shared out, a copy, for it stays whole."""
    model: nn.Module = task.model.train()  # a loaded model comes in eval mode, without its dropout
    if task.trainer.activation_checkpointing:
        checkpoint_blocks(task.model, compiled=task.trainer.compile)
    halve_experts(task.model)
    if task.trainer.residual_precision:
        halve_residual(task.model)
    return copy.deepcopy(model) if is_shared_out(task.trainer) else model


def _recorder(task: Fit, rows: RunRows) -> Recorder:
    peak, source = peak_flops(device_of(task.trainer), task.trainer.precision)
    flops = flops_per_token(task.model, task.model.config, sequence_length=task.data.sequence_length)
    log.info("MFU is measured against %.3g FLOP/s (%s); a token takes %.3g FLOPs", peak, source, flops)
    return Recorder(
        task.folder,
        task.logger,
        task.trainer,
        label=task.label,
        flops_per_token=flops,
        bytes_per_token=task.train_rows.raw_bytes / int(task.train_rows.num_labels.sum()),
        peak_flops=peak,
        documents_of=lambda step: task.train_rows.describe(rows.training.rows_of(step)),
        has_blocks=isinstance(task.held_out_rows, TokenRows),
    )


def _resume_from(checkpoints: Path, trainer: pl.Trainer, module: NextTokenModule) -> Path | None:
    """The checkpoint to go on from: rank zero looks, and sets damaged ones aside; the others are told what it found.

    Each by itself, they would rename one folder at once, and could go on from different steps.
    """
    trainer.strategy.connect(module)  # as trainer.fit does once more: it is what the ranks are joined through
    trainer.strategy.setup_environment()
    found: Path | UserError | None = None
    if trainer.is_global_zero:
        try:
            found = newest_good(checkpoints)
        except UserError as error:
            found = error
    found = trainer.strategy.broadcast(found)
    if isinstance(found, UserError):
        raise found
    return found


def _lightning_trainer(task: Fit, callback: pl.Callback) -> pl.Trainer:
    config = task.trainer
    for name in ("pytorch_lightning", "lightning_fabric"):  # what they say of themselves, we say ourselves
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator=config.accelerator.value,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy_of(config),
        max_steps=config.max_steps,
        max_epochs=1,
        callbacks=[callback],
        plugins=[CheckpointFolders(), environment()],
        default_root_dir=task.folder,
        logger=False,
        enable_checkpointing=False,  # Lightning's own; AfterStep does it
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    # Of its own, the first ends within a step, with exit code 0 and nothing saved; the second asks the ranks at each
    # step about the first, for which it waits for the device. AfterStep does both. (A test knows these two by name.)
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _whole_model(task: Fit, module: pl.LightningModule) -> AbstractContextManager[nn.Module]:
    """task.model with the weights of now; it is what is trained, unless that is shared out."""
    assert isinstance(module, NextTokenModule)
    if not is_shared_out(task.trainer):
        return nullcontext(task.model)
    return gathered(module.model, into=task.model, device=module.device)


def _refuse_what_does_not_compile(error: Exception) -> None:
    """Say in one line what torch.compile says in pages: there is no compiler, or it does not take the model.

    Raises:
        ConfigError: it is what failed.
    """
    if isinstance(error, TorchDynamoException):
        raise ConfigError(
            f"trainer.compile=true: torch.compile fails at this model: {first_line(error)[:200].removesuffix('.')}. "
            "Set trainer.compile=false."
        ) from error
