"""A model config -> a Hugging Face causal language model: with random weights, or going on from a folder's."""

import json
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from llm.config.training import ModelConfig, NewEmbeddings
from llm.config.tuning import LoraConfig
from llm.errors import ConfigError
from llm.model.pretrained import load, new_model, pad, padding_of, read_config, take_rows, unpad
from llm.run.console import log
from llm.run.files import digest_of, sha256_of
from llm.run.models import CONFIG, TOKENIZER, folder_of, opening, weight_files
from llm.tokenizer.folder import Special, gives_same_ids, pieces_of, tokens_of

KEY = "model.path"
# Settings of model by the names to which configs of transformers answer; the first that one has.
_NAMES = {
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "hidden_size": ("hidden_size",),
    "max_position_embeddings": ("max_position_embeddings",),
    "num_key_value_heads": ("num_key_value_heads",),
    "num_experts": ("num_local_experts",),
    "num_experts_per_token": ("num_experts_per_tok",),
    "intermediate_size": ("moe_intermediate_size", "intermediate_size", "n_inner"),
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")
# What is of an architecture where the default of transformers is not; model.extra may say otherwise.
_OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"activation_function": "gelu_pytorch_tanh"},  # gelu_new in one operator instead of seven: 6 % of a step
    "gemma3_text": {"sliding_window": 512},  # Gemma 3 report, arXiv:2503.19786, 270M and 1B
    "qwen3_moe": {"norm_topk_prob": True},  # arXiv:2505.09388
}
_FROM_ELSEWHERE = {"architectures", "dtype", "model_type", "tie_word_embeddings", "transformers_version"}
_FROM_ELSEWHERE |= {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}  # of the tokenizer


def build(
    config: ModelConfig,
    *,
    vocab_size: int,
    special: Special,
    tokenizer_folder: Path | None = None,
    tuning: LoraConfig | None = None,
) -> PreTrainedModel:
    """A model with random weights, drawn from torch's global generator; of config.path, one of the shape that is there.

    With the folder of a tokenizer, that of config.path has its weights, and embeddings for every token; for a `tuning`
    in the precision that this holds its base in.

    Raises:
        ConfigError: as `hugging_face_config`; or there are fewer embeddings than tokens.
        DamagedError: weights are missing, of other shapes, or damaged.
    """
    if config.path is not None and tokenizer_folder is not None:
        model = _go_on(config, tuning, tokenizer_folder=tokenizer_folder, vocab_size=vocab_size)
    elif config.path is not None:
        made = read_config(_folder(config), key=KEY)
        made.vocab_size = vocab_size if config.resize_vocabulary else made.vocab_size
        model = new_model(made)
    else:
        model = new_model(hugging_face_config(config, vocab_size=vocab_size, special=special))
    pad(model, config.pad_vocab_to_multiple_of)
    ids = {"bos_token_id": special.bos_id, "eos_token_id": special.eos_id, "pad_token_id": special.pad_id}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)
    return model


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors; padding is taken away, of the model too."""
    disable_progress_bar()
    unpad(model)
    model.save_pretrained(folder)


def count_base_parameters(model: nn.Module) -> int:
    """Parameters of a model without its adapters, tied ones once; what 4 bits hold counts as many as there are."""
    base = {p for name, p in model.named_parameters() if "lora_" not in name and "trainable_tokens" not in name}
    return sum(map(_size_of, base))


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Parameters, tied ones once, padding left out; `trainable` counts only those that are trained."""
    padding = padding_of(model)
    return sum(_size_of(p) - padding.get(p, 0) for p in model.parameters() if p.requires_grad or not trainable)


def _size_of(parameter: nn.Parameter) -> int:
    return int(getattr(getattr(parameter, "quant_state", parameter), "shape", parameter.shape).numel())


