"""What is shipped under conf/model: exact sizes, FLOPs by hand, experts, and keys of an architecture's own."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from llm.config.training import Architecture, OptimizerConfig, Precision
from llm.dry_run.memory import rehearse
from llm.errors import ConfigError
from llm.model import build, check_architecture, count_parameters, next_token_loss, next_token_nats
from llm.model.build import hugging_face_config, settings_of
from llm.model.loss import IGNORED
from llm.trainer.throughput import flops_per_token
from tests.rounding import rounding
from tests.test_model import SPECIAL, VOCAB, batch_of, config, ids, model_of, preset

# (parameters at a vocabulary of 8,192; at 32,768): tied embeddings are counted once.
SIZES = {
    "gpt2_tiny": (2_402_720, 6_334_880),
    "gpt2_10m": (10_257_408, 16_548_864),
    "gpt2_30m": (29_938_688, 42_521_600),
    "gpt2_125m": (92_133_888, 111_008_256),
    "gpt2_350m": (311_748_608, 336_914_432),
    "gpt2_1b": (1_028_141_056, 1_078_472_704),
    "llama_tiny": (2_264_160, 6_196_320),
    "llama_10m": (10_130_688, 16_422_144),
    "llama_30m": (29_499_904, 42_082_816),
    "llama_125m": (91_245_312, 110_119_680),
    "llama_350m": (312_001_536, 337_167_360),
    "llama_1b": (989_923_328, 1_040_254_976),
    "qwen3_tiny": (2_264_400, 6_196_560),
    "qwen3_10m": (10_131_968, 16_423_424),
    "qwen3_30m": (29_500_928, 42_083_840),
    "qwen3_125m": (91_246_848, 110_121_216),
    "qwen3_350m": (312_004_608, 337_170_432),
    "qwen3_1b": (989_925_376, 1_040_257_024),
    "gemma3_tiny": (2_265_360, 6_197_520),
    "gemma3_10m": (10_137_088, 16_428_544),
    "gemma3_30m": (29_509_120, 42_092_032),
    "gemma3_125m": (91_265_280, 110_139_648),
    "gemma3_350m": (312_053_760, 337_219_584),
    "gemma3_1b": (989_990_912, 1_040_322_560),
    "qwen3_moe_tiny": (4_203_600, 8_135_760),
    "qwen3_moe_45m": (45_645_184, 55_082_368),
    "olmo2_tiny": (2_265_120, 6_197_280),
    "gpt_neox_tiny": (2_238_880, 6_171_040),
}


def test_every_preset_has_its_size_below() -> None:
    assert {path.stem for path in Path("conf/model").glob("*.yaml")} == {*SIZES, "pretrained"}


@pytest.mark.parametrize("name", SIZES)
def test_the_parameters_of_a_preset(name: str) -> None:
    with torch.device("meta"):
        sizes = [count_parameters(build(preset(name), vocab_size=size, special=SPECIAL)) for size in (8192, 32768)]
    assert tuple(sizes) == SIZES[name]


# FLOPs

LAYERS, HEADS, HIDDEN, INNER, LENGTH = 2, 2, 16, 64, 100
LLAMA_BLOCK = 4 * HIDDEN**2 + 3 * HIDDEN * INNER
NORMS = 2 * LAYERS * HIDDEN + HIDDEN


def flops(model: torch.nn.Module, length: int = LENGTH) -> float:
    return flops_per_token(model, model.config, sequence_length=length)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_are_only_looked_up_take_no_flops(tied: bool) -> None:
    multiplied = VOCAB * HIDDEN + LAYERS * LLAMA_BLOCK + NORMS  # the head, tied or not
    model = model_of(Architecture.llama, tie_word_embeddings=tied)
    assert flops(model) == 6 * multiplied + 12 * LAYERS * HIDDEN * LENGTH


def test_a_layer_with_a_window_attends_to_no_more_than_that() -> None:
    kinds = ["sliding_attention", "full_attention"]
    model = model_of(Architecture.gemma3, extra={"sliding_window": 30, "layer_types": kinds})
    assert flops(model) == 6 * count_parameters(model) + 12 * HIDDEN * (30 + LENGTH)
    assert flops(model, 20) == 6 * count_parameters(model) + 12 * HIDDEN * (20 + 20)


def test_a_token_pays_for_the_experts_that_it_goes_through() -> None:
    model = model_of(Architecture.qwen3_moe, num_experts=4, num_experts_per_token=1, intermediate_size=INNER)
    experts = LAYERS * 4 * 3 * HIDDEN * INNER
    assert sum(p.numel() for name, p in model.named_parameters() if ".experts." in name) == experts
    multiplied = count_parameters(model) - experts + experts / 4
    assert flops(model) == 6 * multiplied + 12 * LAYERS * HIDDEN * LENGTH


def test_gpt2_has_the_activation_of_gpt2() -> None:
    """In one operator; transformers writes gelu_new out in seven."""
    model = model_of(Architecture.gpt2)
    fused, stock = (model.transformer.h[0].mlp.act, ACT2FN["gelu_new"])
    assert type(fused) is type(ACT2FN["gelu_pytorch_tanh"])
    x = torch.linspace(-12, 12, 10_001, dtype=torch.float64)
    torch.testing.assert_close(fused(x), stock(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("architecture", list(Architecture))
def test_the_memory_of_every_architecture_is_found_without_running_it(
    architecture: Architecture, precision: Precision
) -> None:
    with torch.device("meta"):
        model = build(config(architecture), vocab_size=300, special=SPECIAL)
    memory = rehearse(model, OptimizerConfig(), precision=precision, rows=2, sequence_length=32, accumulation=1)
    assert (memory.weights, memory.optimizer) >= (4 * count_parameters(model), 8 * count_parameters(model))


# Experts


def test_training_balances_the_experts_and_reports_the_nats_alone() -> None:
    model = model_of(Architecture.qwen3_moe, num_experts=4)
    input_ids, labels = ids(2, 9), ids(2, 9, seed=1)
    labels[0, 3:6] = IGNORED  # 15 are left
    batch = batch_of(input_ids, labels)
    nats, loss = next_token_loss(model, batch)
    assert nats.item() == pytest.approx(next_token_nats(model, batch).item(), rel=rounding(VOCAB, HIDDEN))
    scores: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda module, inputs, _: scores.append(inputs[0] @ module.weight.T))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        next_token_nats(model, batch)
    for hook in hooks:
        hook.remove()
    shares = torch.cat([layer.reshape(-1, 4) for layer in scores]).softmax(-1)  # (tokens of both layers, experts)
    chosen = torch.zeros_like(shares).scatter_(1, shares.topk(2).indices, 1.0)
    balance = 4 * (chosen.mean(0) * shares.mean(0)).sum()  # experts x share of tokens x share of probability
    assert (loss - nats).item() == pytest.approx(0.001 * balance.item() * 15, abs=rounding(VOCAB, HIDDEN) * nats.item())


# Keys of the architecture's own


def test_extra_keys_reach_the_hugging_face_config() -> None:
    model = model_of(Architecture.qwen3, extra={"rms_norm_eps": 0.5, "attention_bias": True})
    assert model.config.rms_norm_eps == 0.5
    assert model.model.layers[0].self_attn.q_proj.bias is not None


@pytest.mark.parametrize(
    ("architecture", "extra", "message"),
    [
        (
            Architecture.llama,
            {"rms_norm_esp": 1e-5},
            "model.extra.rms_norm_esp is not in the config of llama. Did you m",
        ),
        (Architecture.gpt2, {"n_embd": 8}, "model.extra.n_embd is set by another setting, or by the tokenizer. Remove"),
        (Architecture.llama, {"vocab_size": 8}, "model.extra.vocab_size is set by another setting, or by the tok"),
        (Architecture.qwen3, {"rms_norm_eps": "x"}, "is not what qwen3 takes: "),
        (Architecture.gpt2, {"activation_function": "gelo"}, "is not what gpt2 takes: KeyError: 'gelo'. Put it right"),
    ],
)
def test_an_extra_key_that_cannot_be_is_refused(
    architecture: Architecture, extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_architecture(config(architecture, extra=extra))


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("gtp2", {}, "model.architecture=gtp2 is no causal language model of transformers. Did you mean gpt2?"),
        ("gpt_neox", {"num_key_value_heads": 1}, "model.num_key_value_heads=1 is no setting of gpt_neox. Leave it out"),
        ("olmo2", {"num_experts": 2}, "model.num_experts=2 is no setting of olmo2. Leave it out."),
        ("bloom", {}, "model.max_position_embeddings=64 is no setting of bloom. Leave it out."),
    ],
)
def test_an_architecture_by_name_is_asked_of_transformers(
    architecture: str, changes: dict[str, Any], message: str
) -> None:
    made = config(architecture, **changes)
    assert made.needs_library
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_architecture(made)


@pytest.mark.parametrize("architecture", [*Architecture, "olmo2", "gpt_neox", "mixtral"])
def test_the_config_of_a_model_says_the_settings_that_it_was_made_of(architecture: str) -> None:
    made = config(architecture, dropout=0.1, tie_word_embeddings=False, intermediate_size=96)
    found = settings_of(hugging_face_config(made, vocab_size=VOCAB, special=SPECIAL))
    assert all(found[key] == getattr(made, key) for key in found if getattr(made, key) is not None)
