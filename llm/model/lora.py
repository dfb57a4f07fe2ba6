"""A frozen base -> the same model with low-rank adapters, and the adapter's folder in PEFT format."""

from pathlib import Path

import peft
from transformers import PreTrainedModel

from llm.config import LINEAR_LAYERS, Architecture, LoraConfig


def add_lora(base: PreTrainedModel, config: LoraConfig, architecture: Architecture) -> peft.PeftModel:
    """The base, frozen, with trainable adapters that change nothing yet (B starts at zero)."""
    return peft.get_peft_model(
        base,
        peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM,
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=config.target_modules or LINEAR_LAYERS[architecture],
            fan_in_fan_out=architecture is Architecture.gpt2,  # its Conv1D layers hold their weights transposed
        ),
    )


def load_adapter(base: PreTrainedModel, folder: Path) -> peft.PeftModel:
    """The base with the adapter in `folder`, for use."""
    return peft.PeftModel.from_pretrained(base, str(folder))