def flops_per_token(model: nn.Module, config: PreTrainedConfig, *, sequence_length: int) -> float:
    """Forward and backward: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    N: parameters that a token is multiplied with: not embeddings, which are looked up (but the head that is tied to
    them), of the experts those that it goes through, and no padding of the vocabulary, which is of no use to the
    model. A frozen one takes 4, as it has no gradient of its own.
    L: layers; H x Q: heads times their size; T: tokens per row, or the window of a layer that sees fewer.
    """
    end: Any = model.get_output_embeddings()  # type: ignore[operator]  # of every Hugging Face model
    head = getattr(end, "original_module", end).weight  # PEFT's, where rows of new tokens are trained
    looked_up = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)} - {head}
    chosen = getattr(config, "num_experts_per_tok", 1) / getattr(config, "num_local_experts", 1)
    padding = padding_of(model)
    multiplied = 0.0
    for name, parameter in model.named_parameters():
        share = chosen if ".experts." in name else 1.0
        share = 0.0 if parameter in looked_up else share
        multiplied += share * (parameter.numel() - padding.get(parameter, 0)) * (6 if parameter.requires_grad else 4)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    seen = sum(min(sequence_length, config.sliding_window) if "sliding" in k else sequence_length for k in kinds)
    return multiplied + 12.0 * width * seen


# Architectures


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
    settings = _settings(config, known)
    _check_extra(config, {*settings, *(default.attribute_map.get(name) for name in settings)}, known)
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
    except Exception as error:  # each config of transformers has checks, and errors, of its own
        raise _refusal(config, error) from None
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
        raise _refusal(config, error) from error


def settings_of(made: PreTrainedConfig) -> dict[str, Any]:
    """What is in ModelConfig, of a Hugging Face config."""
    stem = made.model_type.removesuffix("_text")
    return {
        "architecture": stem if _model_type(stem) == made.model_type else made.model_type,
        **{key: _first(made, names) for key, names in _NAMES.items()},
        "dropout": float(_first(made, _DROPOUTS) or 0.0),
        "tie_word_embeddings": bool(made.tie_word_embeddings),
    }


