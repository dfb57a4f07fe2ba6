"""A model config and a vocabulary -> a Hugging Face causal language model, and its folder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from llm.config.training import ModelConfig
from llm.config.tuning import LoraConfig, Method
from llm.model.architectures import hugging_face_config
from llm.model.loading import load_adapter, new_model, open_model
from llm.model.pretrained import folder_of_model, load_pretrained, read_config
from llm.model.vocabulary import pad, padding_of, unpad
from llm.run.models import Model
from llm.tokenizer import Special
from llm.tokenizer import special as special_tokens

# Of a layer of bitsandbytes: on some CPUs the first forward pass that does not train lays its weights out anew, with
# constants rounded to bf16, and refuses widths that 64 does not divide: training goes on with other weights.
AVX512_LAYOUT = "support_avx512bf16_for_cpu"


def build(config: ModelConfig, *, vocab_size: int, special: Special) -> PreTrainedModel:
    """A model with random weights, drawn from torch's global generator; with a path, one of the shape that is there."""
    if config.path is None:
        made = hugging_face_config(config, vocab_size=vocab_size, special=special)
    else:
        made = read_config(folder_of_model(config))
        made.vocab_size = vocab_size if config.resize_vocabulary else made.vocab_size
    model = new_model(made)
    pad(model, config.pad_vocab_to_multiple_of)
    return with_special(model, special)


def begin(config: ModelConfig, *, tokenizer_folder: Path, vocab_size: int) -> PreTrainedModel:
    """The model that training begins with: random, or that of config.path; for this tokenizer."""
    special = special_tokens(tokenizer_folder)
    if config.path is None:
        return build(config, vocab_size=vocab_size, special=special)
    model = load_pretrained(config, tokenizer_folder=tokenizer_folder, vocab_size=vocab_size)
    pad(model, config.pad_vocab_to_multiple_of)
    return with_special(model, special)


def with_special(model: PreTrainedModel, special: Special) -> PreTrainedModel:
    """The model with the special tokens of a tokenizer, in its config and for generation."""
    ids = {"bos_token_id": special.bos_id, "eos_token_id": special.eos_id, "pad_token_id": special.pad_id}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)
    return model


def load(folder: Path, tuning: LoraConfig | None = None) -> PreTrainedModel:
    """The model in a folder of Hugging Face format, in fp32; or in the precision that a tuning holds its base in.

    Raises:
        ConfigError: it is of a kind that transformers does not have.
        DamagedError: its config or its weights cannot be used.
    """
    how: dict[str, Any] = {"dtype": tuning.base_precision.value if tuning else "float32"}
    if tuning and tuning.method is Method.qlora:
        place = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        how |= {"quantization_config": four_bits(), "device_map": {"": place}}
    model = open_model(folder, **how)
    for layer in model.modules():
        if hasattr(layer, AVX512_LAYOUT):
            setattr(layer, AVX512_LAYOUT, False)
    return model


def load_for_use(model: Model) -> Any:
    """A model in fp32 with the adapter that it has, if any.

    Raises:
        ConfigError: as load.
        DamagedError: as load; or it is no adapter for that model.
    """
    loaded = load(model.weights)
    return (load_adapter(loaded, model.adapter) if model.adapter else loaded).eval()


def four_bits() -> BitsAndBytesConfig:
    """How a base is held in 4 bits: NF4, its constants in 8 bits, multiplied in bf16 (arXiv:2305.14314, section 3)."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


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
