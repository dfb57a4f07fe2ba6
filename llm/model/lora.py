"""A frozen base -> the same model with low-rank adapters, their folder in PEFT format, and both as one model."""

from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm.config.tuning import ALL_LINEAR, LoraConfig, Method
from llm.model.pretrained import without_known_warnings

ADAPTER = "default"  # PEFT's name for the only one


def add_lora(base: PreTrainedModel, config: LoraConfig, *, new_token_ids: Sequence[int] = ()) -> peft.PeftModel:
    """The base, frozen, with trainable adapters that change nothing yet.

    The rows of `new_token_ids` in the embeddings, and in the head where it has rows of its own, are trained as well.
    """
    layers, tensors = _split_targets(base, config.target_modules)
    settings = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=layers,
        target_parameters=tensors or None,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in _linear_layers(base)),  # GPT-2's are (inputs, outputs)
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
    if config.method is Method.pissa:
        _remember_beginning(model)
    return model


def save_adapter(model: peft.PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, for the base as it was before the adapters."""
    settings = model.peft_config[ADAPTER]
    settings.target_modules = sorted(settings.target_modules)  # a set, which each process would write in another order
    beginning: dict[str, torch.Tensor] | None = vars(model).get("beginning")
    if beginning is None:
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    changed = {"r": 2 * settings.r, "lora_alpha": 2 * settings.lora_alpha, "init_lora_weights": True}
    before = {name: getattr(settings, name) for name in changed}
    try:
        vars(settings).update(changed)
        model.save_pretrained(folder, state_dict=_as_update(model, beginning), save_embedding_layers=False)
    finally:
        vars(settings).update(before)


def merge(model: peft.PeftModel) -> PreTrainedModel:
    """The base with the adapters' updates added to its weights, and the rows of new tokens put in; `model` is used up.

    It is the base itself that is changed. In fp32 its logits are those of `model` to about 1e-5.
    """
    return model.merge_and_unload(safe_merge=True)


def targets(model: PreTrainedModel) -> list[str]:
    """What can be named in lora.target_modules for a model: each linear layer but the head, and tensors of experts."""
    layers, tensors = _split_targets(model, [ALL_LINEAR])
    return list(dict.fromkeys([*layers, *(name.rpartition(".")[2] for name in tensors)]))


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """The names of the tensors (experts, outputs, inputs) of mixtures, such as mlp.experts.down_proj, each once."""
    places = (
        name.rpartition(".experts.")
        for name, tensor in model.named_parameters()
        if ".experts." in name and tensor.ndim == 3
    )
    return list(dict.fromkeys(f"{before.rpartition('.')[2]}.experts.{last}" for before, _, last in places))


def _linear_layers(model: PreTrainedModel) -> dict[nn.Module, str]:
    """Each linear layer -> the last part of its name; without the head, which may be the embeddings too."""
    head, kinds = model.get_output_embeddings(), (nn.Linear, Conv1D)
    named = model.named_modules()
    return {part: name.rpartition(".")[2] for name, part in named if isinstance(part, kinds) and part is not head}


def _split_targets(model: PreTrainedModel, wanted: list[str] | None) -> tuple[list[str], list[str]]:
    """(the names of layers, of expert tensors) that `wanted` means; None means every linear layer."""
    layers, tensors = list(dict.fromkeys(_linear_layers(model).values())), expert_tensors(model)
    if wanted is None:
        return layers, []
    if ALL_LINEAR in wanted:
        return layers, tensors
    return [name for name in layers if name in wanted], [name for name in tensors if name.rpartition(".")[2] in wanted]


def _embeddings(base: PreTrainedModel, new_token_ids: Sequence[int]) -> dict[str, list[int]] | None:
    """The modules whose rows belong to tokens -> the rows that are trained; a tied head follows by itself."""
    if not new_token_ids:
        return None
    words, head = base.get_input_embeddings(), base.get_output_embeddings()
    modules = [words] if head is None or head.weight is words.weight else [words, head]
    names = {part: name for name, part in base.named_modules()}
    return {names[part]: sorted(new_token_ids) for part in modules}


def _remember_beginning(model: peft.PeftModel) -> None:
    """Keep PiSSA's first adapters, which it has taken out of the base: what is learned is what came on top of them."""
    vars(model)["beginning"] = {
        name: tensor.detach().clone() for name, tensor in model.state_dict().items() if ".lora_" in name
    }


def _as_update(model: peft.PeftModel, beginning: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state with the adapters as an update of the whole base, of twice the rank: [B, -B0] [A; A0] = B A - B0 A0."""
    state = model.state_dict()
    for name, first in beginning.items():
        is_outer = ".lora_B." in name
        now = state[name]
        state[name] = torch.cat([now, (-first if is_outer else first).to(now)], dim=1 if is_outer else 0)
    return state
