"""Scoring and writing many texts at once: exactly what each gives alone, by a slow loop over the model's own logits."""

from pathlib import Path

import pytest
import torch

from llm import model as models
from llm import tokenizer
from llm.config.training import Architecture, ModelConfig
from llm.evaluation import Scorer
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


def alone(scorer: Scorer, ids: list[int], first: int) -> tuple[float, bool]:
    """Nats of the tokens from place `first` on, one after the other, from the row by itself."""
    with torch.no_grad():
        scores = torch.log_softmax(scorer.model(torch.tensor([ids])).logits[0].double(), -1)
    nats = [-float(scores[place - 1, ids[place]]) for place in range(first, len(ids))]
    return sum(nats), all(int(scores[place - 1].argmax()) == ids[place] for place in range(first, len(ids)))


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_a_row_costs_in_a_batch_what_it_costs_alone(scorer: Scorer, batch_tokens: int) -> None:
    together = Scorer(scorer.model, scorer.tokenizer, scorer.special, positions=POSITIONS, batch_tokens=batch_tokens)
    encoded = [scorer.encode(text)[:length] for text, length in zip(sentences(12), [*range(2, 60, 5)], strict=True)]
    rows = [(ids, 1 + number % (len(ids) - 1)) for number, ids in enumerate(encoded)]
    greedy = torch.tensor([encoded[0]])
    for _ in range(5):  # a row whose end is what the model would write
        greedy = torch.cat([greedy, scorer.model(greedy).logits[:, -1:].argmax(-1)], 1)
    rows.append((greedy[0].tolist(), len(encoded[0])))
    found = together.score(rows)
    expected = [alone(scorer, *row) for row in rows]
    assert [line.nats for line in found] == pytest.approx([nats for nats, _ in expected], rel=1e-5)
    assert [line.is_greedy for line in found] == [is_greedy for _, is_greedy in expected]
    assert found[-1].is_greedy and not all(line.is_greedy for line in found)


def test_a_text_is_scored_after_bos_and_each_once(scorer: Scorer) -> None:
    first, second = sentences(2)
    found = scorer.nats([first, second, first])
    assert list(found) == [first, second]
    for text in (first, second):
        ids = [scorer.special.bos_id, *scorer.tokenizer.encode(text).ids]
        assert found[text] == pytest.approx(alone(scorer, ids, 1)[0], rel=1e-5)
