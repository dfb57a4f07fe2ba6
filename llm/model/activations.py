"""A model whose GELU is written out in seven operators -> the same with torch's one."""

from torch import nn
from transformers.activations import ACT2FN

# GELU by tanh (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2) under the names that a config.json has for it.
# gpt2's is gelu_new, each tensor of which is as wide as the inner layer: 6 % of a step on a CPU, and kept for backward.
WRITTEN_OUT = ("gelu_new", "gelu_fast", "gelu_accurate")


def fuse_gelu(model: nn.Module) -> None:
    """Put torch's GELU, equal but for rounding, in place of those written out; config.json goes on to name the same."""
    kinds = tuple(type(ACT2FN[name]) for name in WRITTEN_OUT)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kinds):
                setattr(parent, name, nn.GELU(approximate="tanh"))
