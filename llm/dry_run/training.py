"""A training's config and its model on the meta device -> the FLOPs, time, memory and disk that all its steps take."""

import math
import socket
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from llm.config.training import Accelerator, Precision, Strategy
from llm.dry_run.memory import Memory, rehearse
from llm.model import count_parameters, flops_per_token
from llm.run.devices import peak_flops, resident_bytes, with_precision
from llm.run.record import recorded_config
from llm.run.runs import candidates
from llm.stage.estimate import Estimate
from llm.trainer.rows import micro_batch_size

MFU_GUESS = {"cpu": 0.4, "cuda": 0.35}  # of a medium model, where no finished run here says better


def add_training(made: Estimate, config: Any, model: Any) -> None:
    """Put into an estimate what all steps take; `model` is used up."""
    config = replace(config, trainer=with_precision(config.trainer))
    trainer, data, is_there = config.trainer, config.data, torch.cuda.is_available()
    made.parameters, made.trainable = count_parameters(model), count_parameters(model, trainable=True)
    made.steps = trainer.max_steps
    made.tokens = float(trainer.max_steps * data.batch_size * data.sequence_length)
    made.flops = made.tokens * flops_per_token(model, model.config, sequence_length=data.sequence_length)
    is_on_gpu = trainer.accelerator is not Accelerator.cpu and (is_there or trainer.accelerator is Accelerator.gpu)
    if is_on_gpu and not is_there:
        made.notes.append("No time is said: there is no GPU here to tell it from.")
    else:
        made.seconds, note = _seconds(config, made.tokens, made.flops, "cuda" if is_on_gpu else "cpu")
        made.notes.append(note)
    rows = micro_batch_size(data, trainer)
    made.micro_batch = f"{rows} rows of {data.sequence_length} at once"
    made.memory = memory_of_training(config, model, is_on_gpu=is_on_gpu)
    saved = min(
        trainer.keep_checkpoints + trainer.keep_best, math.ceil(trainer.max_steps / trainer.checkpoint_every_steps)
    )
    is_whole = config.stage == "pretrain" or made.trainable == made.parameters
    left = {"model": 4 * made.parameters} if is_whole else {"adapter": 4 * made.trainable}
    made.disk = {"checkpoints": saved * (4 * made.trainable + made.memory.optimizer)} | left
    if trainer.strategy is Strategy.fsdp:
        made.memory = made.memory.shared_out(trainer.world_size)


def memory_of_training(config: Any, model: Any, *, is_on_gpu: bool) -> Memory:
    """What a device holds at the most; `model` is used up."""
    trainer, data, before = config.trainer, config.data, _resident_bytes()
    rows = micro_batch_size(data, trainer)
    memory = rehearse(
        model,
        config.optimizer,
        precision=trainer.precision,
        rows=rows,
        sequence_length=data.sequence_length,
        accumulation=data.batch_size // (rows * trainer.world_size),
        checkpointing=trainer.activation_checkpointing,
        is_residual_halved=trainer.residual_precision is not None,
        compile=trainer.compile,
        on_gpu=is_on_gpu,
    )
    return memory if is_on_gpu else memory.in_a_process(before)


@cache
def _resident_bytes() -> int:
    """What this process holds before it has worked out a model: what a training's process begins with, too."""
    return resident_bytes()


def _seconds(config: Any, tokens: float, flops: float, device: str) -> tuple[float, str]:
    """(how long all steps take, from what that is known).

    A finished run of the same shape on this machine says it best; where there is none, it is a share of the peak.
    """
    here = [run for run in candidates(config.outputs, config.stage) if run.record.get("host") == socket.gethostname()]
    shape = _shape(recorded_config(config))
    if alike := [run for run in here if run.is_done and run.results.get("tokens") and _shape(run.config) == shape]:
        speed = float(alike[-1].results["tokens_per_second_median"])
        return tokens / speed, f"Time is from {alike[-1].path}, which made {speed:,.0f} tokens/s here."
    peak, source = _peak(device, config.trainer.precision)
    note = f"Time is a guess: {MFU_GUESS[device]:.0%} of {peak:.3g} FLOP/s ({source}); small models reach less."
    return flops / (peak * MFU_GUESS[device] * config.trainer.world_size), note


@cache
def _peak(device: str, precision: Precision) -> tuple[float, str]:
    return peak_flops(torch.device(device), precision)


def _shape(config: dict[str, Any]) -> Any:
    model = {key: value for key, value in config.get("model", {}).items() if key != "name"}
    data = [config["data"].get(key) for key in ("sequence_length", "batch_size")]
    keys = ("precision", "accelerator", "devices", "micro_batch_size", "compile")
    return model, data, [config["trainer"].get(key) for key in keys], config.get("lora"), config.get("base")
