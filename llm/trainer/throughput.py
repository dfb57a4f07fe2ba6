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

    N: parameters that a token is multiplied with: not embeddings, which are looked up (but the head that is tied to
    them), and of the experts those that it goes through. A frozen one takes 4, as it has no gradient of its own.
    L: layers; H x Q: heads times their size; T: tokens per row, or the window of a layer that sees fewer.
    """
    head = model.get_output_embeddings().weight  # type: ignore[operator]  # of every Hugging Face model
    multiplied = 0.0
    for name, parameter in model.named_parameters():
        is_looked_up = name.split(".")[-2] in ("wpe", "wte", "embed_tokens") and parameter is not head
        share = config.num_experts_per_tok / config.num_local_experts if ".experts." in name else 1.0
        multiplied += 0.0 if is_looked_up else share * parameter.numel() * (6 if parameter.requires_grad else 4)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    seen = sum(min(sequence_length, config.sliding_window) if "sliding" in k else sequence_length for k in kinds)
    return multiplied + 12.0 * width * seen


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
