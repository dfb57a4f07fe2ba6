"""trainer.compile: what is known before a training, and what is said where torch.compile does not take a model."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from llm.config import Accelerator, Architecture, TrainerConfig
from llm.errors import ConfigError
from llm.model import loss, next_token_loss
from llm.stage import run_stage
from llm.trainer import fit, require_compiler, require_one_graph
from tests import test_fast_path as fast_path
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
def test_every_architecture_of_ours_is_taken(architecture: Architecture) -> None:
    require_one_graph(model_of(architecture))


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_breaks_the_graph_is_refused_in_one_line(training: bool) -> None:
    model = model_of().train(training)
    with pytest.raises(ConfigError, match=LINE):
        require_one_graph(model)
    assert model.training is training


@pytest.mark.usefixtures("breaking")
def test_a_command_is_refused_before_it_trains(text: Path, tmp_path: Path) -> None:  # noqa: F811
    asked = config("pretrain", text, tmp_path / "outputs", *MODEL, "trainer.compile=true")
    with pytest.raises(ConfigError, match=LINE):
        run_stage(asked)
    (run,) = (tmp_path / "outputs" / "pretrain").iterdir()
    assert not (run / "metrics.jsonl").exists() and not (run / "checkpoints").exists()


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


def test_the_trial_leaves_the_shapes_of_the_training_what_they_are() -> None:
    """Of two shapes torch.compile makes the sizes symbolic, which kernels are slower for."""
    model = fast_path.model_of(Architecture.gpt2)
    require_one_graph(model)
    graphs: list[Any] = []
    nats = torch.compile(loss._nats, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    next_token_loss(model, fast_path.batch_of(fast_path.PACKED), passes=replace(loss.EAGER, nats=nats))
    (graph,) = graphs
    inputs = [node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"]
    assert all(type(size) is int for value in inputs if isinstance(value, torch.Tensor) for size in value.shape)
    assert {tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor) and value.ndim} >= {(3, 16)}


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
