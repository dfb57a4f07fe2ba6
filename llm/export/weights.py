"""A model or an adapter -> its files in Hugging Face format, and proof that what is read back is what was written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llm import model as models
from llm.config.export import ExportConfig, WeightType
from llm.errors import UnequalError
from llm.export.proof import Trial, end, require_close, require_same_text, write
from llm.run.console import log
from llm.run.files import write_json
from llm.tokenizer import Special

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def export_model(model: Any, folder: Path, trial: Trial, special: Special, config: ExportConfig) -> dict[str, Any]:
    """Write a whole model in Hugging Face format, an adapter merged into its base; gives what was proved of it.

    `model` is that of the run, in fp32, which `trial` was made with; it is of no use afterwards.

    Raises:
        UnequalError: the merged model, or the one that is read back from the files, is not the run's.
    """
    merged = models.merge(model) if hasattr(model, "merge_and_unload") else model
    end(merged, special)
    merging = _prove(merged, trial, replace(config, dtype=WeightType.fp32), what="the merged model")
    _say_whether_tied(merged)
    for role in ("bos", "eos", "pad"):
        setattr(merged.config, f"{role}_token_id", getattr(special, f"{role}_id"))
    merged = merged.to(getattr(torch, config.dtype.value))
    merged.save_pretrained(folder)
    read = read_back(folder, merged)
    proof = _prove(read, trial, config, what=f"the exported model in {config.dtype.name}")
    texts = {name: merging[name] for name in ("texts_compared", "texts_parted_at_ties")}
    return proof | texts | {"max_logit_difference_of_merge": merging["max_logit_difference"]}


def export_adapter(
    source: Path, base: Path, folder: Path, trial: Trial, special: Special, config: ExportConfig
) -> dict[str, Any]:
    """Write the adapter of folder `source` on the base of another in PEFT format; gives what was proved of it.

    Raises:
        UnequalError: with its base it is not the run's model.
    """
    save_adapter(source, folder, dtype=config.dtype, base_model=config.base_model or str(base.resolve()))
    read = models.load_adapter(models.load(base), folder).eval()
    end(read, special)
    return _prove(read, trial, config, what=f"the exported adapter in {config.dtype.name}")


def _prove(model: Any, trial: Trial, config: ExportConfig, *, what: str) -> dict[str, Any]:
    """What run.json and the card say of a model that was compared with the run."""
    proof: dict[str, Any] = require_close(model, trial, config, what=what)
    texts = ties = 0
    if config.dtype is WeightType.fp32:  # rounded weights may write another text where two tokens are nearly as likely
        within, texts = proof["max_logit_difference"], len(trial.written)
        ties = require_same_text(trial.written, write(model, trial.prompts), within=within, what=what)
    return proof | {
        "positions_compared": trial.num_positions,
        "texts_compared": texts,
        "texts_parted_at_ties": ties,
        "parameters": models.count_parameters(model),
    }


def _say_whether_tied(model: Any) -> None:
    """Have the config say what the weights are: by it, readers such as vLLM take the head from the embeddings."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.config.tie_word_embeddings or head.weight is embeddings.weight:
        return
    if torch.equal(head.weight, embeddings.weight):
        head.weight = embeddings.weight
    else:
        model.config.tie_word_embeddings = False
        log.info("the head was trained apart from the embeddings that it was tied to: they are exported untied")


def read_back(folder: Path, written: nn.Module) -> Any:
    """The model in a folder as transformers loads it, in the dtype that the folder says.

    Raises:
        UnequalError: one of its tensors is not what `written` has.
    """
    read = models.open_model(folder, dtype="auto").eval()
    before, after = written.state_dict(), read.state_dict()
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after or not _same(before[name], after[name]):
            raise UnequalError(
                f"{name} does not come back from the files as it was written. Nothing was exported. Look whether the "
                "disk is sound, and start the same command again."
            )
    return read


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def save_adapter(source: Path, folder: Path, *, dtype: WeightType, base_model: str) -> None:
    """Copy an adapter in PEFT format, its tensors in `dtype`, its config naming the base where others find it."""
    weights = load_file(source / ADAPTER_FILES[0])
    kept = {name: tensor.to(getattr(torch, dtype.value)) for name, tensor in weights.items()}
    save_file(kept, folder / ADAPTER_FILES[0], metadata={"format": "pt"})
    config = json.loads((source / ADAPTER_FILES[1]).read_text(encoding="utf-8"))
    write_json(folder / ADAPTER_FILES[1], config | {"base_model_name_or_path": base_model})
