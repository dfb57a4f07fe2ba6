"""What a run would take, worked out from its config and from what there is already; nothing is trained or written.

Text that is not encoded yet is read for a few seconds. Model and step are worked out on tensors without memory.
"""

import math
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.data import DataConfig, PartConfig
from llm.config.stages import FinetuneStage, PretrainStage
from llm.config.training import Accelerator, Precision
from llm.data import open_corpus
from llm.data.mixed_shards import pool
from llm.run.record import recorded_config
from llm.run.runs import Run, candidates

if TYPE_CHECKING:
    from torch import nn

    from llm.trainer.rehearsal import Memory

READ_SECONDS = 5.0  # at most, to find out how much text there is
MFU_GUESS = {"cpu": 0.4, "cuda": 0.35}  # of a medium model, where no finished run here says better


@dataclass(kw_only=True)
class Estimate:
    """What one run would take; what does not apply to its stage is None."""

    parts: Counter[str] = field(default_factory=Counter)  # parameters
    trainable: int | None = None
    steps: int | None = None
    tokens: float | None = None  # that it is fed in all
    epochs: float | None = None
    is_whole: bool = True  # False: there is more text than was found, and there are fewer epochs
    flops: float | None = None
    memory: "Memory | None" = None
    micro_batch: str = ""
    seconds: float | None = None
    disk: dict[str, float] = field(default_factory=dict)  # bytes, by what takes them
    notes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)  # of the run's, what the next stage goes by


def estimated_run(stage: str, results: dict[str, Any]) -> Run:
    """A run that is not there, with the results that it might have."""
    return Run(Path(), {"stage": stage, "status": "estimated", "results": results})


# Text


def guess_bytes_per_token(vocab_size: int) -> float:
    """Byte-level and character BPE on Korean statutes gave 4.5 at 4,096 and 5.5 to 6.5 at 8,192."""
    return max(2.0, 4.5 + math.log2(vocab_size / 4096))


def estimate_text(data: DataConfig, tokenizer: Run) -> Estimate:
    """How many tokens of training text there are, by a tokenizer that is there or is guessed at."""
    learned = tokenizer.results
    read = [_read(_Text.of(part)) for part in _parts(data)]
    raw_bytes, is_whole = sum(size for size, _ in read), all(whole for _, whole in read)
    how = "all of it read" if is_whole else f"what {READ_SECONDS:g} s of reading found: there is more"
    if tokenizer.is_done:
        per_token = f"{learned['bytes_per_token']:.2f} bytes a token, as the tokenizer's report has it"
    else:
        size = learned["vocab_size"]
        per_token = f"{learned['bytes_per_token']:.1f} bytes a token, a guess from {size} tokens for Korean text"
    tokens = raw_bytes / learned["bytes_per_token"]
    return Estimate(
        tokens=tokens,
        is_whole=is_whole,
        notes=[
            f"Tokens are estimated: {raw_bytes / 1e6:.1f} MB of training text in {data.name} ({how}), at {per_token}."
        ],
        results={
            "vocab_size": learned["vocab_size"],
            "train": {"tokens": tokens, "raw_bytes": raw_bytes},
            "is_whole": is_whole,
        },
    )


def estimate_mixture(results: Mapping[str, dict[str, Any]], parts: Mapping[str, PartConfig]) -> Estimate:
    """The text of all parts, by what their shards have or might have, up to their caps."""
    pools = {name: pool(result["train"], parts[name]) for name, result in results.items()}
    train = {name: result["train"] for name, result in results.items()}
    tokens = sum(size * train[name]["tokens"] / train[name]["raw_bytes"] for name, size in pools.items())
    is_whole = all(result.get("is_whole", True) for result in results.values())
    return Estimate(
        tokens=tokens,
        is_whole=is_whole,
        results={
            "vocab_size": next(iter(results.values()))["vocab_size"],
            "train": {"tokens": tokens, "raw_bytes": sum(pools.values())},
            "is_whole": is_whole,
        },
    )


def _parts(data: DataConfig) -> list[DataConfig]:
    return [data.part(name) for name in sorted(data.parts)] if data.is_mixture else [data]


@dataclass(frozen=True)
class _Text:
    """A data config, equal to every other that reads the same text."""

    key: str
    data: DataConfig = field(compare=False)

    @classmethod
    def of(cls, data: DataConfig) -> "_Text":
        return cls(repr(replace(data, sequence_length=2, batch_size=1, batch_tokens=None)), data)


@cache
def _read(text: _Text) -> tuple[int, bool]:
    """(bytes of training text, whether that is all); jobs of a sweep that share their text read it once."""
    found, end = 0, time.monotonic() + READ_SECONDS
    for document in open_corpus(text.data).texts(held_out=False):
        found += len(document.encode())
        if time.monotonic() > end:
            return found, False
    return found, True


# Training


