"""Scoring and writing many texts at once: exactly what each gives alone, by a slow loop over the model's own logits."""

from pathlib import Path

import pytest
import torch

from llm import model as models
from llm import tokenizer
from llm.config.training import Architecture, ModelConfig
from llm.evaluation.scoring import Scorer
from tests.korean import save_preset, sentences

POSITIONS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_preset("char_bpe", tmp_path_factory.mktemp("tokenizer"), vocab_size=500, initial_alphabet="none")


@pytest.fixture(
    params=list(Architecture),
    ids=lambda architecture: architecture.value,
)
def scorer(request: pytest.FixtureRequest, folder: Path) -> Scorer:
    torch.manual_seed(0)
    config = ModelConfig(
        name="tiny",
        architecture=request.param,
        num_layers=2,
        num_heads=2,
        hidden_size=16,
        max_position_embeddings=POSITIONS,
    )
    special = tokenizer.special(folder)
    words = tokenizer.load(folder)
    model = models.build(config, vocab_size=words.get_vocab_size(), special=special).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # weights as small as new ones give every token nearly the same
    return Scorer(model, words, special, positions=POSITIONS, batch_tokens=200)


def alone(scorer: Scorer, text: str) -> float:
    """Nats of the tokens after bos, one after the other, from the row by itself."""
    ids = [scorer.special.bos_id, *scorer.tokenizer.encode(text).ids]
    with torch.no_grad():
        scores = torch.log_softmax(scorer.model(torch.tensor([ids])).logits[0].double(), -1)
    return -sum(float(scores[place - 1, ids[place]]) for place in range(1, len(ids)))


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_a_text_costs_in_a_batch_what_it_costs_alone(scorer: Scorer, batch_tokens: int) -> None:
    together = Scorer(scorer.model, scorer.tokenizer, scorer.special, positions=POSITIONS, batch_tokens=batch_tokens)
    texts = [text[:length] for text, length in zip(sentences(12), range(2, 26, 2), strict=True)]
    found = together.nats([*texts, texts[0]])
    assert list(found) == texts
    assert list(found.values()) == pytest.approx([alone(scorer, text) for text in texts], rel=1e-5)
