"""A shape and a mode -> what trains a model of it on the rows of a clock: ours, and what a user would pick instead.

Each contestant keeps its model, so that what it compiled serves all its rounds; each takes the same rows, labels,
optimizer, clipping and schedule.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from benchmarks.harness import asked_of_trainer, device, train_by_fit
from llm.config.training import Architecture, ModelConfig, OptimizerConfig, Precision
from llm.data.order import MicroBatch
from llm.model import build
from llm.tokenizer.folder import Special

OPTIMIZER = OptimizerConfig(learning_rate=3e-4, warmup_steps=10)
Train = Callable[["Clock", int], None]  # takes that many steps


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model, and the rows of a step, which is one forward pass."""

    name: str
    num_layers: int
    num_heads: int
    hidden_size: int
    vocab_size: int
    sequence_length: int
    batch_size: int
    architecture: Architecture = Architecture.gpt2
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.sequence_length

    def model(self, seed: int = 0) -> Any:
        """A Hugging Face model with random weights, the same each time."""
        torch.manual_seed(seed)
        config = ModelConfig(
            name=self.name,
            architecture=self.architecture,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.sequence_length,
        )
        special = Special(bos_id=0, eos_id=0, pad_id=0, tokens=())
        return build(config, vocab_size=self.vocab_size, special=special).to(device())

    def stock_model(self, seed: int = 0) -> Any:
        """The same weights in the model as transformers makes it: what a user has who does not use ours."""
        ours = self.model(seed)
        config = copy.deepcopy(ours.config)
        if self.architecture is Architecture.gpt2:  # ours has the same function as one operator, not seven
            config.activation_function = type(config)().activation_function
        stock = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device())
        stock.load_state_dict(ours.state_dict())
        return stock


@dataclass(frozen=True)
class Mode:
    precision: Precision
    compile: bool

    def __str__(self) -> str:
        return f"{self.precision.name} {'compiled' if self.compile else 'eager'}"

    def autocast(self) -> torch.autocast:
        return torch.autocast(device().type, torch.bfloat16, enabled=self.precision is Precision.bf16)


@dataclass
class Clock:
    """Rows of random tokens, each one document or several, that notes when they are taken."""

    shape: Shape
    documents: int = 1  # in a row
    rows: int = 512
    marks: set[int] = field(default_factory=set)  # the reads at which a GPU is waited for
    times: list[float] = field(default_factory=list)
    in_cpu_time: bool = False  # of this process, in place of the wall's
    raw_bytes: int = 1
    lost_bytes: int = 0

    def __post_init__(self) -> None:
        draw = np.random.default_rng(0)
        length = self.shape.sequence_length
        self._tokens = torch.from_numpy(draw.integers(0, self.shape.vocab_size, (self.rows, length + 1)))
        self._positions = torch.arange(length) % -(-length // self.documents)
        self.num_labels = np.full(self.rows, length)

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, micro_batch: MicroBatch) -> dict[str, Any]:
        self.note()
        return {**self.take(micro_batch.rows), "num_labels": micro_batch.num_labels}

    def take(self, rows: Any) -> dict[str, torch.Tensor]:
        tokens = self._tokens[np.asarray(rows)]
        positions = self._positions.expand(len(tokens), -1)
        return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "position_ids": positions}

    def describe(self, rows: Any) -> list[str]:
        return [f"row {row}" for row in rows]

    def note(self) -> None:
        if len(self.times) in self.marks and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.process_time() if self.in_cpu_time else time.perf_counter())


def ours(shape: Shape, mode: Mode) -> Train:
    """fit(): loader, recorder, validation and checkpoint, as in stage=pretrain."""
    model = shape.model()

    def train(clock: Clock, steps: int) -> None:
        train_by_fit(
            model,
            (clock, Clock(shape, rows=1)),
            sequence_length=shape.sequence_length,
            batch_size=shape.batch_size,
            steps=steps,
            optimizer=OPTIMIZER,
            precision=mode.precision,
            compile=mode.compile,
        )

    return train


def hugging_face(shape: Shape, mode: Mode) -> Train:
    """transformers' Trainer with its own defaults, the same optimizer settings, and no file written."""
    from transformers import Trainer, TrainingArguments

    model = shape.stock_model()

    def train(clock: Clock, steps: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            asked = asked_of_trainer(scratch, steps=steps, batch_size=shape.batch_size, precision=mode.precision)
            arguments = TrainingArguments(
                **asked,
                learning_rate=OPTIMIZER.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=OPTIMIZER.warmup_steps,
                weight_decay=OPTIMIZER.weight_decay,
                torch_compile=mode.compile,
                logging_steps=10,
                remove_unused_columns=False,
            )
            model.config.use_cache = False
            trainer = Trainer(
                model=model, args=arguments, train_dataset=_Indices(clock.rows), data_collator=partial(_collate, clock)
            )
            trainer.remove_callback(printer())
            trainer.train()

    return train


class _Indices(torch.utils.data.Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> int:
        return row


def _collate(clock: Clock, rows: list[int]) -> dict[str, torch.Tensor]:
    """The Trainer shifts labels itself."""
    clock.note()
    taken = clock.take(rows)
    batch = {"input_ids": taken["input_ids"], "labels": taken["input_ids"]}
    return batch if clock.documents == 1 else batch | {"position_ids": taken["position_ids"]}


def printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


def plain(shape: Shape, mode: Mode) -> Train:
    """A loop of a dozen lines around the same Hugging Face model."""
    model = shape.stock_model().train()
    if mode.compile:
        model.compile()
    return partial(_loop, model, mode, lambda batch: model(**_without_labels(batch), use_cache=False).logits)


def floor(shape: Shape, mode: Mode) -> Train:
    """The same loop around a GPT in forty lines: about as little as there can be."""
    torch.manual_seed(0)
    model: Any = MinimalGPT(shape).to(device())
    if mode.compile:
        model.compile()
    return partial(_loop, model, mode, lambda batch: model(batch["input_ids"]))


def _without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _loop(model: Any, mode: Mode, logits_of: Callable[[Any], torch.Tensor], clock: Clock, steps: int) -> None:
    adamw = torch.optim.AdamW(
        model.parameters(),
        lr=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        weight_decay=OPTIMIZER.weight_decay,
        fused=True,
    )
    schedule = LambdaLR(adamw, lambda step: min(1.0, step / 10) * 0.5 * (1 + math.cos(math.pi * step / steps)))
    draw = np.random.default_rng(0)
    for step in range(steps):
        clock.note()
        taken = clock.take(draw.integers(0, clock.rows, clock.shape.batch_size))
        batch = {
            name: value.to(device(), non_blocking=True)
            for name, value in taken.items()
            if name != "position_ids" or clock.documents > 1
        }
        with mode.autocast():
            logits = logits_of(batch)
            loss = functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.gradient_clip_norm)
        adamw.step()
        adamw.zero_grad()
        schedule.step()
        if step % 10 == 9:
            float(loss)  # as a log would


class MinimalGPT(nn.Module):
    """GPT-2's blocks: layer norm first, learned positions, a head tied to the embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = nn.Embedding(shape.sequence_length, shape.hidden_size)
        self.blocks = nn.ModuleList(MinimalBlock(shape.hidden_size, shape.num_heads) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.hidden_size)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.words.weight)


class MinimalBlock(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))


CONTESTANTS: dict[str, Callable[[Shape, Mode], Train]] = {
    "ours": ours,
    "plain loop": plain,
    "HF Trainer": hugging_face,
    "minimal GPT": floor,
}
