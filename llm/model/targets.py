"""A model -> the names of what LoRA can be put on: linear layers, and the tensors that experts have in their place."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm.config import ALL_LINEAR


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The last part of the name of each linear layer, each once; without the head, which may be the embeddings too."""
    head = model.get_output_embeddings()
    named = (name for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D) and part is not head)
    return list(dict.fromkeys(name.rpartition(".")[2] for name in named))


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """The names of the tensors (experts, outputs, inputs) of mixtures, such as mlp.experts.down_proj, each once."""
    places = (
        name.rpartition(".experts.")
        for name, tensor in model.named_parameters()
        if ".experts." in name and tensor.ndim == 3
    )
    return list(dict.fromkeys(f"{before.rpartition('.')[2]}.experts.{last}" for before, _, last in places))


def split_targets(model: PreTrainedModel, wanted: list[str] | None) -> tuple[list[str], list[str]]:
    """(layers, expert tensors) that `wanted` means; None means every linear layer."""
    layers, tensors = linear_layers(model), expert_tensors(model)
    if wanted is None:
        return layers, []
    if ALL_LINEAR in wanted:
        return layers, tensors
    names = set(wanted)
    return [name for name in layers if name in names], [name for name in tensors if name.rpartition(".")[2] in names]


def targets(model: PreTrainedModel) -> list[str]:
    """What can be named in lora.target_modules for a model."""
    return list(dict.fromkeys([*linear_layers(model), *(name.rpartition(".")[2] for name in expert_tensors(model))]))


def has_transposed_weights(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Whether layers of these names hold their weights (inputs, outputs), as GPT-2's do."""
    wanted = set(names)
    return any(isinstance(part, Conv1D) and name.rpartition(".")[2] in wanted for name, part in model.named_modules())
