"""Model FLOPs utilisation: what the model needs per token, over what the device can do."""

import re
import time
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from llm.config.training import Precision
from llm.model import padding_of

# Dense peaks in FLOP/s by NVIDIA's data sheets, without sparsity: (bf16 on tensor cores with fp32 sums, fp32 without
# tensor cores). The first name that the device's holds as whole words is taken: variants stand before their family.
# Each figure was found in a published table, 2026-11-24; a GPU of which one was not is left out, and is measured.
PEAKS = {
    "GB200": (2500e12, 80e12),  # one of its two GPUs: https://hmc-tech.com/gpu/nvidia-b200-vs-nvidia-gb200
    "B200": (2250e12, 75e12),  # the same table
    "H200": (989e12, 67e12),  # https://itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html
    "H100 PCIe": (756e12, 51e12),  # https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html
    "H100": (989e12, 67e12),  # the same table
    "A100": (312e12, 19.5e12),  # https://hmc-tech.com/gpu/nvidia-a100-vs-nvidia-a40
    "A40": (149.7e12, 37.4e12),  # the same table
    "L40S": (362e12, 91.6e12),  # https://www.mullet.se/product.html?product_id=355414
    "L40": (181e12, 90.5e12),  # the same table
    "RTX 4090": (165.2e12, 82.6e12),  # https://waredb.com/processor/nvidia-geforce-rtx-4090
    "RTX A6000": (154.8e12, 38.7e12),  # https://llmperf.net/categories/gpu/Nvidia-A6000-GPUs
    "T4": (65e12, 8.1e12),  # https://hmc-tech.com/gpu/nvidia-t4-vs-nvidia-v100-sxm; in fp16, for it has no bf16
    "V100-SXM2": (125e12, 15.7e12),  # the same table; likewise
}
OTHER_CHIPS = ("Laptop", "MIG", "4090 D", "NVL")  # in a listed name's clothes
# Sides of the square matrices that measure an unlisted device, and how many products are timed as one: on a GPU small
# ones would measure how fast the host starts them.
PROBE_SIZES = {"cpu": 1024, "cuda": 4096}
PROBE_PRODUCTS = {"cpu": 1, "cuda": 8}
PROBE_TRIES = 5


def flops_per_token(model: nn.Module, config: PreTrainedConfig, *, sequence_length: int) -> float:
    """Forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    N: parameters that a token is multiplied with: not embeddings, which are looked up (but the head that is tied to
    them), of the experts those that it goes through, and no padding of the vocabulary, which is of no use to the
    model. A frozen one takes 4, as it has no gradient of its own.
    L: layers; H x Q: heads times their size; T: tokens per row, or the window of a layer that sees fewer.
    """
    end: Any = model.get_output_embeddings()  # type: ignore[operator]  # of every Hugging Face model
    head = getattr(end, "original_module", end).weight  # PEFT's, where rows of new tokens are trained
    looked_up = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)} - {head}
    chosen = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    padding = padding_of(model)
    multiplied = 0.0
    for name, parameter in model.named_parameters():
        share = chosen if ".experts." in name else 1.0
        share = 0.0 if parameter in looked_up else share
        multiplied += share * (parameter.numel() - padding.get(parameter, 0)) * (6 if parameter.requires_grad else 4)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    seen = sum(min(sequence_length, config.sliding_window) if "sliding" in k else sequence_length for k in kinds)
    return multiplied + 12.0 * width * seen


def peak_flops(device: torch.device, precision: Precision | None = None) -> tuple[float, str]:
    """(FLOP/s, where the figure is from): the data sheet's for a GPU that is listed, else measured.

    Of matrix products in bf16 or in fp32; None: a listed GPU's in bf16, another device's in fp32.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (peaks := listed_peaks(name)) is not None:
            is_fp32 = precision is Precision.fp32
            return peaks[is_fp32], f"data sheet of {name}, dense {'fp32' if is_fp32 else 'bf16'}"
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    words = "bf16" if precision is Precision.bf16 else "fp32"
    size = PROBE_SIZES.get(device.type, PROBE_SIZES["cpu"])
    return _measured_flops(device, dtype, size=size), f"measured {device.type}, {size} x {size} product in {words}"


def listed_peaks(name: str) -> tuple[float, float] | None:
    """The peaks of a GPU by the name that its driver gives it; None for one that is not listed."""
    if any(other in name for other in OTHER_CHIPS):
        return None
    return next((peaks for listed, peaks in PEAKS.items() if re.search(rf"\b{listed}\b", name)), None)


def _measured_flops(device: torch.device, dtype: torch.dtype, *, size: int) -> float:
    generator, products = torch.Generator().manual_seed(0), PROBE_PRODUCTS.get(device.type, 1)
    matrix = torch.randn(size, size, generator=generator).to(device, dtype)
    best = float("inf")
    for _ in range(PROBE_TRIES):
        started = time.perf_counter()
        for _ in range(products):
            product = matrix @ matrix
        float(product[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 * products / best
