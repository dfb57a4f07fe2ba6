"""Where documents begin in a batch of rows -> attention within each document, without a mask.

Hugging Face models find shared rows by their positions, and then make a mask of (rows, seq, seq) in each forward pass,
which costs flash attention its kernel, a GPU a wait for the host, and which torch.compile bakes in even where a row is
one document. Here the bounds of documents are found once a batch, before it goes to its device, and reach the
attention of each layer by the names that flash attention has for them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "ttukttak_documents"  # among the attention functions of transformers
# Models whose loss by our attention and by chunks is theirs, as tests/test_fast_path.py compares. Another one may scale
# its logits, cap its scores or hide tokens in ways that are not known here, and is trained as transformers has it.
KNOWN = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "qwen3_moe"})
LEAST_BOUNDS = 64  # places for bounds are a power of two, so that batches give torch.compile few shapes to see
VARLEN_MULTIPLE = 8  # of the size of its heads
CAPABILITY_OF_VARLEN = 8  # the first major compute capability that flash attention has kernels for


def document_bounds(position_ids: torch.Tensor) -> torch.Tensor | None:
    """int32 (bounds,): where each document begins in the flattened rows, and their end, repeated to a power of two.

    None where each row is one document. A document begins where positions do not go on (as transformers has it), and
    with each row. It waits for the device of `position_ids` (rows, seq): call it before a batch goes to a GPU.
    """
    positions = position_ids.cpu().numpy()  # numpy: torch's own operators would take several times as long
    begins = np.ones(positions.shape, dtype=bool)
    begins[:, 1:] = np.diff(positions, axis=1) != 1
    starts = np.flatnonzero(begins)
    if len(starts) == len(positions):
        return None
    places = max(LEAST_BOUNDS, 1 << len(starts).bit_length())  # one more than there are documents, at least
    bounds = np.full(places, positions.size, dtype=np.int32)
    bounds[: len(starts)] = starts
    return torch.from_numpy(bounds).to(position_ids.device)


@contextmanager
def attention_within_documents(model: nn.Module, *, device: torch.device) -> Iterator[bool]:
    """Whether the model takes bounds within the block: where it does not, it goes on parting documents by a mask.

    Only calls that bring bounds may run in it. Outside, as in generation, a model is as transformers made it.
    """
    config = getattr(model, "config", None)
    if config is None or not _can_part(config, device=device):
        yield False
        return
    with _attention(config, NAME):
        yield True


@contextmanager
def _attention(config: Any, name: str) -> Iterator[None]:
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def checkpoint_blocks(model: Any, *, compiled: bool = False) -> None:
    """Have each block keep its inputs alone, and run once more in the backward pass, by the attention it ran with.

    A graph that was compiled has that attention in it, and takes no contexts.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _attention(model.config, model.config._attn_implementation)

    model.activation_checkpointing_enable({"use_reentrant": False} | ({} if compiled else {"context_fn": contexts}))
    model.disable_input_require_grads()  # which reentrant checkpoints need, and no graph takes


def _can_part(config: Any, *, device: torch.device) -> bool:
    """Whether the kernels have what a model asks for: they know no dropout, windows or caps, and on a GPU no fp32."""
    dropout = max(getattr(config, name, None) or 0.0 for name in ("attention_dropout", "attn_pdrop"))
    windows = getattr(config, "sliding_window", None) is not None and _only_layer_type(config) != "full_attention"
    is_capped = getattr(config, "attn_logit_softcapping", None) is not None
    if config.model_type not in KNOWN or config._attn_implementation != "sdpa" or dropout or windows or is_capped:
        return False
    if device.type == "cuda":
        half = torch.is_autocast_enabled("cuda") or config.dtype in (torch.bfloat16, torch.float16)
        return half and torch.cuda.get_device_capability(device)[0] >= CAPABILITY_OF_VARLEN
    return device.type == "cpu"


def _only_layer_type(config: Any) -> str | None:
    """The kind of attention of all layers, where it is one and known."""
    kinds = set(getattr(config, "layer_types", None) or ())
    return kinds.pop() if len(kinds) == 1 else None


def _attend(
    module: nn.Module,
    query: torch.Tensor,  # (rows, heads, seq, head size)
    key: torch.Tensor,  # (rows, key-value heads, seq, head size)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention in each row, or in each document where bounds came; (rows, seq, heads, head size)."""
    assert attention_mask is None  # for an attention function that it does not know, transformers makes none
    device, grouped = query.device.type, query.shape[1] != key.shape[1]
    # rotary positions, norms and layers of 4 bits may leave any of them in fp32 under autocast
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cu_seq_lens_q is not None and device == "cuda":
        assert max_length_q is not None
        how: dict[str, Any] = {"dtype": dtype, "scale": scale, "longest": max_length_q, "grouped": grouped}
        return _on_gpu(query, key, value, cu_seq_lens_q, **how), None
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if cu_seq_lens_q is None:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None
    if grouped:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    return _on_cpu(query, key, value, cu_seq_lens_q, scale)[0].transpose(1, 2).contiguous(), None


def _on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    *,
    dtype: torch.dtype,
    scale: float,
    longest: int,
    grouped: bool,
) -> torch.Tensor:
    """By flash attention's kernels, which take heads of a multiple of 8: zeros on their ends change no product."""
    rows, _, length, size = query.shape
    # (tokens, heads, head size); made flat before they are cast, which is one pass over them less
    flat = [tensor.transpose(1, 2).flatten(0, 1).to(dtype) for tensor in (query, key, value)]
    if size % VARLEN_MULTIPLE:
        flat = [pad(tensor, (0, -size % VARLEN_MULTIPLE)) for tensor in flat]
    out: Any = varlen_attn(
        flat[0], flat[1], flat[2], bounds, bounds, longest, longest,
        scale=scale, window_size=(-1, 0), enable_gqa=grouped,  # causal
    )  # fmt: skip
    attended: torch.Tensor = out[..., :size].reshape(rows, length, -1, size)
    return attended


@torch.library.custom_op("ttukttak::document_attention", mutates_args=(), device_types="cpu")
def _on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what attention gives, its log-sum-exp): torch's flash kernel for each document by itself.

    An operator of its own, so that torch.compile neither traces the documents of one batch nor breaks its graph.
    """
    out = torch.empty_like(query)
    log_sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    for where in _documents(bounds, length=query.shape[2]):
        out[where], sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[where], key[where], value[where], 0.0, True, scale=scale
        )
        log_sums[where] = sums
    return out, log_sums


@_on_cpu.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("ttukttak::document_attention_backward", mutates_args=(), device_types="cpu")
def _backward_on_cpu(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for where in _documents(bounds, length=query.shape[2]):
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient[where], query[where], key[where], value[where], out[where], log_sums[where], 0.0, True, scale=scale
        )
        for whole, part in zip(gradients, parts, strict=True):
            whole[where] = part
    return gradients


@_backward_on_cpu.register_fake
def _(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, bounds, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, bounds)


def _backward(ctx: Any, gradient: torch.Tensor, _log_sums: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_backward_on_cpu(gradient, *ctx.saved_tensors, ctx.scale), None, None


_on_cpu.register_autograd(_backward, setup_context=_keep)


def _documents(bounds: torch.Tensor, *, length: int) -> Iterator[tuple[slice, slice, slice]]:
    """The place of each document in (rows, heads, seq, ...), one after the other."""
    for begin, end in pairwise(bounds.tolist()):
        if begin < end:
            row, start = divmod(begin, length)
            yield slice(row, row + 1), slice(None), slice(start, start + end - begin)


AttentionInterface.register(NAME, _attend)
