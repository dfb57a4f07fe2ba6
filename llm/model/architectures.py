"""A model config -> the Hugging Face config of its architecture."""

from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from llm.config import Architecture, ModelConfig
from llm.errors import ConfigError
from llm.model.loading import new_model
from llm.tokenizer import Special

NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN = 8, 2
SLIDING_WINDOW = 512  # tokens that a local layer of gemma3 sees (Gemma 3 report, arXiv:2503.19786, 270M and 1B)

_CONFIGS: dict[Architecture, type[PreTrainedConfig]] = {
    Architecture.gpt2: GPT2Config,
    Architecture.llama: LlamaConfig,
    Architecture.qwen3: Qwen3Config,
    Architecture.gemma3: Gemma3TextConfig,
    Architecture.qwen3_moe: Qwen3MoeConfig,
}
# What is not to be set by hand, and what sets it.
_FROM_ELSEWHERE = {
    "vocab_size": "the tokenizer",
    "bos_token_id": "the tokenizer",
    "eos_token_id": "the tokenizer",
    "pad_token_id": "the tokenizer",
    "model_type": "model.architecture",
    "architectures": "model.architecture",
    "dtype": "trainer.precision",
    "transformers_version": "the library",
}


def hugging_face_config(config: ModelConfig, *, vocab_size: int, special: Special) -> PreTrainedConfig:
    """The config of a model with these sizes, this vocabulary, and what model.extra adds.

    Raises:
        ConfigError: model.extra has a key that the architecture lacks or that has a setting of its own, or a value that
            cannot be.
    """
    assert config.architecture is not None  # a config without one has a path, and is read from there
    settings = _settings(config)
    _check_extra(config, settings)
    try:
        return _CONFIGS[config.architecture](
            vocab_size=vocab_size,
            bos_token_id=special.bos_id,
            eos_token_id=special.eos_id,
            pad_token_id=special.pad_id,
            tie_word_embeddings=config.tie_word_embeddings,
            use_cache=True,
            **settings | config.extra,
        )
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        if not config.extra:
            raise
        reason = " ".join(str(error).split())
        raise _refusal(config, reason) from None


def check_extra(config: ModelConfig) -> None:
    """Refuse, before any work, what model.extra cannot be: configs check their types alone, so a model is built.

    Raises:
        ConfigError: as of `hugging_face_config`; or no model can be built of it.
    """
    made = hugging_face_config(config, vocab_size=1, special=Special(bos_id=0, eos_id=0, pad_id=0, tokens=()))
    try:
        with torch.device("meta"):
            new_model(made)
    except Exception as error:  # each model of transformers has errors of its own
        raise _refusal(config, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _refusal(config: ModelConfig, reason: str) -> ConfigError:
    assert config.architecture is not None
    kind, reason = config.architecture.value, reason.removesuffix(".")
    return ConfigError(f"model.extra={config.extra} is not what {kind} takes: {reason}. Put it right, or leave it out.")


def _check_extra(config: ModelConfig, settings: dict[str, Any]) -> None:
    assert config.architecture is not None
    known = set(_CONFIGS[config.architecture]().to_dict())
    for key in config.extra:
        if key in settings or key in _FROM_ELSEWHERE:
            by = _FROM_ELSEWHERE.get(key, "another setting of model")
            raise ConfigError(f"model.extra.{key} is set by {by}. Remove it.")
        if key not in known:
            close = get_close_matches(key, known - set(settings), n=1)
            hint = f"Did you mean model.extra.{close[0]}?" if close else "Remove it."
            raise ConfigError(f"model.extra.{key} is not in the config of {config.architecture.value}. {hint}")


def _settings(config: ModelConfig) -> dict[str, Any]:
    """What model's own settings say, by the names of the Hugging Face config."""
    if config.architecture is Architecture.gpt2:
        return {
            "n_positions": config.max_position_embeddings,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.intermediate_size,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    settings: dict[str, Any] = {
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads or config.num_heads,
        "head_dim": config.hidden_size // config.num_heads,
        "intermediate_size": config.intermediate_size or swiglu_size(config.hidden_size),
        "attention_dropout": config.dropout,  # these have dropout on attention weights only
    }
    if config.architecture is Architecture.gemma3:
        settings["query_pre_attn_scalar"] = settings["head_dim"]
        if "sliding_window" not in config.extra:
            settings["sliding_window"] = SLIDING_WINDOW
    if config.architecture is Architecture.qwen3_moe:
        chosen = config.num_experts_per_token or NUM_EXPERTS_PER_TOKEN
        settings |= {
            "num_local_experts": config.num_experts or NUM_EXPERTS,
            "num_experts_per_tok": chosen,
            "moe_intermediate_size": config.intermediate_size or -(-settings["intermediate_size"] // chosen // 32) * 32,
            "norm_topk_prob": True,  # as Qwen3's own models have it (arXiv:2505.09388)
        }
    return settings


def swiglu_size(hidden_size: int) -> int:
    """8/3 of the hidden size, so that three matrices cost what GPT-2's two do (Shazeer 2020), rounded up to 32."""
    return -(-8 * hidden_size // 3 // 32) * 32
