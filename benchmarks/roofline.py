"""The plan of a step on an H100 -> a predicted time of it, by part, beside what a user would pick instead.

A prediction, and no measurement: the kernels, bytes and products are counted (gpu_plan.py), and each is given the time
that the rates below let it take.

    python -m benchmarks.roofline
"""

import argparse
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import GPU, Asked, Kernel, Plan, Seen, plan, shape_of  # isort: skip  # before torch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

PEAK = 989e12  # FLOP/s in bf16, dense: NVIDIA's data sheet of the H100 SXM, as in llm.run.devices
BANDWIDTH = 0.85 * 3.35e12  # bytes/s of a kernel that streams
GAP = 1e-6  # seconds between two kernels
HOST = 5e-6  # seconds that Python and torch take to start an operator that is not compiled
# FLOP/s of causal attention, forward and backward, by published figures for heads of 64: cuDNN's for rows that are one
# document, flash attention 2 for packed ones; by the length of rows.
ATTENTION = {
    1024: {"plain": (300e12, 250e12), "packed": (200e12, 170e12)},
    2048: {"plain": (500e12, 400e12), "packed": (300e12, 260e12)},
}
PARTS = ("products", "head's products", "attention", "elementwise", "loss", "optimizer", "gaps")
DOCUMENTS = 4  # in a packed row
PREDICTED = Path(__file__).parent / "results" / "roofline.json"  # which a measurement is set beside


@dataclass(frozen=True)
class Size:
    """A model, and the rows of a step."""

    name: str
    asked: Asked
    layers: int


SIZES = (
    Size("124M", Asked(architecture="gpt2"), 12),
    Size("350M", Asked(architecture="gpt2", hidden=1024, heads=16, rows=16), 24),
    Size("1B", Asked(hidden=2048, heads=32, kv_heads=8, inner=8192, rows=8, length=2048), 16),
)


def seconds(made: Plan, asked: Asked, *, efficiency: float) -> Counter[str]:
    """What each part takes."""
    taken: Counter[str] = Counter()
    for kernel in made.kernels:
        part, took = _part(kernel, asked), kernel.bytes / BANDWIDTH
        if "att" in kernel.name and not kernel.is_fused:
            took = _attention(kernel, asked)
        elif kernel.flops:
            took = max(took, kernel.flops / (efficiency * PEAK))
        taken[part] += took
        taken["gaps"] += GAP
        taken["host"] += 0 if kernel.is_compiled else HOST
    return taken


def _part(kernel: Kernel, asked: Asked) -> str:
    if kernel.is_optimizer:
        return "optimizer"
    if "att" in kernel.name and not kernel.is_fused:
        return "attention"
    is_of_head = asked.vocab in kernel.sizes
    if kernel.flops:
        return "head's products" if is_of_head else "products"
    return "loss" if is_of_head else "elementwise"


def _attention(kernel: Kernel, asked: Asked) -> float:
    """The products of queries and keys, and of those and values: half of them where a kernel knows what is causal.

    transformers takes fake tensors for a compilation, and makes a mask of which its uncompiled model has none.
    """
    seen = asked.length / (DOCUMENTS if asked.packed else 1)
    flops = (
        4.0
        * asked.rows
        * asked.length
        * seen
        * asked.hidden
        * (1 if "masked" in kernel.name and kernel.is_compiled else 0.5)
    )
    rates = ATTENTION[asked.length]["packed" if asked.packed else "plain"]
    is_backward = "backward" in kernel.name
    return (2.5 if is_backward else 1.0) * flops / rates[is_backward]


def predicted(make: Callable[[Asked], Plan], size: Size, *, efficiency: float) -> Counter[str]:
    """The parts of a step of all layers, each of which takes what the second does."""
    one, two = (replace(size.asked, layers=layers) for layers in (1, 2))
    first, both = (seconds(make(asked), asked, efficiency=efficiency) for asked in (one, two))
    return Counter({name: first[name] + (size.layers - 1) * (both[name] - first[name]) for name in {*first, *both}})


def total(parts: Counter[str]) -> float:
    """The device's time, or the host's where that is more."""
    return max(sum(parts[name] for name in PARTS), parts["host"])


# The others


def peer(make: Callable[[Asked], Any], loss: Callable[[Any, Any], Any], *, compile: bool) -> Callable[[Asked], Plan]:
    """A step as a plain loop takes it: autocast, backward, clip, fused AdamW."""

    def planned(asked: Asked) -> Plan:
        from llm.dry_run.memory import _leave_meta

        torch.compiler.reset()
        fake, seen, model = FakeTensorMode(), Seen(), make(asked)
        called = torch.compile(model) if compile else model
        with fake, GPU, seen:
            _leave_meta(model)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        for _ in range(2):
            with fake, GPU, seen:
                tokens = torch.zeros(asked.rows, asked.length, dtype=torch.long)
                with torch.autocast("cuda", torch.bfloat16):
                    made = loss(called, tokens)
                made.backward()
                seen.is_optimizer = True
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                seen.is_optimizer = False
        return seen.plan

    return planned


