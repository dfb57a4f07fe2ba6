"""The config of a job -> what it would take, make and reuse; nothing is trained, and nothing is written.

Each stage's own code is followed up to the first run that is not finished (NotMadeError). Model and step are worked out
on tensors without memory. What the data and the tokenizer would give is taken from finished runs, else estimated from
the text, and the notes say from what.
"""

import math
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config import Reuse
from llm.errors import ConfigError
from llm.run import NotMadeError, Run, candidates, load, read_record, with_precision

if TYPE_CHECKING:
    from torch import nn

    from llm.trainer.rehearsal import Memory

CHAIN = {"pretrain": ("tokenizer", "shards", "pretrain"), "shards": ("tokenizer", "shards")}  # of one command
READ_SECONDS = 5.0  # at most, to find out how much text there is
MFU_GUESS = {"cpu": 0.4, "cuda": 0.35}  # of a medium model, where no finished run here says better
GGUF_SHARE = {"f32": 1.0, "f16": 0.5, "bf16": 0.5, "q8_0": 34 / 128}  # of the bytes that fp32 takes
PARTS = ("embeddings", "attention", "MLP", "norms", "head", "other")


@dataclass(frozen=True, kw_only=True)
class TrainingText:
    """Training text in tokens."""

    vocab_size: int
    tokens: float
    bytes_per_token: float
    is_whole: bool  # False: there is more of it than these


@dataclass(kw_only=True)
class Job:
    """What one job would take; what does not apply to its stage is None."""

    label: str
    stage: str
    folder: str = ""
    first_missing: str = ""  # folder of the run that would be made first: jobs that share it share its shards
    reused: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    trainable: int | None = None
    steps: int | None = None
    steps_done: int = 0
    tokens: float | None = None  # that the job is fed in all
    epochs: float | None = None
    is_whole: bool = True  # False: there is more text than was found, and there are fewer epochs
    flops: float | None = None  # of the steps that are left
    memory: "Memory | None" = None
    micro_batch: str = ""
    seconds: float | None = None
    disk: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def survey(config: Any, label: str = "") -> Job:
    """What one job would take.

    Raises:
        ConfigError: as the job itself would, of what can be known before any work.
    """
    job = Job(label=label, stage=config.stage)
    if lacking := _lacking(config):
        job.notes.append(f"Not on this machine: {lacking}")
    chain = CHAIN.get(config.stage, (config.stage,))
    try:
        run = import_module(f"llm.stage.{config.stage}").run(config)
    except NotMadeError as missing:
        if config.reuse is Reuse.require:
            raise ConfigError(f"reuse=require, but there is no finished run {missing.folder}.") from None
        first, job.first_missing = chain.index(missing.plan.stage), str(missing.folder)
        job.made = list(chain[first:])
        job.reused = [str(missing.plan.folders[name]) for name in chain[:first]]
        job.folder = str(missing.folder) if missing.plan.stage == config.stage else ""
        _say_standing(job, config, missing)
        _estimate(job, config, missing)
        return job
    job.reused, job.folder = [str(run.path)], str(run.path)
    job.notes.append(f"{run.path} is finished: it would be reused as it is.")
    return job


def _lacking(config: Any) -> str | None:
    """What this machine lacks of what a training asks for: a cluster's jobs are looked at where there is no GPU."""
    if config.stage not in ("pretrain", "finetune"):
        return None
    from llm.stage._training import require_machine

    try:
        require_machine(config.trainer)
    except ConfigError as error:
        return str(error)
    return None


def _say_standing(job: Job, config: Any, missing: NotMadeError) -> None:
    record = read_record(missing.folder)
    if record is None or config.reuse is Reuse.never:
        return
    steps = [int(path.name.rpartition("-")[2]) for path in (missing.folder / "checkpoints").glob("step-*")]
    if missing.plan.stage == config.stage and steps:
        job.steps_done = max(steps)
        job.notes.append(f"{missing.folder} would go on from step {job.steps_done}.")
    else:
        job.notes.append(f"{missing.folder} was begun and would go on.")


