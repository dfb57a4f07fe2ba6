"""A model and held-out rows -> loss per token and bits per byte of raw text, of each part of a mixture too."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from llm.data.rows import Part, Rows, TokenRows
from llm.model import next_token_nats

NATS_PER_LOST_BYTE = math.log(256)  # a byte that the tokenizer cannot say costs what one costs without any model


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of held-out text."""

    loss: float  # nats per label
    bits_per_byte: float  # of raw UTF-8 text, lost bytes charged
    block_bytes: list[int] = field(default_factory=list)  # of text in rows: raw, of each block of documents
    block_nats: list[float] = field(default_factory=list)  # the same blocks', each charged its share of lost bytes
    parts: dict[str, "Evaluation"] = field(default_factory=dict)  # of a mixture, by name

    def metrics(self) -> dict[str, float]:
        """By the names of metrics.jsonl."""
        named = {"val/loss": self.loss, "val/bits_per_byte": self.bits_per_byte}
        return named | {
            f"{key}/{name}": value for name, part in self.parts.items() for key, value in part.metrics().items()
        }


def bits_per_byte(nats: float, *, raw_bytes: int, lost_bytes: int) -> float:
    """(nats of all labels + the lost bytes at 8 bits each) / ln 2 / bytes of the raw text."""
    return (nats + lost_bytes * NATS_PER_LOST_BYTE) / math.log(2) / raw_bytes


@contextmanager
def not_training(model: nn.Module) -> Iterator[None]:
    """Have a model be without its dropout while the block runs."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader[Any],
    rows: Rows,
    *,
    device: torch.device,
    add_up: Callable[[torch.Tensor], torch.Tensor] = lambda nats: nats,
) -> Evaluation:
    """The model on every held-out row; `add_up` sums numbers over the ranks that share the rows."""
    mixed = rows if isinstance(rows, TokenRows) and rows.parts else None
    of_text = rows if isinstance(rows, TokenRows) else None
    nats = torch.zeros(len(mixed.parts) if mixed else 1, dtype=torch.float64, device="cpu")
    of_blocks = torch.zeros(len(of_text.block_bytes) if of_text else 0, dtype=torch.float64, device="cpu")
    with not_training(model):
        for batch, micro_batch in zip(loader, loader.batch_sampler or (), strict=True):
            moved = {k: value.to(device) if isinstance(value, torch.Tensor) else value for k, value in batch.items()}
            rows_here: Any = micro_batch.rows  # type: ignore[attr-defined]  # torch's type: a list
            part = mixed.part_of(rows_here[0]) if mixed else 0
            each = torch.zeros(batch["labels"].shape, device=device) if of_text else None
            nats[part] += next_token_nats(model, moved, each=each).double().cpu()
            if of_text and each is not None:
                blocks = torch.from_numpy(of_text.blocks_of(rows_here))
                of_blocks.index_add_(0, blocks.flatten(), each.double().cpu().flatten())
    sums = add_up(nats).tolist()
    whole = _evaluation(math.fsum(sums), rows)
    if of_text:
        sizes, summed = of_text.block_bytes, add_up(of_blocks).cpu().numpy()
        charged = summed + rows.lost_bytes * NATS_PER_LOST_BYTE * sizes / sizes.sum()
        whole = replace(whole, block_bytes=sizes.tolist(), block_nats=charged.round(4).tolist())
    if mixed is None:
        return whole
    parts = zip(mixed.parts.items(), sums, strict=True)
    return replace(whole, parts={name: _evaluation(total, part) for (name, part), total in parts})


def _evaluation(nats: float, rows: Rows | Part) -> Evaluation:
    return Evaluation(
        loss=nats / int(rows.num_labels.sum()),
        bits_per_byte=bits_per_byte(nats, raw_bytes=rows.raw_bytes, lost_bytes=rows.lost_bytes),
    )
