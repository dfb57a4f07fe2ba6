"""GELU in one operator: of the same values and gradients as the one that transformers writes out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel
from transformers.activations import ACT2FN

from llm.config.training import Architecture, ModelConfig
from llm.model import build, load
from llm.model.loading import WRITTEN_OUT
from llm.model.pretrained import load_pretrained
from llm.tokenizer import Special
from tests.rounding import assert_same_but_for_rounding

SHAPE: dict[str, Any] = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
SUMS = (32, 128, 32, 128)  # the width of two layers, and of what is between
FUSED = "gelu_pytorch_tanh"


def stock(activation: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(GPT2Config(**SHAPE, activation_function=activation))
    return model.eval()


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_values_and_gradients_are_those_of_the_function_written_out(name: str) -> None:
    """In fp64, where rounding hides nothing; gelu_fast has its constant to ten digits."""
    x = torch.linspace(-12, 12, 10_001, dtype=torch.float64, requires_grad=True)
    both = []
    for function in (ACT2FN[name], ACT2FN[FUSED]):
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        both.append((y.detach(), slope))
    for written_out, fused in zip(*both, strict=True):
        torch.testing.assert_close(fused, written_out, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [*WRITTEN_OUT, "gelu", "gelu_10", "quick_gelu", "relu", "silu", FUSED])
def test_a_model_keeps_its_logits_and_its_weights(name: str, tmp_path: Path) -> None:
    model, ids = stock(name), torch.arange(24).reshape(2, 12)
    model.save_pretrained(tmp_path)
    opened = load(tmp_path)
    assert opened.config.activation_function == (FUSED if name in WRITTEN_OUT else name)
    assert_same_but_for_rounding(opened(ids).logits, model(ids).logits, *SUMS)
    assert list(opened.state_dict()) == list(model.state_dict())


def test_a_model_has_it_wherever_it_comes_from(tmp_path: Path) -> None:
    stock("gelu_new").save_pretrained(tmp_path)
    config = ModelConfig(name="x", path=str(tmp_path))
    special = Special(bos_id=0, eos_id=0, pad_id=0, tokens=())
    own = ModelConfig(name="x", architecture=Architecture.gpt2, num_layers=2, num_heads=2, hidden_size=32)
    for model in (
        build(own, vocab_size=64, special=special),
        build(config, vocab_size=64, special=special),
        load(tmp_path),
        load_pretrained(config, tokenizer_folder=tmp_path, vocab_size=64),
    ):
        assert [type(block.mlp.act) for block in model.transformer.h] == [type(ACT2FN[FUSED])] * 2
