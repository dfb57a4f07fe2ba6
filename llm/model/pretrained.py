"""A folder of a model that is there already -> its config and digest, checked; the model, for a tokenizer."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm import tokenizer
from llm.config.training import ModelConfig
from llm.errors import ConfigError
from llm.model.architectures import settings_of
from llm.model.loading import check_weights, open_config, open_model
from llm.model.vocabulary import take_rows
from llm.run.console import log
from llm.run.files import digest_of, sha256_of
from llm.run.models import CONFIG, folder_of, opening, read_json, weight_files

KEY = "model.path"


def folder_of_model(config: ModelConfig) -> Path:
    """The folder that config.path means.

    Raises:
        ConfigError: it is none, or holds no model.
    """
    assert config.path is not None
    return folder_of(config.path, key=KEY, file=CONFIG)


def with_settings_of_folder(config: ModelConfig) -> ModelConfig:
    """A config with a path, with the architecture and the sizes that the folder has: what else was typed is refused.

    Raises:
        ConfigError: there is no causal language model that can be trained, or a setting says otherwise than it.
    """
    folder = folder_of_model(config)
    made = read_config(folder)
    with opening(folder):
        found = settings_of(made)
    for key, value in found.items():
        default = None if key == "architecture" else ModelConfig.__dataclass_fields__[key].default
        if (typed := getattr(config, key)) not in (default, value):
            raise ConfigError(f"model.{key}={typed}, but the model in {folder} has {value}. Leave it out.")
    return replace(config, **found)


def read_config(folder: Path, *, key: str = KEY) -> PreTrainedConfig:
    """What config.json says; `key` is how the user named the folder.

    Raises:
        ConfigError: it is not of a causal language model that transformers has and that can be trained.
        DamagedError: it cannot be read, or there are no safetensors beside it that can.
    """
    path, made = folder / CONFIG, open_config(folder)
    raw = read_json(path)
    built = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(made.model_type)
    if not isinstance(built, str) or raw.get("architectures", [built]) != [built] or "Conditional" in built:
        held = ", ".join(map(str, raw.get("architectures") or [made.model_type]))
        raise ConfigError(f"{path} is of {held}, not a causal language model of text alone. Choose another.")
    if raw.get("quantization_config"):
        raise ConfigError(f"{path}: its weights are quantised, and whole ones are needed. Give the model they are of.")
    check_weights(folder, key=key)
    return made


def digest_of_model(folder: Path) -> str:
    """SHA-256 of the weights and of config.json: what training goes on from."""
    raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return digest_of([raw, *(sha256_of(path) for path in weight_files(folder, key=KEY))])


def check_tokenizer(config: ModelConfig, folder: Path, tokenizer_folder: Path) -> None:
    """Refuse a tokenizer whose ids mean other tokens than the model has learned, unless that is asked for.

    Raises:
        ConfigError: it is another than that of the folder; or, where the folder has none, its size or its end differ.
    """
    if config.resize_vocabulary:
        return
    if (folder / "tokenizer.json").is_file():
        if tokenizer.gives_same_ids(folder, tokenizer_folder):
            return
        reason = "it is another than the model's own tokenizer.json"
    else:
        made, special = read_config(folder), tokenizer.special(tokenizer_folder)
        number = tokenizer.load(tokenizer_folder).get_vocab_size()
        if (number, special.eos_id) == (made.vocab_size, made.eos_token_id):
            log.warning("%s has no tokenizer.json: its tokenizer is told by size and end alone", folder)
            return
        reason = (
            f"it has {number} tokens and eos {special.eos_id}, the model {made.vocab_size} and {made.eos_token_id} "
            "(it brings no tokenizer.json)"
        )
    raise ConfigError(
        f"tokenizer: {reason}, in {folder}. Choose tokenizer=pretrained, which takes that, or set "
        "model.resize_vocabulary=true to go on with new embeddings for new tokens."
    )


def load_pretrained(config: ModelConfig, *, tokenizer_folder: Path, vocab_size: int) -> PreTrainedModel:
    """The model of config.path in fp32, with embeddings for every token; new ones are the mean of the old.

    Raises:
        ConfigError: there are fewer embeddings than tokens.
        DamagedError: weights are missing, of other shapes, or damaged.
    """
    folder = folder_of_model(config)
    read_config(folder)
    model = open_model(folder, key=KEY, dtype=torch.float32)
    log.info("going on from %s", folder)
    if config.resize_vocabulary:
        _take_tokenizer(model, folder, tokenizer_folder)
    elif (rows := model.get_input_embeddings().weight.shape[0]) < vocab_size:
        raise ConfigError(
            f"model.path={config.path} has {rows} embeddings for {vocab_size} tokens. Set model.resize_vocabulary=true."
        )
    return model


def _take_tokenizer(model: PreTrainedModel, folder: Path, tokenizer_folder: Path) -> None:
    """Give each token of another tokenizer the embedding of the token of the same text, where there is one."""
    tokens, rows = tokenizer.tokens_of(tokenizer_folder), model.get_input_embeddings().weight.shape[0]
    known = tokenizer.tokens_of(folder) if (folder / "tokenizer.json").is_file() else dict(tokens)
    kept = {number: known[text] for text, number in tokens.items() if known.get(text, rows) < rows}
    take_rows(model, len(tokens), kept)
    log.info(
        "vocabulary: %d tokens in place of %d; %d keep the embedding of their text, %d get new ones, the mean of those",
        len(tokens),
        rows,
        len(kept),
        len(tokens) - len(kept),
    )
