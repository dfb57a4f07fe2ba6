"""Documents that share a row do not see each other: for each architecture and way of packing."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.config.data import Packing
from llm.config.training import Architecture
from llm.data.order import MicroBatch
from llm.errors import ConfigError
from llm.model import next_token_nats, require_isolation
from tests.models import small_model
from tests.rounding import assert_same_but_for_rounding, rounding
from tests.test_data_rows import random_shards, write_rows

VOCAB = 97
SUMS = (16, 64, 24) * 2  # of two layers: their width, what is between, and the positions of a row
PACKED = [
    *((architecture, Packing.best_fit, "sdpa") for architecture in Architecture),
    (Architecture.gpt2, Packing.concatenate, "sdpa"),
    (Architecture.llama, Packing.concatenate, "eager"),
    (Architecture.qwen3, Packing.padded, "sdpa"),
]


def model_of(architecture: Architecture, attention: str = "sdpa", *, dropout: float = 0.0) -> Any:
    model = small_model(architecture, vocab_size=VOCAB, dropout=dropout).eval()
    model.set_attn_implementation(attention)
    return model


def logits_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
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


@pytest.mark.parametrize(("architecture", "packing", "attention"), PACKED)
def test_a_document_in_a_row_has_the_logits_that_it_has_alone_and_no_neighbour_moves_a_bit_of_them(
    architecture: Architecture, packing: Packing, attention: str, tmp_path: Path
) -> None:
    model, batch = model_of(architecture, attention), shared_rows(tmp_path, packing)
    packed = logits_of(model, batch)
    assert len(packed) >= 3
    for row, positions in enumerate(batch["position_ids"]):
        starts = [*torch.where(positions == 0)[0].tolist(), len(positions)]
        for start, end in pairwise(starts):
            alone = logits_of(model, {name: value[row : row + 1, start:end] for name, value in batch.items()})
            assert_same_but_for_rounding(packed[row : row + 1, start:end], alone, *SUMS)
    documents = (batch["position_ids"] == 0).cumsum(1)  # (rows, seq): the number of each position's document
    for number in range(1, int(documents.max()) + 1):
        mine = documents == number
        changed = torch.where(mine, (batch["input_ids"] + 7) % VOCAB, batch["input_ids"])
        after = logits_of(model, batch | {"input_ids": changed})
        # An expert multiplies all tokens that chose it at once: how many they are moves the last bits.
        bound = rounding(*SUMS) * float(packed.abs().max()) if architecture is Architecture.qwen3_moe else 0.0
        assert (after[~mine] - packed[~mine]).abs().max() <= bound
        assert (after[mine] != packed[mine]).any(-1).all()


# The question that is asked of every model before it is trained


@pytest.mark.parametrize("architecture", list(Architecture))
def test_the_models_that_there_are_pass_whether_they_are_in_training_or_not(architecture: Architecture) -> None:
    model = model_of(architecture, dropout=0.5)
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        require_isolation(model, vocab_size=VOCAB, architecture=architecture.value)
        assert model.training is training
    assert torch.equal(torch.get_rng_state(), state)  # else it would change the weights and the dropout of a run


class Careless(torch.nn.Module):
    """A model that is called otherwise than it is asked to be."""

    def __init__(self, model: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
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
@pytest.mark.parametrize("architecture", [Architecture.gpt2, Architecture.llama])
def test_a_model_that_lets_documents_see_each_other_is_refused(
    architecture: Architecture, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    careless = Careless(model_of(architecture), change)
    with pytest.raises(ConfigError, match=f"model.architecture={architecture.value}: documents that share a row see"):
        require_isolation(careless, vocab_size=VOCAB, architecture=architecture.value)
