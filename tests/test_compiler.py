"""trainer.compile: one graph of every shipped architecture, and one line where torch.compile does not take a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from llm.config.training import Architecture
from llm.errors import ConfigError
from llm.model import compiled, document_bounds, next_token_loss
from llm.trainer.fit import fit
from tests.test_trainer import model_of, quick_peak, task  # noqa: F401  # a fixture


@pytest.mark.parametrize("architecture", list(Architecture))
def test_every_architecture_of_ours_makes_one_graph(architecture: Architecture) -> None:
    model = model_of(architecture).train()
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    row = {"input_ids": torch.zeros_like(positions), "labels": torch.zeros_like(positions), "position_ids": positions}
    torch.compiler.reset()
    nats, _ = next_token_loss(
        model, row | {"document_bounds": document_bounds(positions)}, passes=compiled(backend="eager")
    )
    torch.compiler.reset()  # graphs that stay would be one limit for all tests
    assert nats.isfinite()


def test_a_model_that_breaks_the_graph_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GPT2MLP.forward

    def forward_in_two_graphs(self: Any, hidden_states: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(self, hidden_states)

    monkeypatch.setattr(GPT2MLP, "forward", forward_in_two_graphs)
    with pytest.raises(ConfigError, match=r"^trainer.compile=true: torch.compile fails at this model: .*graph_break"):
        fit(task(tmp_path, compile=True))
    assert not (tmp_path / "checkpoints").exists()


def test_a_compiler_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "no-compiler")))
    torch.compiler.reset()
    with pytest.raises(ConfigError, match=r"torch.compile fails at this model: .*compiler.* Set trainer.compile=false"):
        fit(task(tmp_path, compile=True))


def test_other_failures_of_a_training_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler's fault")

    monkeypatch.setattr(GPT2MLP, "forward", fail)
    with pytest.raises(RuntimeError, match="no compiler's fault"):
        fit(task(tmp_path))
