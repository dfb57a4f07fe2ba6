"""A model config and a vocabulary -> a Hugging Face causal language model, and its folder."""

from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from llm.config import ModelConfig
from llm.model.architectures import hugging_face_config
from llm.tokenizer import Special


def build(config: ModelConfig, *, vocab_size: int, special: Special) -> PreTrainedModel:
    """A model with random weights, drawn from torch's global generator."""
    model = AutoModelForCausalLM.from_config(hugging_face_config(config, vocab_size=vocab_size, special=special))
    model.generation_config = GenerationConfig(
        bos_token_id=special.bos_id, eos_token_id=special.eos_id, pad_token_id=special.pad_id
    )
    return model


def load(folder: Path) -> PreTrainedModel:
    """The model in a folder of Hugging Face format, in fp32."""
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="float32")


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors."""
    disable_progress_bar()
    model.save_pretrained(folder)


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Parameters, tied ones once; `trainable` counts only those that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
