"""A folder in Hugging Face format <-> a model and the low-rank adapters on it: the one door for all of them.

Nothing of a folder is run: no code that it brings, no pickle, no attention kernel that it names; and nobody is asked
on the terminal. What a library raises is one line that names the folder.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from llm.config.training import MOST_LAYERS, Trainable
from llm.config.tuning import ALL_LINEAR, LoraConfig, Method
from llm.environment import local_rank
from llm.errors import ConfigError, DamagedError, first_line
from llm.run.console import log
from llm.run.models import CONFIG, bad_weights, opening, read_json, weight_files

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
ADAPTER = "default"  # PEFT's name for the only one
_ATTENTION = (None, "eager", "sdpa")
_OF_ELSEWHERE = ("auto_map", "transformers_weights")  # code, and weights by another name than transformers gives them
# Of a layer of bitsandbytes: on some CPUs the first forward pass that does not train lays its weights out anew, with
# constants rounded to bf16, and refuses widths that 64 does not divide: training goes on with other weights.
AVX512_LAYOUT = "support_avx512bf16_for_cpu"
UNPADDED = "ttukttak_unpadded_vocabulary"  # of a model with padding: its rows without


def load(
    folder: Path,
    *,
    adapter: Path | None = None,
    tuning: LoraConfig | None = None,
    dtype: str = "float32",
    key: str = "",
) -> Any:
    """The model in a folder, with the adapter in another; for a `tuning`, in the precision that this holds its base in.

    `dtype` is fp32 or "auto", what the folder has; `key` is how the user named the folder.

    Raises:
        ConfigError: it is of a kind that transformers does not have.
        DamagedError: its config or its weights cannot be used; or it is no adapter for that model.
    """
    how: dict[str, Any] = {"dtype": tuning.base_precision.value if tuning else dtype}
    if tuning and tuning.method is Method.qlora:
        place = local_rank() if torch.cuda.is_available() else "cpu"  # nothing has chosen a GPU for this process yet
        four_bits = BitsAndBytesConfig(  # NF4, its constants in 8 bits (arXiv:2305.14314, section 3)
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        how |= {"quantization_config": four_bits, "device_map": {"": place}}
    made = open_config(folder)
    _check_weights(folder, key=key)
    disable_progress_bar()
    with opening(folder):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=made, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, **how,
        )  # fmt: skip
    missing = sorted(map(str, report["missing_keys"]))
    if missing and getattr(model, "hf_quantizer", None) is None:  # which has names of its own for them
        raise bad_weights(key, folder, f"{len(missing)} weights are missing, such as {missing[0]}")
    if unused := sorted(map(str, report["unexpected_keys"])):
        log.warning("%s: %d weights are left out, which the model has not, as %s", folder, len(unused), unused[0])
    for layer in model.modules():
        if hasattr(layer, AVX512_LAYOUT):
            setattr(layer, AVX512_LAYOUT, False)
    return _with_adapter(model, adapter) if adapter else model


def new_model(made: PreTrainedConfig) -> PreTrainedModel:
    """A model of a config, in fp32, with random weights."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(made, dtype=torch.float32, trust_remote_code=False)
    return model


def open_config(folder: Path) -> PreTrainedConfig:
    """What config.json says.

    Raises:
        ConfigError: it is of a model that transformers does not have.
        DamagedError: it cannot be read, or is not what such a model takes.
    """
    path = folder / CONFIG
    raw = read_json(path)
    if (kind := raw.get("model_type")) is None:
        raise DamagedError(f"{path} cannot be read (it has no model_type). Give a folder in Hugging Face format.")
    if str(kind) not in CONFIG_MAPPING_NAMES:
        asks = ", and code that a model brings (auto_map) is not run" if "auto_map" in raw else ""
        raise ConfigError(f"{path}: model_type {kind} is none of transformers{asks}. Choose another model.")
    nested = raw.get("text_config")
    for settings in (raw, nested if isinstance(nested, dict) else {}):  # before there is an object for each
        for name in _LAYERS:
            if isinstance(number := settings.get(name), int) and number > MOST_LAYERS:
                raise DamagedError(f"{path}: {name}={number}, and a model has {MOST_LAYERS:,} at most. Put it right.")
    try:
        made: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each config of transformers has checks, and errors, of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"{path} is not what {kind} takes: {reason}. Put it right, or choose another.") from error
    for part in (made, made.get_text_config()):
        if part._attn_implementation not in _ATTENTION:
            raise DamagedError(
                f"{path} asks for the attention {part._attn_implementation}, and what a folder asks for is not loaded. "
                "Take attn_implementation out of it."
            )
        for name in _OF_ELSEWHERE:
            vars(part).pop(name, None)
    return made


