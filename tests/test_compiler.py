"""trainer.compile: what is known before a training, and what is said where torch.compile does not take a model."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from llm.config.training import Accelerator, Architecture, TrainerConfig
from llm.errors import ConfigError
from llm.model import compiled, document_bounds, next_token_loss
from llm.stage import run_stage
from llm.trainer import fit, require_compiler
from tests.test_dry_run import MODEL, config, text  # noqa: F401  # a fixture
from tests.test_trainer import model_of, quick_peak, task  # noqa: F401  # a fixture

ARCHITECTURES = list(Architecture)
LINE = r"^trainer.compile=true: torch.compile fails at this model: .*graph_break.*[^.]\. Set trainer.compile=false.$"


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every GPT-2 break its graph."""
    forward = GPT2MLP.forward

    def forward_in_two_graphs(self: Any, hidden_states: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(self, hidden_states)

    monkeypatch.setattr(GPT2MLP, "forward", forward_in_two_graphs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
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


@pytest.mark.usefixtures("breaking")
def test_a_command_whose_model_breaks_the_graph_ends_in_one_line(text: Path, tmp_path: Path) -> None:  # noqa: F811
    asked = config("pretrain", text, tmp_path / "outputs", *MODEL, "trainer.compile=true")
    with pytest.raises(ConfigError, match=LINE):
        run_stage(asked)
    (run,) = (tmp_path / "outputs" / "pretrain").iterdir()
    assert not (run / "checkpoints").exists()


@pytest.mark.usefixtures("breaking")
def test_what_fails_in_the_course_of_a_training_is_said_in_the_same_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=LINE):
        fit(task(tmp_path, compile=True))


def test_other_failures_of_a_training_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler's fault")

    monkeypatch.setattr(GPT2MLP, "forward", fail)
    with pytest.raises(RuntimeError, match="no compiler's fault"):
        fit(task(tmp_path))


@pytest.mark.parametrize(
    ("accelerator", "missing", "line"),
    [
        (Accelerator.cpu, "g++", r"trainer.compile=true needs a C\+\+ compiler, but there is no g\+\+ or clang\+\+"),
        (Accelerator.gpu, "triton", "trainer.compile=true needs the package triton on a GPU, but it is not installed"),
    ],
)
def test_compiling_without_a_compiler_is_refused(
    accelerator: Accelerator, missing: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = sys.modules["llm.trainer.compiler"]
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None if missing == "g++" else f"/usr/bin/{name}")
    monkeypatch.setattr(compiler, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=line):
        require_compiler(TrainerConfig(compile=True, accelerator=accelerator))
    require_compiler(TrainerConfig(accelerator=accelerator))