def _estimate(job: Job, config: Any, missing: NotMadeError) -> None:
    if config.stage == "finetune":
        _estimate_training(
            job, missing.plan.config, *_tuned_model(missing.plan.config, missing.plan.folders["base"]), text=None
        )
        return
    if config.stage == "export":
        job.disk.update(_disk_of_export(config.export, load(Path(missing.plan.folders["run"]))))
        return
    if config.stage == "evaluate":
        if shards := missing.plan.folders.get("shards"):
            job.tokens = load(Path(shards)).results["held_out"]["tokens"]
        return
    config = replace(config, trainer=with_precision(config.trainer)) if config.stage == "pretrain" else config
    config = missing.plan.config if missing.plan.stage == "pretrain" else config
    text = _text(job, config, missing)
    if "shards" in job.made:
        width = 2 if text.vocab_size <= 2**16 else 4
        job.disk["shards"] = width * text.tokens / (1 - config.data.held_out_share)
    if config.stage != "pretrain":
        job.tokens = text.tokens
        return
    model = _model(config, text.vocab_size)
    config = replace(config, trainer=replace(config.trainer, max_steps=_steps(config, text, model)))
    _estimate_training(job, config, model, model.config, text=text)


def _disk_of_export(export: Any, run: Run) -> dict[str, float]:
    """Bytes of the files that an export writes: the weights in its dtype, from those of the runs, which are in fp32."""
    from llm.run import model_of, own_folder

    of = model_of(run).check().weights if export.merge else own_folder(run)
    weights = sum(path.stat().st_size for path in of.glob("*.safetensors"))
    share = {"fp32": 1.0, "fp16": 0.5, "bf16": 0.5}[export.dtype.name]
    return {"model" if export.merge else "adapter": weights * share} | (
        {"model.gguf": weights * GGUF_SHARE[export.gguf.name]} if export.gguf else {}
    )


def _text(job: Job, config: Any, missing: NotMadeError) -> TrainingText:
    """How many tokens there are to train on, from the nearest that is made."""
    folders, note = missing.plan.folders, ""
    if "shards" in folders:
        results = load(Path(folders["shards"])).results
        train = results["train"]
        return TrainingText(
            vocab_size=results["vocab_size"],
            tokens=train["tokens"],
            bytes_per_token=train["raw_bytes"] / train["tokens"],
            is_whole=True,
        )
    sizes, whole = _raw_bytes(_AsText(config.data))
    how = "all of it read" if whole else f"what {READ_SECONDS:g} s of reading found: there is more"
    if "tokenizer" in folders:
        trained = load(Path(folders["tokenizer"])).results
        vocab_size, per_token = trained["vocab_size"], trained["bytes_per_token"]
        note = f"{per_token:.2f} bytes a token, as the tokenizer's report has it"
    else:
        from llm.stage import tokenizer as tokenizer_stage

        vocab_size = tokenizer_stage.vocab_size(config.tokenizer)
        # Byte-level and character BPE on Korean statutes gave 4.5 at 4,096 and 5.5 to 6.5 at 8,192.
        per_token = max(2.0, 4.5 + math.log2(vocab_size / 4096))
        note = f"{per_token:.1f} bytes a token, a guess from {vocab_size} tokens for Korean text"
    raw_bytes = _capped(sizes, per_token, config.data)
    job.notes.append(f"Tokens are estimated: {raw_bytes / 1e6:.1f} MB of training text ({how}), at {note}.")
    return TrainingText(vocab_size=vocab_size, tokens=raw_bytes / per_token, bytes_per_token=per_token, is_whole=whole)


