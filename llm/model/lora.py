"""A frozen base -> the same model with low-rank adapters, and the adapter's folder in PEFT format."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
from transformers import PreTrainedModel

from llm.config import LINEAR_LAYERS, Architecture, LoraConfig


def add_lora(base: PreTrainedModel, config: LoraConfig, architecture: Architecture) -> peft.PeftModel:
    """The base, frozen, with trainable adapters that change nothing yet (B starts at zero)."""
    settings = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules or LINEAR_LAYERS[architecture],
        fan_in_fan_out=architecture is Architecture.gpt2,  # its Conv1D layers hold their weights transposed
    )
    with _without_known_warnings():
        return peft.get_peft_model(base, settings)


def load_adapter(base: PreTrainedModel, folder: Path) -> peft.PeftModel:
    """The base with the adapter in `folder`, for use."""
    with _without_known_warnings():
        return peft.PeftModel.from_pretrained(base, str(folder))


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    """Leave out what PEFT 0.21 and transformers 5.23 have to settle between them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
