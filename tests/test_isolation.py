"""Documents that share a row do not see each other: for each architecture, attention path and way of packing."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from llm.config.data import Packing
from llm.config.training import Architecture
from llm.data.order import MicroBatch
from llm.errors import ConfigError
from llm.model import next_token_nats, require_isolation
from llm.tokenizer.folder import Special
from tests.rounding import assert_same_but_for_rounding, rounding
from tests.test_data_rows import random_shards, write_rows
from tests.test_model import model_of as small_model

VOCAB = 97
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=1, tokens=("<|endoftext|>",))
SUMS = (16, 64, 24) * 2  # of two layers: their width, what is between, and the positions of a row
ARCHITECTURES = list(Architecture)
ATTENTION_PATHS = ["sdpa", "eager"]


def model_of(architecture: Architecture, attention: str = "sdpa", *, dropout: float = 0.0) -> PreTrainedModel:
    model = small_model(architecture, vocab_size=VOCAB, dropout=dropout)
    model.set_attn_implementation(attention)
    return model


def logits_of(model: PreTrainedModel, batch: dict[str, Any]) -> torch.Tensor:
    """What the training loss is taken of: (rows, seq, vocab)."""
    seen = []
    handle = model.register_forward_hook(lambda _module, _arguments, output: seen.append(output.logits))
    with torch.no_grad():
        next_token_nats(model, batch)
    handle.remove()
    return seen[0]


def shared_rows(folder: Path, packing: Packing) -> dict[str, Any]:
    """Rows that have more than one document, or a document and padding, with tokens of the small vocabulary."""
    shards, _ = random_shards(5)
    shards = [[[token % (VOCAB - 2) + 2 for token in document] for document in shard] for shard in shards]
    rows = write_rows(folder, shards, sequence_length=24, packing=packing)
    batch = rows.__getitems__(MicroBatch(0, np.arange(len(rows)), 1))
    shared = (batch["position_ids"][:, 1:] == 0).any(1)
    return {name: batch[name][shared] for name in ("input_ids", "labels", "position_ids")}


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("attention", ATTENTION_PATHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_changed_document_leaves_the_logits_of_its_neighbours_as_they_were(
    architecture: Architecture, attention: str, packing: Packing, tmp_path: Path
) -> None:
    model, batch = model_of(architecture, attention), shared_rows(tmp_path, packing)
    documents = (batch["position_ids"] == 0).cumsum(1)  # (rows, seq): the number of each position's document
    before = logits_of(model, batch)
    assert len(before) >= 3
    for number in range(1, int(documents.max()) + 1):
        mine = documents == number
        changed = torch.where(mine, (batch["input_ids"] + 7) % VOCAB, batch["input_ids"])
        after = logits_of(model, batch | {"input_ids": changed})
        # An expert multiplies all tokens that chose it at once: how many they are moves the last bits.
        bound = rounding(*SUMS) * float(before.abs().max()) if architecture is Architecture.qwen3_moe else 0.0
        assert (after[~mine] - before[~mine]).abs().max() <= bound
        assert (after[mine] != before[mine]).any(-1).all()


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("attention", ATTENTION_PATHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_document_in_a_row_has_the_logits_that_it_has_alone(
    architecture: Architecture, attention: str, packing: Packing, tmp_path: Path
) -> None:
    model, batch = model_of(architecture, attention), shared_rows(tmp_path, packing)
    packed = logits_of(model, batch)
    for row, positions in enumerate(batch["position_ids"]):
        starts = [*torch.where(positions == 0)[0].tolist(), len(positions)]
        for start, end in pairwise(starts):
            alone = logits_of(model, {name: value[row : row + 1, start:end] for name, value in batch.items()})
            assert_same_but_for_rounding(packed[row : row + 1, start:end], alone, *SUMS)


# The question that is asked of every model before it is trained


@pytest.mark.parametrize("attention", ATTENTION_PATHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_models_that_there_are_pass_whether_they_are_in_training_or_not(
    architecture: Architecture, attention: str
) -> None:
    model = model_of(architecture, attention, dropout=0.5)
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        require_isolation(model, vocab_size=VOCAB, architecture=architecture.value)
        assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)  # else it would change the weights and the dropout of a run


class Careless(torch.nn.Module):
    """A model that is called otherwise than it is asked to be."""

    def __init__(self, model: PreTrainedModel, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, **arguments: Any) -> Any:
        return self.model(**self.change(arguments))


@pytest.mark.parametrize(
    "change",
    [
        lambda arguments: arguments | {"attention_mask": torch.ones_like(arguments["input_ids"])},
        lambda arguments: arguments | {"use_cache": True},
        lambda arguments: {k: v for k, v in arguments.items() if k != "position_ids"},
    ],
    ids=["a mask of ones", "a cache", "positions that go on"],
)
@pytest.mark.parametrize("attention", ATTENTION_PATHS)
@pytest.mark.parametrize("architecture", [Architecture.gpt2, Architecture.llama])
def test_a_model_that_lets_documents_see_each_other_is_refused(
    architecture: Architecture, attention: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    careless = Careless(model_of(architecture, attention), change)
    with pytest.raises(ConfigError, match=f"model.architecture={architecture.value}: documents that share a row see"):
        require_isolation(careless, vocab_size=VOCAB, architecture=architecture.value)
