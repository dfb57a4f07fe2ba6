"""A model and a batch -> the next-token loss, with no more of the logits at once than a chunk of them.

The logits of a batch are its largest tensor: 32 rows of 1,024 tokens over 50,304 words are 6.6 GB in fp32, and as much
again for their gradient. Where they are that large, the head is applied a chunk of tokens at a time, and each chunk's
gradient is taken while its logits are there: three products a chunk, none of them done twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from llm.errors import ConfigError
from llm.model.attention import KNOWN, attention_within_documents, document_bounds
from llm.model.pretrained import unpadded

IGNORED = -100  # torch's default: such labels cost nothing
CHUNK_LOGITS = 2**26  # at most, at once: 256 MB in fp32
GPU_CHUNK_LOGITS = 2**29  # compiled, which writes them once in half precision: 1 GB, as each chunk rewrites the head's
# gradient, 5 ms of a step of 32 chunks on an H100 by its bandwidth
# On a CPU 8 MB: a tensor that its caches hold, and that glibc keeps, where each page of one of 32 MB is asked for anew
# at each step. Of large vocabularies the tokens count, for each chunk reads the whole head.
CPU_CHUNK_LOGITS, CPU_CHUNK_TOKENS = 2**21, 128


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The functions that a loss is made of, as they are or compiled."""

    hidden_states: Callable[..., torch.Tensor]
    nats: Callable[..., torch.Tensor]
    balanced: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    chunk: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    is_compiled: bool = False
    chunk_logits: int | None = None  # at most, at once; None: as suits the device


def next_token_nats(
    model: nn.Module, batch: dict[str, Any], *, passes: Passes | None = None, each: torch.Tensor | None = None
) -> torch.Tensor:
    """The sum of -ln p(label) over a batch's labels, a scalar in fp32.

    `labels[t]` is the token that follows `input_ids[t]`. Documents of a row are parted by their `position_ids`, which
    start again with each; `document_bounds`, where the batch has them, are those of `position_ids`. Where no gradient
    is asked for, `each` (batch, seq), in fp32, is filled with what is summed.
    """
    passes, labels, head = passes or EAGER, batch["labels"], _head(model)
    with _inputs(model, batch) as inputs:
        if head is None or (size := _chunk_size(labels, _num_rows(head), passes)) >= labels.numel():
            return passes.nats(model, inputs, labels, each)
        hidden_states = passes.hidden_states(model, inputs)  # (batch, seq, hidden)
    apply: Any = _ChunkedNats.apply
    weight = head.weight if torch.is_grad_enabled() else head.weight.detach()
    num_words = unpadded(model) or _num_rows(head)
    return apply(hidden_states.flatten(0, 1), weight, labels.flatten(), passes.chunk, size, num_words, each)


