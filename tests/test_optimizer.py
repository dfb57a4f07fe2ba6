"""The optimizer: what decays, and the learning rate of each step."""

import pytest
import torch

from llm.config import Architecture, LoraConfig, ModelConfig, OptimizerConfig
from llm.model import add_lora, build
from llm.optimizer import build as build_optimizer
from llm.optimizer import schedule
from llm.tokenizer import Special


def model_of(architecture: Architecture) -> torch.nn.Module:
    config = ModelConfig(name="small", architecture=architecture, num_layers=1, num_heads=2, hidden_size=8)
    return build(config, vocab_size=20, special=Special(bos_id=0, eos_id=0, pad_id=1, tokens=()))


def decays(model: torch.nn.Module) -> dict[str, float]:
    """The weight decay of each trained parameter, by name."""
    optimizer, _ = build_optimizer(model, OptimizerConfig(weight_decay=0.1), max_steps=10)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_the_matrices_of_gpt2_decay_and_nothing_else() -> None:
    block = "transformer.h.0."
    assert {name for name, decay in decays(model_of(Architecture.gpt2)).items() if decay == 0.1} == {
        f"{block}{layer}.weight" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_the_matrices_of_llama_decay_and_nothing_else() -> None:
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    mlp = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert {name for name, decay in decays(model_of(Architecture.llama)).items() if decay == 0.1} == {
        f"model.layers.0.{layer}.weight" for layer in attention + mlp
    }


@pytest.mark.parametrize("architecture", list(Architecture))
def test_every_parameter_is_optimized_once(architecture: Architecture) -> None:
    model = model_of(architecture)
    optimizer, _ = build_optimizer(model, OptimizerConfig(), max_steps=10)
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(optimized) == len(set(optimized)) == len(list(model.parameters()))


@pytest.mark.parametrize("architecture", list(Architecture))
def test_of_a_frozen_model_the_adapters_alone_are_optimized(architecture: Architecture) -> None:
    model = add_lora(model_of(architecture), LoraConfig(), architecture)
    found = decays(model)
    assert found and all("lora_" in name and decay == 0.1 for name, decay in found.items())


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 1 / 4),  # warmup counts its first step as one
        (1, 2 / 4),
        (3, 1.0),
        (4, 1.0),  # the cosine starts at its top
        (8, 0.1 + 0.9 * (1 + 0.5**0.5) / 2),  # a quarter of the way: cos 45 degrees
        (12, 0.1 + 0.9 / 2),  # midway: cos 90 degrees
        (20, 0.1),  # the last
        (25, 0.1),
    ],
)
def test_the_learning_rate_of_a_step(step: int, share: float) -> None:
    config = OptimizerConfig(warmup_steps=4, min_learning_rate_ratio=0.1)
    assert schedule(step, config, max_steps=21) == pytest.approx(share, rel=1e-12)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert schedule(0, OptimizerConfig(warmup_steps=0), max_steps=10) == 1.0


@pytest.mark.parametrize("warmup", [10, 20])
def test_a_run_may_end_in_its_warmup(warmup: int) -> None:
    config = OptimizerConfig(warmup_steps=warmup)
    assert [schedule(step, config, max_steps=10) for step in range(10)] == [(i + 1) / warmup for i in range(10)]


def test_each_optimizer_step_takes_the_learning_rate_of_the_schedule() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=2)
    optimizer, scheduler = build_optimizer(model_of(Architecture.gpt2), config, max_steps=6)
    for step in range(6):
        assert {group["lr"] for group in optimizer.param_groups} == {0.5 * schedule(step, config, max_steps=6)}
        optimizer.step()
        scheduler.step()


def test_a_step_is_the_step_of_adamw_worked_by_hand() -> None:
    weight, bias = torch.nn.Parameter(torch.full((1, 1), 2.0)), torch.nn.Parameter(torch.full((1,), 3.0))
    model = torch.nn.Module()
    model.weight, model.bias = weight, bias
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.1, beta1=0.5, beta2=0.75)
    optimizer, _ = build_optimizer(model, config, max_steps=10)
    gradients = (4.0, -2.0)
    moments = [0.0, 0.0]
    expected = [2.0, 3.0]
    for step, gradient in enumerate(gradients, start=1):
        weight.grad, bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        optimizer.step()
        moments = [0.5 * moments[0] + 0.5 * gradient, 0.75 * moments[1] + 0.25 * gradient**2]
        change = 0.5 * (moments[0] / (1 - 0.5**step)) / ((moments[1] / (1 - 0.75**step)) ** 0.5 + 1e-8)
        expected = [expected[0] * (1 - 0.5 * 0.1) - change, expected[1] - change]
        assert [weight.item(), bias.item()] == pytest.approx(expected, rel=1e-6)