def stock(asked: Asked) -> Any:
    """The model as transformers makes it, with PEFT's adapters where they are asked for."""
    from transformers import AutoModelForCausalLM

    ours = shape_of(replace(asked, lora=False))
    if asked.architecture == "gpt2":
        ours.config.activation_function = type(ours.config)().activation_function
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32).train()
        model.config.use_cache = False
        if asked.lora:
            import peft

            settings = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
            model = peft.get_peft_model(model, settings)
    return model


def loss_of_stock(model: Any, tokens: torch.Tensor) -> Any:
    """As the Trainer has it, which counts the labels of a step."""
    return model(input_ids=tokens, labels=tokens, num_items_in_batch=tokens.numel()).loss


class NanoGPT(nn.Module):
    """The model of nanoGPT (Karpathy 2022) without biases, written anew and plainly."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.words = nn.Embedding(asked.vocab, asked.hidden)
        self.places = nn.Embedding(asked.length, asked.hidden)
        self.blocks = nn.ModuleList(NanoBlock(asked) for _ in range(asked.layers))
        self.norm = nn.LayerNorm(asked.hidden, bias=False)
        self.head = nn.Linear(asked.hidden, asked.vocab, bias=False)
        self.words.weight = self.head.weight

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten(), ignore_index=-1)


class NanoBlock(nn.Module):
    def __init__(self, asked: Asked) -> None:
        super().__init__()
        width = asked.hidden
        self.heads = asked.heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.attention, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        parts = self.attention(self.norm_1(x)).split(width, dim=2)
        q, k, v = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).contiguous().view(rows, length, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


def nano(asked: Asked) -> Any:
    with torch.device("meta"):
        return NanoGPT(asked)


# The table


def contestants(size: Size) -> dict[str, tuple[Callable[[Asked], Plan], Size]]:
    """By name: what plans a step, and of which size."""
    packed = replace(size, asked=replace(size.asked, packed=True))
    lora = {precision: replace(size.asked, lora=True, base_precision=precision) for precision in ("fp32", "bf16")}
    made = {
        "ours": (plan, size),
        "ours, packed": (plan, packed),
        "ours, residual stream in fp32": (plan, replace(size, asked=replace(size.asked, halved=False))),
        "HF Trainer": (peer(stock, loss_of_stock, compile=False), size),
        "HF Trainer, compiled": (peer(stock, loss_of_stock, compile=True), size),
    }
    if size.asked.architecture == "gpt2":
        made["nanoGPT"] = (peer(nano, lambda model, tokens: model(tokens, tokens), compile=True), size)
    else:
        made |= {f"LoRA, base in {name}": (plan, replace(size, asked=asked)) for name, asked in lora.items()}
        made["LoRA, TRL's"] = peer(stock, loss_of_stock, compile=False), replace(size, asked=lora["fp32"])
    return made


def flops_per_token(size: Size) -> float:
    from llm import model as models

    model = shape_of(replace(size.asked, layers=size.layers))
    return models.flops_per_token(model, model.config, sequence_length=size.asked.length)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--efficiency", type=float, default=0.7, help="of matrix products, of the peak (0.7)")
    parser.add_argument("--only", default="", help="of the sizes: 124M, 350M or 1B")
    parser.add_argument("--update", action="store_true", help=f"write the tokens/s of all sizes into {PREDICTED.name}")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    print(f"Predicted, not measured: an H100 with products at {options.efficiency:.0%} of its peak. Milliseconds.\n")
    speeds: dict[str, dict[str, int]] = {}
    for size in SIZES:
        if options.only not in size.name:
            continue
        print(f"| {size.name} | {' | '.join(PARTS)} | step | tokens/s | MFU |")
        print("|---" * (len(PARTS) + 4) + "|")
        for name, (make, of) in contestants(size).items():
            parts = predicted(make, of, efficiency=options.efficiency)
            took, tokens = total(parts), of.asked.rows * of.asked.length
            mfu = flops_per_token(of) * tokens / took / PEAK
            speeds.setdefault(size.name, {})[name] = round(tokens / took)
            cells = [f"{parts[part] * 1e3:.1f}" for part in PARTS]
            print(f"| {name} | {' | '.join(cells)} | {took * 1e3:.1f} | {tokens / took:,.0f} | {mfu:.0%} |", flush=True)
        print()
    if options.update:
        PREDICTED.write_text(json.dumps(speeds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