def read_config(folder: Path, *, key: str) -> PreTrainedConfig:
    """What config.json says of a model to train; `key` is how the user named the folder.

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
    _check_weights(folder, key=key)
    return made


def outline(folder: Path, *, key: str) -> PreTrainedModel:
    """The model in a folder on the meta device, without its weights.

    Raises:
        ConfigError: as `read_config`.
        DamagedError: as `read_config`.
    """
    made = read_config(folder, key=key)
    with opening(folder), torch.device("meta"):
        return new_model(made)


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Leave out what PEFT 0.21 and transformers 5.23 have to settle between them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _with_adapter(base: PreTrainedModel, folder: Path) -> peft.PeftModel:
    """The base with an adapter, for use; it grows by the rows of tokens that the adapter brings."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise DamagedError(f"{folder} has no {ADAPTER_WEIGHTS}, and no pickle is read in its place. Put it there.")
    with opening(folder, as_a="adapter"), without_known_warnings():
        settings = peft.PeftConfig.from_pretrained(str(folder), local_files_only=True)
        ids = [id for rows in (settings.trainable_token_indices or {}).values() for id in rows]
        if ids and max(ids) >= base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(max(ids) + 1, mean_resizing=False)  # rows that the adapter has the values of
        return peft.PeftModel.from_pretrained(base, str(folder), local_files_only=True)


def _check_weights(folder: Path, *, key: str) -> None:
    """Open each file of weights, without reading them."""
    for path in weight_files(folder, key=key):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise bad_weights(key, folder, f"{path.name} cannot be read ({first_line(error)})") from None


# Adapters


def add_lora(
    base: PreTrainedModel, config: LoraConfig, *, new_token_ids: Sequence[int] = (), is_of_rows_alone: bool = False
) -> peft.PeftModel:
    """The base, frozen, with trainable adapters that change nothing yet.

    The rows of `new_token_ids` in the embeddings, and in the head where it has rows of its own, are trained as well; or
    they alone, without adapters.
    """
    wanted, tensors = config.target_modules, expert_tensors(base)
    layers: list[str] | str = _linear_layers(base)
    if is_of_rows_alone:
        layers, tensors = DUMMY_TARGET_MODULES, []  # PEFT's word for none
    elif wanted is None:
        tensors = []
    elif ALL_LINEAR not in wanted:
        layers = [name for name in layers if name in wanted]
        tensors = [name for name in tensors if name.rpartition(".")[2] in wanted]
    settings = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=layers,
        target_parameters=tensors or None,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in base.modules()),  # GPT-2's are (inputs, outputs)
        use_rslora=config.method is Method.rslora,
        use_dora=config.method is Method.dora,
        init_lora_weights="pissa" if config.method is Method.pissa else True,
        trainable_token_indices=_embeddings(base, new_token_ids),
    )
    with without_known_warnings():
        model = peft.get_peft_model(base, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, config.precision.value))
    if config.method is Method.pissa:  # its first adapters are taken out of the base: learned is what comes on top
        state = model.state_dict().items()
        vars(model)["beginning"] = {name: tensor.detach().clone() for name, tensor in state if ".lora_" in name}
    return model


def train_only(
    base: PreTrainedModel, trainable: Trainable, tuning: LoraConfig | None, *, new_token_ids: Sequence[int]
) -> Any:
    """The base with the rest frozen; itself, or in PEFT's layers, which `merge` takes out. `tuning` is of adapters."""
    has_embeddings = trainable in (Trainable.embeddings, Trainable.lora_embeddings)
    ends = _with_a_row_a_token(base) if has_embeddings else []
    if tuning is None and has_embeddings:
        model: Any = base.requires_grad_(False)
    else:
        rows = [] if has_embeddings else new_token_ids
        model = add_lora(base, tuning or LoraConfig(), new_token_ids=rows, is_of_rows_alone=tuning is None)
    for tensor in ends:
        tensor.requires_grad_(True)
    return model


def save_adapter(model: peft.PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, for the base as it was before the adapters."""
    settings = model.peft_config[ADAPTER]
    settings.target_modules = sorted(settings.target_modules)  # a set, which each process would write in another order
    beginning: dict[str, torch.Tensor] | None = vars(model).get("beginning")
    if beginning is None:
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    state = model.state_dict()
    for name, first in beginning.items():  # an update of the whole base: [B, -B0] [A; A0] = B A - B0 A0
        is_outer = ".lora_B." in name
        now = state[name]
        state[name] = torch.cat([now, (-first if is_outer else first).to(now)], dim=1 if is_outer else 0)
    changed = {"r": 2 * settings.r, "lora_alpha": 2 * settings.lora_alpha, "init_lora_weights": True}
    before = {name: getattr(settings, name) for name in changed}
    try:
        vars(settings).update(changed)
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    finally:
        vars(settings).update(before)


def save_merged(model: peft.PeftModel, folder: Path) -> None:
    """Write the whole model in fp32, what PEFT's layers hold put into it; `model` is used up."""
    merged = merge(model.float())
    disable_progress_bar()
    merged.save_pretrained(folder)


def merge(model: peft.PeftModel) -> PreTrainedModel:
    """The base with the adapters' updates added to its weights, and the rows of new tokens put in; `model` is used up.

    It is the base itself that is changed. In fp32 its logits are those of `model` to about 1e-5.
    """
    return model.merge_and_unload(safe_merge=True)


def targets(model: PreTrainedModel) -> list[str]:
    """What can be named in lora.target_modules for a model: each linear layer but the head, and tensors of experts."""
    tensors = [name.rpartition(".")[2] for name in expert_tensors(model)]
    return list(dict.fromkeys([*_linear_layers(model), *tensors]))


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """The names of the tensors (experts, outputs, inputs) of mixtures, such as mlp.experts.down_proj, each once."""
    named = [name for name, tensor in model.named_parameters() if ".experts." in name and tensor.ndim == 3]
    return list(dict.fromkeys(".".join(name.split(".")[-3:]) for name in named))


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """The last part of each linear layer's name, each once; without the head, which may be the embeddings too."""
    head, kinds = model.get_output_embeddings(), (nn.Linear, Conv1D)
    named = [name for name, part in model.named_modules() if isinstance(part, kinds) and part is not head]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in named))


