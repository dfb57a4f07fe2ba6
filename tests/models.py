"""Models so small that a test makes many of them, and batches of random tokens for them."""

from typing import Any

import torch

from llm.config.training import ModelConfig
from llm.config.tuning import LoraConfig
from llm.model import add_lora, build, padding_of
from llm.model.loss import IGNORED
from llm.tokenizer.folder import Special

VOCAB = 50
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=1, tokens=("<|endoftext|>", "<|pad|>"))
SUMS = (16, 64, 16, 64, VOCAB)  # the width of two layers and of what is between, and the vocabulary


def small_config(architecture: str, **changes: Any) -> ModelConfig:
    small = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "max_position_embeddings": 64}
    return ModelConfig(name="small", architecture=architecture, **(small | changes))


def small_model(
    architecture: str = "gpt2",
    *,
    vocab_size: int = VOCAB,
    noise: float = 0.1,
    lora: LoraConfig | None = None,
    **changes: Any,
) -> Any:
    """The same weights at each call, with padding and without."""
    torch.manual_seed(0)
    model = build(small_config(architecture, **changes), vocab_size=vocab_size, special=SPECIAL)
    draw, padded = torch.Generator().manual_seed(1), padding_of(model)
    with torch.no_grad():  # what starts at zero or one would hide mistakes
        for parameter in model.parameters():
            tokens = parameter[:vocab_size] if parameter in padded else parameter
            tokens += noise * torch.randn(tokens.shape, generator=draw)
    return add_lora(model, lora) if lora else model


def random_ids(*shape: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def logits_of(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=input_ids, use_cache=False).logits.float()


def random_batch(position_ids: list[list[int]], *, vocab_size: int = VOCAB) -> dict[str, torch.Tensor]:
    """Of documents that begin where positions do; some labels are ignored."""
    shape = len(position_ids), len(position_ids[0])
    input_ids, labels = (random_ids(*shape, vocab_size=vocab_size, seed=seed) for seed in (0, 1))
    labels[0, ::5] = IGNORED
    return {"input_ids": input_ids, "labels": labels, "position_ids": torch.tensor(position_ids)}