def estimate_training(
    config: PretrainStage | FinetuneStage, model: Any, *, text: dict[str, Any] | None, leaves: str
) -> Estimate:
    """What all steps take of a model on the meta device, which is used up.

    `text` are the results of its shards, and `leaves` says what is kept at the end: a model or an adapter.
    """
    import torch

    from llm.model import count_parameters
    from llm.trainer.rows import micro_batch_size
    from llm.trainer.throughput import flops_per_token

    trainer, data, is_there = config.trainer, config.data, torch.cuda.is_available()
    trained = count_parameters(model, trainable=True)
    tokens = float(trainer.max_steps * data.batch_size * data.sequence_length)
    made = Estimate(parts=parameters_by_part(model), trainable=trained, steps=trainer.max_steps, tokens=tokens)
    if text:
        made.epochs, made.is_whole = tokens / text["train"]["tokens"], text.get("is_whole", True)
    made.flops = tokens * flops_per_token(model, model.config, sequence_length=data.sequence_length)
    is_on_gpu = trainer.accelerator is not Accelerator.cpu and (is_there or trainer.accelerator is Accelerator.gpu)
    if is_on_gpu and not is_there:
        made.notes.append("No time is said: there is no GPU here to tell it from.")
    else:
        made.seconds, note = _seconds(config, tokens, made.flops, "cuda" if is_on_gpu else "cpu")
        made.notes.append(note)
    rows = micro_batch_size(data, trainer)
    where = f"each of {trainer.world_size} devices" if trainer.world_size > 1 else "one device"
    accumulation = data.batch_size // (rows * trainer.world_size)
    made.micro_batch = f"{rows} rows of {data.sequence_length}, {accumulation} a step on {where}"
    made.memory = estimate_memory(config, model, is_on_gpu=is_on_gpu)
    saved = min(
        trainer.keep_checkpoints + trainer.keep_best, math.ceil(trainer.max_steps / trainer.checkpoint_every_steps)
    )
    made.disk = {"checkpoints": saved * (4 * trained + made.memory.optimizer), leaves: 4 * trained}  # in fp32
    return made


def estimate_memory(config: PretrainStage | FinetuneStage, model: Any, *, is_on_gpu: bool) -> "Memory":
    """What a device holds at the most; `model` is used up."""
    from llm.trainer.rehearsal import rehearse
    from llm.trainer.rows import micro_batch_size

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
        small_chunks=not (is_on_gpu or trainer.compile),
    )
    return memory if is_on_gpu else memory.in_a_process(before)


@cache
def _resident_bytes() -> int:
    """What this process holds before it has worked out a model: what a training's process begins with, too."""
    from llm.run.memory import resident_bytes

    return resident_bytes()


def parameters_by_part(model: "nn.Module") -> Counter[str]:
    """How many parameters each part of a model has, tied ones once, with the adapters on it."""
    from torch import nn

    from llm.model import padding_of

    padding = padding_of(model)
    looked_up = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings().weight  # type: ignore[operator]  # of every Hugging Face model
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        pieces = name.lower()
        if parameter in looked_up:
            part = "embeddings"
        elif parameter is head:
            part = "head"
        elif "norm" in pieces or ".ln_" in pieces:
            part = "norms"
        elif "attn" in pieces:
            part = "attention"
        else:
            part = "MLP" if "mlp" in pieces else "other"
        counts[part] += parameter.numel() - padding.get(parameter, 0)
    return counts


def _seconds(config: PretrainStage | FinetuneStage, tokens: float, flops: float, device: str) -> tuple[float, str]:
    """(how long all steps take, from what that is known).

    A finished run of the same shape on this machine says it best; where there is none, it is a share of the peak.
    """
    if speeds := [run for run in candidates(config.outputs, config.stage) if _is_alike(run, config)]:
        speed = float(speeds[-1].results["tokens_per_second_median"])
        return tokens / speed, f"Time is from {speeds[-1].path}, which made {speed:,.0f} tokens/s here."
    peak, source = _peak(device, config.trainer.precision)
    share = MFU_GUESS[device]
    note = f"Time is a guess: {share:.0%} of {peak:.3g} FLOP/s ({source}); small models reach less."
    return flops / (peak * share * config.trainer.world_size), note


@cache
def _peak(device: str, precision: Precision) -> tuple[float, str]:
    import torch

    from llm.trainer.throughput import peak_flops

    return peak_flops(torch.device(device), precision)


def _is_alike(run: Run, config: PretrainStage | FinetuneStage) -> bool:
    """Whether a finished run of this machine had the same shape, so that it tells how fast this one goes."""
    if not run.is_done or run.record.get("host") != socket.gethostname() or not run.results.get("tokens"):
        return False
    return _shape(run.config) == _shape(recorded_config(config))


def _shape(config: dict[str, Any]) -> Any:
    model = {key: value for key, value in config.get("model", {}).items() if key != "name"}
    data = [config["data"].get(key) for key in ("sequence_length", "batch_size")]
    keys = ("precision", "accelerator", "devices", "micro_batch_size", "compile")
    return model, data, [config["trainer"].get(key) for key in keys], config.get("lora"), config.get("base")
