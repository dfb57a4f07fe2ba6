"""A model's config <-> the Hugging Face config of the architecture that it names: any causal one of transformers."""

from difflib import get_close_matches
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm.config.training import ModelConfig
from llm.errors import ConfigError
from llm.model.loading import new_model
from llm.tokenizer import Special

NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN = 8, 2

# Settings of model by the names to which configs of transformers answer, whatever they call them themselves.
_SIZES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_size": "hidden_size",
    "max_position_embeddings": "max_position_embeddings",
}
_SOME_HAVE = {
    "num_key_value_heads": "num_key_value_heads",
    "num_experts": "num_local_experts",
    "num_experts_per_token": "num_experts_per_tok",
}
_INNER_SIZES = ("moe_intermediate_size", "intermediate_size", "n_inner")
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")
# What is of an architecture where the default of transformers is not; model.extra may say otherwise.
_OWN: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 512},  # Gemma 3 report, arXiv:2503.19786, 270M and 1B
    "qwen3_moe": {"norm_topk_prob": True},  # arXiv:2505.09388
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
        ConfigError: transformers has no such architecture, it cannot have one of the settings, or model.extra has a key
            that it lacks or that has a setting of its own, or a value that cannot be.
    """
    assert config.architecture is not None  # a config without one has a path, and is read from there
    kind = _model_type(config.architecture)
    default = AutoConfig.for_model(kind)
    known = {*default.to_dict(), *default.attribute_map}
    settings = {default.attribute_map.get(name, name): value for name, value in _settings(config, known).items()}
    _check_extra(config, {*settings, *(name for name, own in default.attribute_map.items() if own in settings)}, known)
    try:
        made: PreTrainedConfig = AutoConfig.for_model(
            kind,
            vocab_size=vocab_size,
            bos_token_id=special.bos_id,
            eos_token_id=special.eos_id,
            pad_token_id=special.pad_id,
            tie_word_embeddings=config.tie_word_embeddings,
            use_cache=True,
            **settings | _OWN.get(kind, {}) | config.extra,
        )
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise _refusal(config, " ".join(str(error).split())) from None
    return made


def check_architecture(config: ModelConfig) -> None:
    """Refuse, before any work, what transformers cannot build: configs check their types alone, so a model is built.

    Raises:
        ConfigError: as of `hugging_face_config`; or no model can be built of it.
    """
    made = hugging_face_config(config, vocab_size=1, special=Special(bos_id=0, eos_id=0, pad_id=0, tokens=()))
    try:
        with torch.device("meta"):
            new_model(made)
    except Exception as error:  # each model of transformers has errors of its own
        raise _refusal(config, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def settings_of(made: PreTrainedConfig) -> dict[str, Any]:
    """What is in ModelConfig, of a Hugging Face config."""
    inner, dropout = (
        next((value for name in names if (value := getattr(made, name, None)) is not None), None)
        for names in (_INNER_SIZES, _DROPOUTS)
    )
    stem = made.model_type.removesuffix("_text")
    return {
        "architecture": stem if _model_type(stem) == made.model_type else made.model_type,
        **{key: getattr(made, name) for key, name in _SIZES.items()},
        **{key: getattr(made, name, None) for key, name in _SOME_HAVE.items()},
        "intermediate_size": inner,
        "dropout": float(dropout or 0.0),
        "tie_word_embeddings": bool(made.tie_word_embeddings),
    }


def swiglu_size(hidden_size: int) -> int:
    """8/3 of the hidden size, so that three matrices cost what GPT-2's two do (Shazeer 2020), rounded up to 32."""
    return -(-8 * hidden_size // 3 // 32) * 32


def _model_type(architecture: str) -> str:
    """The name that transformers has for it: of a family whose models also see, that of the part for text."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if found := next((name for name in (f"{architecture}_text", architecture) if name in names), None):
        return str(found)
    close = get_close_matches(architecture, names, n=1)
    hint = f"Did you mean {close[0]}?" if close else "Name one by its model_type."
    raise ConfigError(f"model.architecture={architecture} is no causal language model of transformers. {hint}")


def _settings(config: ModelConfig, known: set[str]) -> dict[str, Any]:
    """What model's own settings say, by the names of a Hugging Face config that has the keys `known`."""
    for key, name in _SIZES.items():
        if name not in known:
            raise ConfigError(f"model.architecture={config.architecture} has no model.{key} to set. Choose another.")
    some_have = {key: (name,) for key, name in _SOME_HAVE.items()} | {"intermediate_size": _INNER_SIZES}
    for key, names in some_have.items():
        if getattr(config, key) is not None and known.isdisjoint(names):
            raise ConfigError(
                f"model.{key}={getattr(config, key)} is no setting of {config.architecture}. Leave it out."
            )
    settings: dict[str, Any] = {name: getattr(config, key) for key, name in _SIZES.items()}
    settings |= {name: config.dropout for name in _DROPOUTS if name in known}
    head_size, inner_size = config.hidden_size // config.num_heads, swiglu_size(config.hidden_size)
    if "num_key_value_heads" in known:
        settings |= {"num_key_value_heads": config.num_key_value_heads or config.num_heads, "head_dim": head_size}
    if "query_pre_attn_scalar" in known:
        settings["query_pre_attn_scalar"] = head_size
    if "num_experts_per_tok" in known:
        settings["num_local_experts"] = config.num_experts or NUM_EXPERTS
        settings["num_experts_per_tok"] = config.num_experts_per_token or NUM_EXPERTS_PER_TOKEN
    if "moe_intermediate_size" in known:
        each = -(-inner_size // settings["num_experts_per_tok"] // 32) * 32
        settings["moe_intermediate_size"] = config.intermediate_size or each
    if "intermediate_size" in known:
        settings["intermediate_size"] = config.intermediate_size or inner_size
    elif "n_inner" in known:
        settings["n_inner"] = config.intermediate_size  # None: 4 x hidden_size
    return settings


def _check_extra(config: ModelConfig, is_set: set[str], known: set[str]) -> None:
    for key in config.extra:
        if key in is_set or key in _FROM_ELSEWHERE:
            by = _FROM_ELSEWHERE.get(key, "another setting of model")
            raise ConfigError(f"model.extra.{key} is set by {by}. Remove it.")
        if key not in known:
            close = get_close_matches(key, known - is_set, n=1)
            hint = f"Did you mean model.extra.{close[0]}?" if close else "Remove it."
            raise ConfigError(f"model.extra.{key} is not in the config of {config.architecture}. {hint}")


def _refusal(config: ModelConfig, reason: str) -> ConfigError:
    said = f"model.extra={config.extra} is" if config.extra else "model's settings are"
    return ConfigError(
        f"{said} not what {config.architecture} takes: {reason.removesuffix('.')}. Put it right, or leave it out."
    )
