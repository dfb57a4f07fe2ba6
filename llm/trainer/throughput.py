"""Model FLOPs utilisation: what the model needs per token, over what the device can do."""

import time

import torch
from torch import nn
from transformers import PreTrainedConfig

# Dense bf16 peaks in FLOP/s, from NVIDIA's data sheets (without sparsity).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}
PROBE_SIZE = 1024  # of the square matrices that measure an unknown device
PROBE_TRIES = 5


def flops_per_token(model: nn.Module, config: PreTrainedConfig, *, sequence_length: int) -> float:
    """Forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    N: parameters that every token is multiplied with, all but position embeddings, which are looked up; L: layers;
    H x Q: heads times their size; T: tokens per row.
    """
    multiplied = sum(p.numel() for name, p in model.named_parameters() if name.split(".")[-2:] != ["wpe", "weight"])
    return 6.0 * multiplied + 12.0 * config.num_hidden_layers * config.hidden_size * sequence_length


def peak_flops(device: torch.device) -> tuple[float, str]:
    """(FLOP/s, where the figure is from): the data sheet's for a GPU that is listed, else measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for listed, peak in PEAKS.items():
            if listed in name:
                return peak, f"data sheet of {name}, dense bf16"
    return _measured_flops(device), f"measured {device.type}, {PROBE_SIZE} x {PROBE_SIZE} product in fp32"


def _measured_flops(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(PROBE_SIZE, PROBE_SIZE, generator=generator).to(device)
    best = float("inf")
    for _ in range(PROBE_TRIES):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * PROBE_SIZE**3 / best
