"""Model FLOPs utilisation: what the model needs per token, over what the device can do."""

import re
import time

import torch
from torch import nn
from transformers import PreTrainedConfig

from llm.config import Precision
from llm.model import padding_of

# Dense peaks in FLOP/s by NVIDIA's data sheets, without sparsity: (bf16 on tensor cores with fp32 sums, fp32 without
# tensor cores). The first name that the device's holds as whole words is taken: variants stand before their family.
# Compared, on 2026-11-24, with published tables of B200, GB200 (of one of its two GPUs), H200, H100, L40S, L40, A40 and
# RTX 4090 (both figures), of L4 (bf16), of H100 PCIe, A100, A10 and RTX A6000 (fp32): they agree. The others are not.
PEAKS = {
    "GB200": (2500e12, 80e12),
    "B200": (2250e12, 75e12),
    "GH200": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "A30": (165e12, 10.3e12),
    "A10": (125e12, 31.2e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX 5090": (209.5e12, 104.8e12),
    "RTX 5080": (112.6e12, 56.3e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 4080": (97.5e12, 48.7e12),
    "RTX 3090": (71e12, 35.6e12),
    "RTX 6000 Ada": (364.2e12, 91.1e12),
    "RTX A6000": (154.8e12, 38.7e12),
    "T4": (65e12, 8.1e12),  # its tensor cores take fp16, not bf16
    "V100": (125e12, 15.7e12),  # likewise
}
OTHER_CHIPS = ("Laptop", "MIG", "4090 D", "5090 D", "SUPER", "3090 Ti", "A10M", "Max-Q")  # in a listed name's clothes
PROBE_SIZE = 1024  # of the square matrices that measure an unknown device
PROBE_TRIES = 5


def flops_per_token(model: nn.Module, config: PreTrainedConfig, *, sequence_length: int) -> float:
    """Forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    N: parameters that a token is multiplied with: not embeddings, which are looked up (but the head that is tied to
    them), of the experts those that it goes through, and no padding of the vocabulary, which is of no use to the
    model. A frozen one takes 4, as it has no gradient of its own.
    L: layers; H x Q: heads times their size; T: tokens per row, or the window of a layer that sees fewer.
    """
    head = model.get_output_embeddings().weight  # type: ignore[operator]  # of every Hugging Face model
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
    return _measured_flops(device, dtype), f"measured {device.type}, {PROBE_SIZE} x {PROBE_SIZE} product in {words}"


def listed_peaks(name: str) -> tuple[float, float] | None:
    """The peaks of a GPU by the name that its driver gives it; None for one that is not listed."""
    if any(other in name for other in OTHER_CHIPS):
        return None
    return next((peaks for listed, peaks in PEAKS.items() if re.search(rf"\b{listed}\b", name)), None)


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator).to(device, dtype)
    best = float("inf")
    for _ in range(PROBE_TRIES):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * PROBE_SIZE**3 / best
