"""A model config and a vocabulary -> a Hugging Face causal language model, and its folder."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from llm.config import Architecture, ModelConfig
from llm.tokenizer import Special


def build(config: ModelConfig, *, vocab_size: int, special: Special) -> PreTrainedModel:
    """A model with random weights, drawn from torch's global generator."""
    model = AutoModelForCausalLM.from_config(_hugging_face_config(config, vocab_size=vocab_size, special=special))
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


def _hugging_face_config(config: ModelConfig, *, vocab_size: int, special: Special) -> PreTrainedConfig:
    tokens: dict[str, Any] = {
        "bos_token_id": special.bos_id,
        "eos_token_id": special.eos_id,
        "pad_token_id": special.pad_id,
    }
    if config.architecture is Architecture.gpt2:
        return GPT2Config(
            vocab_size=vocab_size,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.intermediate_size,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            tie_word_embeddings=config.tie_word_embeddings,
            use_cache=True,
            **tokens,
        )
    if config.dropout:
        # Llama has dropout on attention weights only.
        tokens |= {"attention_dropout": config.dropout}
    return LlamaConfig(
        vocab_size=vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_key_value_heads,
        intermediate_size=config.intermediate_size or _swiglu_size(config.hidden_size),
        tie_word_embeddings=config.tie_word_embeddings,
        **tokens,
    )


def _swiglu_size(hidden_size: int) -> int:
    """8/3 of the hidden size, so that three matrices cost what GPT-2's two do (Shazeer 2020), rounded up to 32."""
    return -(-8 * hidden_size // 3 // 32) * 32
