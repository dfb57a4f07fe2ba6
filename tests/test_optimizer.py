"""The optimizer: what decays, and the learning rate of each step."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from llm.config.training import Algorithm, Architecture, DecayShape, OptimizerConfig, Schedule
from llm.optimizer import build as build_optimizer
from llm.optimizer import extension_step, schedule
from llm.trainer.module import clip_and_step
from tests.models import small_model
from tests.test_trainer import same, weights


def model_of(architecture: Architecture, **changes: Any) -> torch.nn.Module:
    return small_model(architecture, vocab_size=20, num_layers=1, hidden_size=8, **changes)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_every_parameter_is_optimized_once_and_matrices_alone_decay(architecture: Architecture) -> None:
    model = model_of(architecture)
    optimizer, _ = build_optimizer(model, OptimizerConfig(weight_decay=0.1), max_steps=10)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = [(names[p], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(name for name, _ in decays) == sorted(names.values())
    if architecture is Architecture.gpt2:
        layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        assert {name for name, decay in decays if decay} == {f"transformer.h.0.{each}.weight" for each in layers}


WSD = OptimizerConfig(schedule=Schedule.wsd, warmup_steps=2, decay_share=0.5, min_learning_rate_ratio=0.2)


@pytest.mark.parametrize(
    ("config", "shares"),
    [  # of 10 steps
        (
            OptimizerConfig(schedule=Schedule.linear, warmup_steps=2, min_learning_rate_ratio=0.3),
            [1 / 2, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
        ),
        (OptimizerConfig(schedule=Schedule.constant, warmup_steps=2), [1 / 2, *[1] * 9]),
        (
            OptimizerConfig(warmup_steps=4, min_learning_rate_ratio=0.1),  # cosine: its top, 60, 36 and 0 degrees left
            [1 / 4, 2 / 4, 3 / 4, 1, *(0.1 + 0.45 * (1 + math.cos(math.pi * step / 5)) for step in range(6))],
        ),
        (WSD, [1 / 2, *[1] * 5, 0.2 + 0.8 * (1 - 0.5), 0.2 + 0.8 * (1 - 0.5**0.5), 0.2 + 0.8 * (1 - 0.75**0.5), 0.2]),
        (replace(WSD, decay_shape=DecayShape.linear), [1 / 2, *[1] * 5, 0.8, 0.6, 0.4, 0.2]),
        (
            replace(WSD, decay_share=1.0, decay_shape=DecayShape.linear),
            [1 / 2, 1, *(1 - 0.8 * i / 7 for i in range(8))],
        ),
    ],
    ids=["linear", "constant", "cosine", "wsd", "wsd in a line", "wsd that decays after its warmup"],
)
def test_the_schedules_by_hand(config: OptimizerConfig, shares: list[float]) -> None:
    assert [schedule(step, config, max_steps=10) for step in range(10)] == pytest.approx(shares, rel=1e-12)


def test_a_longer_run_has_the_learning_rates_of_a_shorter_one_until_that_decays() -> None:
    until = extension_step(WSD, max_steps=10)
    assert until == 5  # steps 0 to 4 are in the checkpoint
    short, long = ([schedule(step, WSD, max_steps=steps) for step in range(until + 1)] for steps in (10, 40))
    assert short == long
    assert extension_step(OptimizerConfig(), max_steps=10) is None


# Muon


MUON = OptimizerConfig(algorithm=Algorithm.muon, learning_rate=0.01, warmup_steps=0, schedule=Schedule.constant)
MATRICES = {
    Architecture.gpt2: ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    Architecture.llama: tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down")),
}


def give_gradients(model: torch.nn.Module, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("architecture", "tied"), [(Architecture.gpt2, True), (Architecture.llama, False)])
def test_muon_takes_the_matrices_of_the_blocks_and_torch_says_what_a_step_is(
    architecture: Architecture, tied: bool
) -> None:
    model = model_of(architecture, tie_word_embeddings=tied)
    reference = copy.deepcopy(model)
    named = dict(reference.named_parameters())
    matrices = [p for name, p in named.items() if name.endswith(MATRICES[architecture])]
    embeddings = [p for name, p in named.items() if name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight"))]
    chosen = {id(p) for p in [*matrices, *embeddings]}
    rest = [p for p in named.values() if id(p) not in chosen]
    assert any(name == "lm_head.weight" for name in named) is not tied
    parts = [(p, chunk) for p in matrices for chunk in range(3 if p.shape == (8, 24) else 1)]  # GPT-2's c_attn
    views = [p.detach()[:, 8 * chunk : 8 * chunk + 8] if p.shape == (8, 24) else p.detach() for p, chunk in parts]
    muon = torch.optim.Muon(views, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.1},
            {"params": [*embeddings, *(p for p in rest if p.ndim < 2)], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        fused=True,
    )
    optimizer, _ = build_optimizer(model, MUON, max_steps=10)
    for seed in range(3):
        for trained in (model, reference):
            give_gradients(trained, seed=seed)
        for view, (p, chunk) in zip(views, parts, strict=True):
            assert p.grad is not None
            view.grad = p.grad[:, 8 * chunk : 8 * chunk + 8] if p.shape == (8, 24) else p.grad
        optimizer.step()
        muon.step()
        adamw.step()
    assert same(weights(model), weights(reference))


OTHERS = {  # of torch, one of which somebody may add
    "nadam": torch.optim.NAdam,
    "adafactor": torch.optim.Adafactor,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("algorithm", [*Algorithm, *OTHERS])
def test_a_step_that_is_left_out_leaves_weights_and_state(algorithm: Algorithm | str) -> None:
    """The first one too, before which there is no state."""
    ends = []
    for steps in ((True, False, True, False), (None, False, None, False)):
        model = model_of(Architecture.llama)
        parameters = list(model.parameters())
        if isinstance(algorithm, Algorithm):
            optimizer, _ = build_optimizer(model, replace(MUON, algorithm=algorithm), max_steps=10)
        else:
            optimizer = OTHERS[algorithm](parameters, lr=0.01, weight_decay=0.1)
        for seed, is_bad in enumerate(steps):
            if is_bad is None:  # this step there never was
                continue
            give_gradients(model, seed=seed)
            if is_bad:
                parameters[0].grad.fill_(float("nan"))  # type: ignore[union-attr]
                model.get_parameter("model.layers.0.mlp.up_proj.weight").grad.fill_(float("inf"))  # type: ignore[union-attr]
            before = weights(model)
            assert math.isfinite(clip_and_step(optimizer, parameters, max_norm=1.0)) is not is_bad
            assert same(before, weights(model)) is is_bad
        ends.append((weights(model), optimizer.state_dict()["state"]))
    (left, left_state), (right, right_state) = ends
    assert same(left, right) and all(value.isfinite().all() for value in left.values())
    assert left_state.keys() == right_state.keys()
    for number, state in right_state.items():
        assert state.keys() == left_state[number].keys()
        assert all(torch.equal(torch.as_tensor(left_state[number][key]), torch.as_tensor(state[key])) for key in state)