def _first(made: PreTrainedConfig, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(made, name, None)) is not None), None)


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
    settings: dict[str, Any] = {name: config.dropout for name in _DROPOUTS if name in known}
    for key, names in _NAMES.items():
        name, value = next((name for name in names if name in known), None), getattr(config, key)
        if value is not None and name is None:
            raise ConfigError(f"model.{key}={value} is no setting of {config.architecture}. Leave it out.")
        if name is not None:
            settings[name] = value
    head_size = config.hidden_size // config.num_heads
    # 8/3 of the hidden size, so that three matrices cost what GPT-2's two do (Shazeer 2020), rounded up to 32
    inner_size = -(-8 * config.hidden_size // 3 // 32) * 32
    if "num_key_value_heads" in settings:
        settings |= {"num_key_value_heads": config.num_key_value_heads or config.num_heads, "head_dim": head_size}
    if "query_pre_attn_scalar" in known:
        settings["query_pre_attn_scalar"] = head_size
    if "num_experts_per_tok" in settings:
        settings["num_local_experts"] = config.num_experts or 8
        settings["num_experts_per_tok"] = config.num_experts_per_token or 2
    if "moe_intermediate_size" in known:
        each = -(-inner_size // settings["num_experts_per_tok"] // 32) * 32
        settings["moe_intermediate_size"] = config.intermediate_size or each
    if "intermediate_size" in known:  # n_inner has a default of its own: 4 x hidden_size
        settings["intermediate_size"] = config.intermediate_size or inner_size
    return settings


def _check_extra(config: ModelConfig, is_set: set[str | None], known: set[str]) -> None:
    for key in config.extra:
        if key in is_set or key in _FROM_ELSEWHERE:
            raise ConfigError(f"model.extra.{key} is set by another setting, or by the tokenizer. Remove it.")
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"Did you mean model.extra.{close[0]}?" if close else "Remove it."
            raise ConfigError(f"model.extra.{key} is not in the config of {config.architecture}. {hint}")


def _refusal(config: ModelConfig, error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300].removesuffix('.')}"
    return ConfigError(
        f"model.extra={config.extra} with these settings of model is not what {config.architecture} takes: {reason}. "
        "Put it right, or leave it out."
    )


# Going on from a folder


def with_settings_of_folder(config: ModelConfig) -> ModelConfig:
    """A config with a path, with the architecture and the sizes that the folder has.

    Raises:
        ConfigError: there is no causal language model that can be trained, or a setting says otherwise than it.
    """
    folder = _folder(config)
    made = read_config(folder, key=KEY)
    with opening(folder):
        found = settings_of(made)
    for key, value in found.items():
        default = None if key == "architecture" else ModelConfig.__dataclass_fields__[key].default
        if (typed := getattr(config, key)) not in (default, value):
            raise ConfigError(f"model.{key}={typed}, but the model in {folder} has {value}. Leave it out.")
    return replace(config, **found)


def digest_of_folder(config: ModelConfig) -> str:
    """SHA-256 of the weights and of config.json that config.path means: what training goes on from."""
    folder = _folder(config)
    raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return digest_of([raw, *(sha256_of(path) for path in weight_files(folder, key=KEY))])


def check_tokenizer(config: ModelConfig, tokenizer_folder: Path) -> None:
    """Refuse a tokenizer whose ids mean other tokens than the model has learned, unless that is asked for.

    Raises:
        ConfigError: it is another than that of the folder, or the folder has none.
    """
    folder = _folder(config)
    has_own = (folder / TOKENIZER).is_file()
    if config.resize_vocabulary or (has_own and gives_same_ids(folder, tokenizer_folder)):
        return
    reason = "it is another than the model's own tokenizer.json" if has_own else "the model brings no tokenizer.json"
    raise ConfigError(
        f"tokenizer: {reason}, in {folder}. Choose tokenizer=pretrained, which takes that, or set "
        "model.resize_vocabulary=true to go on with new embeddings for new tokens."
    )


def _folder(config: ModelConfig) -> Path:
    """The folder that config.path means."""
    assert config.path is not None
    return folder_of(config.path, key=KEY, file=CONFIG)


def _go_on(
    config: ModelConfig, tuning: LoraConfig | None, *, tokenizer_folder: Path, vocab_size: int
) -> PreTrainedModel:
    folder = _folder(config)
    read_config(folder, key=KEY)
    model: PreTrainedModel = load(folder, tuning=tuning, key=KEY)
    log.info("going on from %s", folder)
    if config.resize_vocabulary:
        _take_tokenizer(model, folder, tokenizer_folder, rule=config.new_embeddings)
    elif (rows := model.get_input_embeddings().weight.shape[0]) < vocab_size:
        raise ConfigError(
            f"model.path={config.path} has {rows} embeddings for {vocab_size} tokens. Set model.resize_vocabulary=true."
        )
    return model


def _take_tokenizer(
    model: PreTrainedModel, folder: Path, tokenizer_folder: Path, *, rule: NewEmbeddings | None
) -> None:
    """Give each token of another tokenizer the embedding of the token of the same text, where there is one.

    Any other is made of those of the base's tokens for its text, by the rule. Of a folder without a tokenizer the
    tokens are taken for those of the same number.
    """
    tokens, rows = tokens_of(tokenizer_folder), model.get_input_embeddings().weight.shape[0]
    has_own = (folder / TOKENIZER).is_file()
    known = tokens_of(folder) if has_own else dict(tokens)
    kept = {number: known[text] for text, number in tokens.items() if known.get(text, rows) < rows}
    new = [text for text, number in tokens.items() if number not in kept]
    pieces: dict[int, dict[int, float]] = {}
    if has_own and rule not in (NewEmbeddings.mean, NewEmbeddings.random):
        found = pieces_of(folder, new)
        pieces = {tokens[text]: _weights(of, rule) for text, of in found.items() if all(n < rows for n, _ in of)}
    take_rows(model, len(tokens), kept, pieces=pieces, is_random=rule is NewEmbeddings.random)
    log.info(
        "vocabulary: %d tokens in place of %d; %d keep the embedding of their text, %d get that of their pieces in "
        "the base, %d the mean",
        *(len(tokens), len(known), len(kept), len(pieces), len(new) - len(pieces)),
    )


def _weights(pieces: list[tuple[int, int]], rule: NewEmbeddings | None) -> dict[int, float]:
    """By token the share that it has in a new one, of (id, length) of each piece of its text."""
    if rule is NewEmbeddings.last:
        return {pieces[-1][0]: 1.0}
    lengths = [length if rule is NewEmbeddings.weighted else 1 for _, length in pieces]
    shares: dict[int, float] = {}
    for (number, _), length in zip(pieces, lengths, strict=True):
        shares[number] = shares.get(number, 0.0) + length / sum(lengths)
    return shares