def _embeddings(base: PreTrainedModel, new_token_ids: Sequence[int]) -> dict[str, list[int]] | None:
    """The modules whose rows belong to tokens -> the rows that are trained; a tied head follows by itself."""
    if not new_token_ids:
        return None
    words, head = base.get_input_embeddings(), base.get_output_embeddings()
    modules = [words] if head is None or head.weight is words.weight else [words, head]
    names = {part: name for name, part in base.named_modules()}
    return {names[part]: sorted(new_token_ids) for part in modules}


# The vocabulary


def grow(model: PreTrainedModel, vocab_size: int, new_ids: Sequence[int]) -> None:
    """Give the embeddings `vocab_size` rows at least, those of `new_ids` by the rule of `take_rows`; in place."""
    rows = model.get_input_embeddings().weight.shape[0]
    if new_ids:
        take_rows(model, max(rows, vocab_size), {row: row for row in range(rows) if row not in set(new_ids)})


@torch.no_grad()
def take_rows(
    model: PreTrainedModel,
    vocab_size: int,
    kept: Mapping[int, int],
    *,
    pieces: Mapping[int, Mapping[int, float]] | None = None,
    is_random: bool = False,
) -> None:
    """Give the embeddings, and the head where it is not tied to them, `vocab_size` rows; in place.

    Row n is what row kept[n] was, or the sum of the rows in pieces[n], each by its weight. Any other is the mean of the
    rows that are kept, which predicts a new token neither more nor less than the others are (Hewitt 2021, "Initializing
    new word embeddings for pretrained language models"); or `is_random`: drawn with their mean and deviation.
    """
    new, old = list(kept), list(kept.values())
    before = [tensor.clone() for tensor in _with_a_row_a_token(model)]
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    for tensor, values in zip(_with_a_row_a_token(model), before, strict=True):
        known = (values[old] if old else values).float()
        drawn = known.std(dim=0) * torch.randn(tensor.shape) if is_random else 0.0
        tensor[:] = (known.mean(dim=0) + drawn).to(tensor.dtype)
        tensor[new] = values[old]
        for row, of in (pieces or {}).items():
            weights = torch.tensor([*of.values()]).reshape(-1, *[1] * (values.ndim - 1))
            tensor[row] = (weights * values[[*of]].float()).sum(dim=0).to(tensor.dtype)


@torch.no_grad()
def pad(model: PreTrainedModel, multiple: int | None) -> None:
    """Raise the rows of the embeddings and of the head to a multiple; in place. The new ones are zero."""
    rows = model.get_input_embeddings().weight.shape[0]
    if multiple is None or rows % multiple == 0:
        return
    model.resize_token_embeddings(-(-rows // multiple) * multiple, mean_resizing=False)
    setattr(model, UNPADDED, rows)
    for tensor in _with_a_row_a_token(model):
        tensor[rows:] = 0


def unpad(model: PreTrainedModel) -> None:
    """Take the padding away; in place."""
    if (rows := unpadded(model)) is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
        delattr(model, UNPADDED)


def unpadded(model: Any) -> int | None:
    """The tokens that a model with padding has; None of one without."""
    size: int | None = getattr(model, UNPADDED, None)
    return size


def padding_of(model: Any) -> dict[nn.Parameter, int]:
    """The values of each parameter that are padding, where there are some."""
    if (rows := unpadded(model)) is None:
        return {}
    return {tensor: tensor[rows:].numel() for tensor in _with_a_row_a_token(model)}


def _with_a_row_a_token(model: PreTrainedModel) -> list[nn.Parameter]:
    """The embeddings', and the head's, tied ones once."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tensors = [getattr(end, name, None) for end in ends for name in ("weight", "bias")]
    return list(dict.fromkeys(tensor for tensor in tensors if isinstance(tensor, nn.Parameter)))