def next_token_loss(
    model: nn.Module, batch: dict[str, Any], *, passes: Passes | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(next_token_nats, what is minimised): for a mixture of experts with its load-balancing term for each label.

    Without that term a few experts come to take all tokens (Fedus et al. 2021, arXiv:2101.03961, section 2.2).
    """
    weight = getattr(getattr(model, "config", None), "router_aux_loss_coef", None)
    if weight is None:
        nats = next_token_nats(model, batch, passes=passes)
        return nats, nats
    # transformers does it at the first call that asks for a router's scores, under a lock, which breaks a graph
    maybe_install_capturing_hooks(_without_adapters(model).base_model)
    with _inputs(model, batch) as inputs:
        return (passes or EAGER).balanced(model, inputs, batch["labels"], weight)


@contextmanager
def _inputs(model: nn.Module, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the model is called with, within the block."""
    input_ids, position_ids = batch["input_ids"], batch["position_ids"]
    with attention_within_documents(model, device=input_ids.device) as takes_bounds:
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        if takes_bounds:
            bounds = batch["document_bounds"] if "document_bounds" in batch else document_bounds(position_ids)
            longest = input_ids.shape[1]  # that a document can be; of each batch's own, torch.compile makes a graph
            inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
            inputs |= {"max_length_q": longest, "max_length_k": longest}
        yield inputs


def compiled(*, backend: str = "inductor") -> Passes:
    """The same by torch.compile, each in one graph: one that would break is an error."""
    compile: Any = partial(torch.compile, fullgraph=True, backend=backend)
    return Passes(
        nats=compile(_nats),
        balanced=compile(_balanced),
        hidden_states=compile(_hidden_states),
        chunk=compile(_chunk),
        is_compiled=True,
    )


def _nats(
    model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor, each: torch.Tensor | None = None
) -> torch.Tensor:
    """No attention mask and no cache: only so do Hugging Face models part documents."""
    return _sum_of_nats(model(**inputs, use_cache=False).logits, labels, unpadded(model), each)


def _balanced(
    model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model(**inputs, use_cache=False, output_router_logits=True)
    nats = _sum_of_nats(outputs.logits, labels, unpadded(model))
    return nats, nats + weight * outputs.aux_loss * (labels != IGNORED).sum()


def _sum_of_nats(
    logits: torch.Tensor, labels: torch.Tensor, num_words: int | None, each: torch.Tensor | None = None
) -> torch.Tensor:
    """The cross-entropy of logits (..., vocab), those past `num_words` being padding; what it sums goes into `each`."""
    logits = logits.float()
    if num_words is not None and num_words < logits.shape[-1]:
        with torch.no_grad():  # a probability of zero has no gradient; a slice would be copied, forward and backward
            logits[..., num_words:] = -torch.inf
    logits, labels = logits.flatten(0, -2), labels.flatten()
    if each is None:
        return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    logs = functional.log_softmax(logits, -1)  # once for both: cross_entropy does the same
    each.view(-1).copy_(functional.nll_loss(logs, labels, ignore_index=IGNORED, reduction="none"))
    return functional.nll_loss(logs, labels, ignore_index=IGNORED, reduction="sum")


def _hidden_states(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """What the head would be given, (batch, seq, hidden)."""
    states: torch.Tensor = _without_adapters(model).base_model(**inputs, use_cache=False).last_hidden_state
    return states


def _head(model: nn.Module) -> Any:
    """The layer that makes logits, where nothing else does: no bias, no cap, no loss of a router beside them.

    Or PEFT's, of which rows of new tokens are trained; its `weight` has them in their places. None where there is no
    such layer or the model is none of KNOWN, and where parameters are sharded, which only a call of the whole gathers.
    """
    causal = _without_adapters(model)
    config = getattr(causal, "config", None)
    if getattr(config, "model_type", None) not in KNOWN or hasattr(model, "unshard"):
        return None
    if getattr(config, "final_logit_softcapping", None) is not None or getattr(config, "output_router_logits", False):
        return None
    head = causal.get_output_embeddings()
    layer = head.original_module if isinstance(head, TrainableTokensWrapper) else head
    return head if type(layer) is nn.Linear and layer.bias is None else None


def _num_rows(head: Any) -> int:
    """How many logits it makes of a token."""
    layer = head.original_module if isinstance(head, TrainableTokensWrapper) else head
    return int(layer.out_features)


def _without_adapters(model: nn.Module) -> Any:
    """The Hugging Face model that PEFT has put its layers into, or the model itself."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model else model


class _ChunkedNats(torch.autograd.Function):
    """The loss of hidden states (tokens, hidden) under a head's weight (vocab, hidden), a chunk of tokens at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        chunk: Callable[..., Any],
        size: int,
        num_words: int,
        each: torch.Tensor | None,
    ) -> torch.Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        states, used = hidden_states.detach().to(dtype), weight.detach().to(dtype)
        gradients = torch.empty_like(states) if needs_states else None
        gradient_of_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        nats = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(labels), size):
                here = slice(start, start + size)
                if gradients is None and gradient_of_weight is None:
                    summed = None if each is None else each.view(-1)[here]
                    nats += _sum_of_nats(states[here] @ used.T, labels[here], num_words, summed)
                    continue
                is_label = (labels[here] != IGNORED)[:, None].to(dtype)
                part, gradient = chunk(states[here], used, labels[here], num_words)
                nats += part
                if gradients is not None:
                    gradients[here] = (gradient @ used).mul_(is_label)
                if gradient_of_weight is not None:
                    _add_product(gradient_of_weight, gradient.T, states[here] * is_label)
        ctx.save_for_backward(gradients, gradient_of_weight)
        ctx.dtypes = hidden_states.dtype, weight.dtype
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,), parts = gradients, ctx.saved_tensors
        scaled = (
            part if part is None else part.to(dtype).mul_(scale) for part, dtype in zip(parts, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None, None


def _chunk(
    states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, num_words: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the loss of a chunk of tokens in fp32, its gradient with respect to their logits in the dtype of `states`).

    Rows of `weight` past `num_words` are padding: no probability, and no gradient. The gradient of a token whose label
    is ignored is not 0, but is to be multiplied by 0: done here, that would be one more pass over all logits.
    """
    logits = (states @ weight.T).float()  # (tokens, vocab)
    if num_words < len(weight):
        logits[:, num_words:] = -torch.inf
    places = labels.clamp(min=0)[:, None]
    logs = functional.log_softmax(logits, 1)
    nats = torch.where(labels[:, None] != IGNORED, -logs.gather(1, places), 0.0).sum()
    if torch.compiler.is_compiling():  # one kernel that writes 2 bytes a logit; scatter_add_ is one of its own, and 12
        words = torch.arange(len(weight), device=logs.device)
        return nats, (logs.exp() - (words == places).to(logs.dtype)).to(states.dtype)
    return nats, logs.exp_().scatter_add_(1, places, torch.full_like(places, -1.0, dtype=logs.dtype)).to(states.dtype)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total + a b, in place, of which a product in half precision on a GPU is not written down by itself."""
    if a.dtype is total.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _chunk_size(labels: torch.Tensor, vocab_size: int, passes: Passes) -> int:
    """Tokens whose logits are there at once, so that all chunks are of one size: one shape to compile.

    Where that would take more than twice as many chunks as need be (a number of tokens that is prime), the last one is
    smaller in its place.
    """
    most = passes.chunk_logits or CHUNK_LOGITS
    if labels.device.type == "cpu" and not passes.is_compiled:
        most = min(most, max(CPU_CHUNK_LOGITS, CPU_CHUNK_TOKENS * vocab_size))
    if labels.device.type == "cuda" and passes.is_compiled and passes.chunk_logits is None:
        most = GPU_CHUNK_LOGITS
    num_tokens = labels.numel()
    least = max(1, -(-num_tokens * vocab_size // most))
    even = next((number for number in range(least, 2 * least + 1) if num_tokens % number == 0), least)
    return max(1, -(-num_tokens // even))


EAGER = Passes(nats=_nats, balanced=_balanced, hidden_states=_hidden_states, chunk=_chunk)


DOCUMENTS = (7, 11)  # tokens of the two documents in the row that is tried
TOLERANCE = (
    1e-5  # of the loss: kernels may add up in another order. Neighbours that were seen moved it by 1.7e-4 or more
)


def require_isolation(model: nn.Module, *, vocab_size: int, architecture: str) -> None:
    """Change one document of a row, and refuse a model for which its neighbour's loss is then another.

    It is the loss that training takes, so that whatever the model is called with is what is tried.

    Raises:
        ConfigError: the loss of a document depends on its neighbour.
    """
    was_training = model.training
    model.eval()
    try:
        before, *changed = (_neighbours_nats(model, vocab_size, seed=seed) for seed in range(3))
    finally:
        model.train(was_training)
    if any(abs(nats - before) > TOLERANCE * before for nats in changed):
        raise ConfigError(
            f"model.architecture={architecture}: documents that share a row see each other, for this model does not "
            "part them by their positions. Choose another model."
        )


@torch.no_grad()
def _neighbours_nats(model: nn.Module, vocab_size: int, *, seed: int) -> float:
    """The loss of the second document, which stays the same, after a first one drawn by `seed`."""
    device = next(model.parameters()).device
    tokens = [
        torch.randint(vocab_size, (size,), generator=torch.Generator().manual_seed(draw))
        for size, draw in zip(DOCUMENTS, (seed + 1, 0), strict=True)
    ]
    input_ids = torch.cat(tokens)
    labels = torch.cat([torch.full_like(tokens[0], IGNORED), tokens[1].roll(-1)])
    position_ids = torch.cat([torch.arange(size) for size in DOCUMENTS])
    row = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    return float(next_token_nats(model, {name: value[None].to(device) for name, value in row.items()}))