class _AsText:
    """A data config, equal to one that reads the same: jobs of a sweep that share their text read it once."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self._key = repr(replace(data, sequence_length=2, batch_size=1, batch_tokens=None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _AsText) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@cache
def _raw_bytes(text: _AsText) -> tuple[dict[str, int], bool]:
    """(bytes of training text of each part of a mixture, or of the text as its only part; whether that is all)."""
    from llm.data import open_corpus, open_parts

    corpora = open_parts(text.data) if text.data.is_mixture else {text.data.name: open_corpus(text.data)}
    found, ends = dict.fromkeys(corpora, 0), time.monotonic()
    whole = True
    for name, corpus in corpora.items():
        ends += READ_SECONDS / len(corpora)
        for document in corpus.texts(held_out=False):
            found[name] += len(document.encode())
            if time.monotonic() > ends:
                whole = False
                break
    return found, whole


def _capped(sizes: dict[str, int], bytes_per_token: float, data: Any) -> int:
    """Bytes of an epoch: of a mixture what the caps of its parts leave."""
    from llm.stage._mixture import pool

    parts = data.parts or {}
    train = {name: {"raw_bytes": size, "tokens": max(1, round(size / bytes_per_token))} for name, size in sizes.items()}
    return sum(pool(train[name], parts[name]) if name in parts else size for name, size in sizes.items())


@cache
def _peak(device: str, precision: Any) -> tuple[float, str]:
    import torch

    from llm.trainer.throughput import peak_flops

    return peak_flops(torch.device(device), precision)


def _steps(config: Any, text: TrainingText, model: Any) -> int:
    """Optimizer steps, of a budget too: by the very rule that the stage has, given what is known of the shards."""
    from llm.stage._budget import steps_within_budget

    results = {
        "train": {"tokens": text.tokens, "raw_bytes": text.tokens * text.bytes_per_token},
        "vocab_size": text.vocab_size,
    }
    if config.trainer.max_flops is not None:
        from llm.trainer.throughput import flops_per_token

        a_token = flops_per_token(model, model.config, sequence_length=config.data.sequence_length)
        tokens = max(1, round(config.trainer.max_flops / a_token))
        config = replace(config, trainer=replace(config.trainer, max_flops=None, max_tokens=tokens))
    return steps_within_budget(config, Run(Path(), {"stage": "shards", "results": results}))


def _model(config: Any, vocab_size: int) -> Any:
    import torch

    from llm import model as models
    from llm.tokenizer import Special

    with torch.device("meta"):
        return models.build(
            config.model, vocab_size=vocab_size, special=Special(bos_id=0, eos_id=0, pad_id=0, tokens=())
        )


def _tuned_model(config: Any, folder: str) -> tuple[Any, Any]:
    """(the base as it is to be trained, the base's config), of a fine-tuning."""
    import torch

    from llm import model as models
    from llm.config import Method
    from llm.stage._base import find_base, outline

    base, tuning = find_base(config.outputs, folder), config.lora
    if tuning.method in (Method.pissa, Method.qlora):  # begun, or held, in a way that no shape shows
        tuning = replace(tuning, method=Method.lora)
    model = outline(base).to(getattr(torch, tuning.base_precision.value))
    made = model.config
    with torch.device("meta"):
        return (model if tuning.method is Method.full else models.add_lora(model, tuning)), made


def _estimate_training(job: Job, config: Any, model: Any, model_config: Any, *, text: TrainingText | None) -> None:
    import torch

    from llm.config import Accelerator, Method
    from llm.model import count_parameters
    from llm.trainer.fit import micro_batch_size
    from llm.trainer.throughput import flops_per_token

    trainer, data = config.trainer, config.data
    job.parts, job.steps = parameters_by_part(model), trainer.max_steps
    job.trainable = count_parameters(model, trainable=True)
    job.tokens = float(job.steps * data.batch_size * data.sequence_length)
    if text:
        job.epochs, job.is_whole = job.tokens / text.tokens, text.is_whole
    left = job.tokens * (job.steps - job.steps_done) / job.steps
    job.flops = left * flops_per_token(model, model_config, sequence_length=data.sequence_length)
    is_there = torch.cuda.is_available()
    if trainer.accelerator is Accelerator.gpu and not is_there:
        job.notes.append("No time is said: there is no GPU here to tell it from.")
    else:
        on_gpu = trainer.accelerator is not Accelerator.cpu and is_there
        job.seconds, note = _seconds(config, left, job.flops, "cuda" if on_gpu else "cpu")
        job.notes.append(note)
    devices = getattr(trainer, "world_size", trainer.devices)
    rows = micro_batch_size(data, trainer)
    accumulation = data.batch_size // (rows * devices)
    where = f"each of {devices} devices" if devices > 1 else "one device"
    job.micro_batch = f"{rows} rows of {data.sequence_length}, {accumulation} a step on {where}"
    trained = job.trainable * 4  # bytes of parameters, which are kept in fp32
    is_on_gpu = trainer.accelerator is not Accelerator.cpu and (is_there or trainer.accelerator is Accelerator.gpu)
    job.memory = _memory(config, model, is_on_gpu=is_on_gpu)
    kept = trainer.keep_checkpoints + trainer.keep_best
    saved = max(1, min(kept, math.ceil(job.steps / trainer.checkpoint_every_steps)))
    job.disk["checkpoints"] = saved * (trained + job.memory.optimizer)
    is_adapter = config.stage == "finetune" and config.lora.method is not Method.full
    job.disk["adapter" if is_adapter else "model"] = trained


def memory_of(config: Any) -> int:
    """Bytes that each process of a training takes on a CPU, by its settings alone: no text is read.

    Raises:
        ConfigError: there is no such base or model.
    """
    config = replace(config, trainer=with_precision(config.trainer))
    if config.stage == "finetune":
        model, _ = _tuned_model(config, config.base)
    else:
        from llm import model as models
        from llm.stage import tokenizer as tokenizer_stage

        if config.model.path is not None:
            config = replace(config, model=models.as_it_is(config.model))
        model = _model(config, tokenizer_stage.vocab_size(config.tokenizer))
    return _memory(config, model, is_on_gpu=False).total


def _memory(config: Any, model: Any, *, is_on_gpu: bool) -> "Memory":
    """What a device holds at the most; `model` is used up."""
    from llm.trainer.fit import micro_batch_size
    from llm.trainer.rehearsal import rehearse

    trainer, data, before = config.trainer, config.data, _resident_bytes()
    rows = micro_batch_size(data, trainer)
    memory = rehearse(
        model,
        config.optimizer,
        precision=trainer.precision,
        rows=rows,
        sequence_length=data.sequence_length,
        accumulation=data.batch_size // (rows * trainer.world_size),
        checkpointing=getattr(trainer, "activation_checkpointing", False),
        small_chunks=not (is_on_gpu or trainer.compile),
    )
    return memory if is_on_gpu else memory.in_a_process(before)


@cache
def _resident_bytes() -> int:
    """What this process holds before it has worked out a model: what a training's process begins with, too."""
    from llm.trainer.memory import resident_bytes

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


def _seconds(config: Any, tokens: float, flops: float, device: str) -> tuple[float, str]:
    """(how long the steps that are left take, from what that is known).

    A finished run of the same shape on this machine says it best; where there is none, it is a share of the peak.
    """
    if speeds := [run for run in candidates(config.outputs, config.stage) if _is_alike(run, config)]:
        speed = float(speeds[-1].results["tokens_per_second_median"])
        return tokens / speed, f"Time is from {speeds[-1].path}, which made {speed:,.0f} tokens/s here."
    peak, source = _peak(device, config.trainer.precision)
    devices = getattr(config.trainer, "world_size", config.trainer.devices)
    share = MFU_GUESS[device]
    note = f"Time is a guess: {share:.0%} of {peak:.3g} FLOP/s ({source}); small models reach less."
    return flops / (peak * share * devices), note


def _is_alike(run: Run, config: Any) -> bool:
    """Whether a finished run of this machine had the same shape, so that it tells how fast this one goes."""
    if not run.is_done or run.record.get("host") != socket.gethostname() or not run.results.get("tokens"):
        return False
    return _shape(run.config) == _shape(_plain(asdict(config)))


def _shape(config: dict[str, Any]) -> Any:
    model = {key: value for key, value in config.get("model", {}).items() if key != "name"}
    data = [config["data"].get(key) for key in ("sequence_length", "batch_size")]
    keys = ("precision", "accelerator", "devices", "micro_batch_size", "compile")
    return model, data, [config["trainer"].get(key) for key in keys], config.get("lora"), config.get("base")


def _plain(value: Any) -> Any:
    """As config.yaml has it: enums by their names."""
    from enum import Enum

    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value
