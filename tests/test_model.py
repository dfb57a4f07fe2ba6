"""A model of each shipped kind: its size, its loss, what is saved of it, padding of its vocabulary, and refusals."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from llm.config.compose import composed
from llm.config.training import Architecture, ModelConfig, OptimizerConfig, Precision
from llm.dry_run.memory import rehearse
from llm.errors import ConfigError
from llm.model import (
    build,
    check_architecture,
    count_parameters,
    flops_per_token,
    generate,
    load,
    loss,
    next_token_loss,
    save,
)
from llm.model.build import hugging_face_config, settings_of
from llm.model.loss import IGNORED
from llm.run.record import read_metrics
from tests.models import SPECIAL, SUMS, VOCAB, logits_of, random_batch, random_ids, small_config, small_model
from tests.rounding import assert_same_but_for_rounding, rounding
from tests.test_generation import DRAWN, PROMPTS, SEEDS, words  # noqa: F401  # a fixture
from tests.test_stages import TINY, _quick_peak, run, write_text  # noqa: F401  # a fixture
from tests.test_trainer import same

ARCHITECTURES = list(Architecture)
EACH_TIED_OR_NOT = list(zip(ARCHITECTURES, (True, False, True, False, True), strict=True))
PADDED = 56  # rows of a vocabulary of 50, as a multiple of 28, which is no width of these models
POSITIONS = [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6], [*range(12)]]
SIZES = {  # parameters at a vocabulary of 8,192, tied embeddings counted once
    "gpt2_tiny": 2_402_720,
    "gpt2_10m": 10_257_408,
    "gpt2_30m": 29_938_688,
    "gpt2_125m": 92_133_888,
    "gpt2_350m": 311_748_608,
    "gpt2_1b": 1_028_141_056,
    "llama_tiny": 2_264_160,
    "llama_10m": 10_130_688,
    "llama_30m": 29_499_904,
    "llama_125m": 91_245_312,
    "llama_350m": 312_001_536,
    "llama_1b": 989_923_328,
    "qwen3_tiny": 2_264_400,
    "qwen3_10m": 10_131_968,
    "qwen3_30m": 29_500_928,
    "qwen3_125m": 91_246_848,
    "qwen3_350m": 312_004_608,
    "qwen3_1b": 989_925_376,
    "gemma3_tiny": 2_265_360,
    "gemma3_10m": 10_137_088,
    "gemma3_30m": 29_509_120,
    "gemma3_125m": 91_265_280,
    "gemma3_350m": 312_053_760,
    "gemma3_1b": 989_990_912,
    "qwen3_moe_tiny": 4_203_600,
    "qwen3_moe_45m": 45_645_184,
    "olmo2_tiny": 2_265_120,
    "gpt_neox_tiny": 2_238_880,
}


# Size


def test_every_preset_has_its_size() -> None:
    found = {}
    for name in sorted(path.stem for path in Path("conf/model").glob("*.yaml") if path.stem != "pretrained"):
        with torch.device("meta"):
            preset = ModelConfig(**composed([f"model={name}"])["model"])
            found[name] = count_parameters(build(preset, vocab_size=8192, special=SPECIAL))
    assert found == SIZES


@pytest.mark.parametrize(("tie", "inner"), [(True, None), (False, 24)])
def test_gpt2_has_the_parameters_of_its_formula(tie: bool, inner: int | None) -> None:
    layers, h, positions, f = 2, 16, 64, inner or 64
    block = (h * 3 * h + 3 * h) + (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    expected = VOCAB * h * (1 if tie else 2) + positions * h + layers * block + 2 * h
    model = small_model(Architecture.gpt2, tie_word_embeddings=tie, intermediate_size=inner)
    assert count_parameters(model) == expected


@pytest.mark.parametrize(("tie", "key_value_heads", "inner"), [(True, None, None), (False, 1, 40)])
def test_llama_has_the_parameters_of_its_formula(tie: bool, key_value_heads: int | None, inner: int | None) -> None:
    layers, heads, h = 2, 2, 16
    f = inner or 64  # 8/3 x 16 = 42.7, rounded up to a multiple of 32
    block = 2 * h * h + 2 * h * (h // heads) * (key_value_heads or heads) + 3 * h * f + 2 * h
    expected = VOCAB * h * (1 if tie else 2) + layers * block + h
    settings = {"tie_word_embeddings": tie, "num_key_value_heads": key_value_heads, "intermediate_size": inner}
    assert count_parameters(small_model(Architecture.llama, **settings)) == expected


LAYERS, HIDDEN, INNER, LENGTH = 2, 16, 64, 100


def flops(model: Any, length: int = LENGTH) -> float:
    return flops_per_token(model, model.config, sequence_length=length)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_that_are_only_looked_up_take_no_flops(tied: bool) -> None:
    block = 4 * HIDDEN**2 + 3 * HIDDEN * INNER
    norms = 2 * LAYERS * HIDDEN + HIDDEN
    multiplied = VOCAB * HIDDEN + LAYERS * block + norms  # the head, tied or not
    model = small_model(Architecture.llama, tie_word_embeddings=tied)
    assert flops(model) == 6 * multiplied + 12 * LAYERS * HIDDEN * LENGTH


def test_a_layer_with_a_window_attends_to_no_more_than_that() -> None:
    kinds = ["sliding_attention", "full_attention"]
    model = small_model(Architecture.gemma3, extra={"sliding_window": 30, "layer_types": kinds})
    assert flops(model) == 6 * count_parameters(model) + 12 * HIDDEN * (30 + LENGTH)
    assert flops(model, 20) == 6 * count_parameters(model) + 12 * HIDDEN * (20 + 20)


def test_a_token_pays_for_the_experts_that_it_goes_through() -> None:
    model = small_model(Architecture.qwen3_moe, num_experts=4, num_experts_per_token=1, intermediate_size=INNER)
    experts = LAYERS * 4 * 3 * HIDDEN * INNER
    assert sum(p.numel() for name, p in model.named_parameters() if ".experts." in name) == experts
    multiplied = count_parameters(model) - experts + experts / 4
    assert flops(model) == 6 * multiplied + 12 * LAYERS * HIDDEN * LENGTH


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [*((each, Precision.bf16) for each in ARCHITECTURES), (Architecture.qwen3_moe, Precision.fp32)],
)
def test_the_memory_of_every_architecture_is_found_without_running_it(
    architecture: Architecture, precision: Precision
) -> None:
    with torch.device("meta"):
        model = build(small_config(architecture), vocab_size=300, special=SPECIAL)
    memory = rehearse(model, OptimizerConfig(), precision=precision, rows=2, sequence_length=32, accumulation=1)
    assert (memory.weights, memory.optimizer) >= (4 * count_parameters(model), 8 * count_parameters(model))


# Loss


def test_gpt2_has_the_activation_of_gpt2() -> None:
    """In one operator; transformers writes gelu_new out in seven."""
    fused, stock = small_model(Architecture.gpt2).transformer.h[0].mlp.act, ACT2FN["gelu_new"]
    assert type(fused) is type(ACT2FN["gelu_pytorch_tanh"])
    x = torch.linspace(-12, 12, 10_001, dtype=torch.float64)
    torch.testing.assert_close(fused(x), stock(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nats_are_minus_the_log_probability_of_each_label(architecture: Architecture) -> None:
    model, batch = small_model(architecture).eval(), random_batch([[*range(9)]] * 2)
    scores, labels = logits_of(model, batch["input_ids"]).double(), batch["labels"]
    expected = 0.0
    for row, place in (labels != IGNORED).nonzero().tolist():
        expected -= float(torch.log_softmax(scores[row, place], 0)[labels[row, place]])
    assert next_token_loss(model, batch)[0].item() == pytest.approx(expected, rel=rounding(*SUMS))


def test_training_balances_the_experts_and_reports_the_nats_alone() -> None:
    model, batch = small_model(Architecture.qwen3_moe, num_experts=4), random_batch([[*range(9)]] * 2)
    scores: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, inputs, _: scores.append(inputs[0] @ module.weight.T))
    nats, minimised = next_token_loss(model, batch)
    shares = torch.cat([layer.reshape(-1, 4) for layer in scores]).softmax(-1)  # (tokens of both layers, experts)
    chosen = torch.zeros_like(shares).scatter_(1, shares.topk(2).indices, 1.0)
    balance = 4 * (chosen.mean(0) * shares.mean(0)).sum()  # experts x share of tokens x share of probability
    labels = int((batch["labels"] != IGNORED).sum())
    bound = rounding(VOCAB, HIDDEN) * nats.item()
    assert (minimised - nats).item() == pytest.approx(0.001 * balance.item() * labels, abs=bound)


# Padding of the vocabulary


def both(architecture: Architecture, **changes: Any) -> tuple[Any, Any]:
    """(padded, not padded), with the same weights."""
    padded, plain = (
        small_model(architecture, pad_vocab_to_multiple_of=multiple, **changes).eval() for multiple in (28, None)
    )
    assert padded.get_input_embeddings().weight.shape[0] == PADDED
    return padded, plain


def gradients(model: Any) -> dict[str, torch.Tensor]:
    nats, minimised = next_token_loss(model, random_batch(POSITIONS))
    minimised.backward()
    return {"nats": nats.detach()} | {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("architecture", "settings", "chunked"),
    [
        *((each, {"tie_word_embeddings": tied}, False) for each, tied in EACH_TIED_OR_NOT),
        (Architecture.gpt2, {"tie_word_embeddings": False}, True),
        (Architecture.llama, {}, True),
        (Architecture.gemma3, {"extra": {"final_logit_softcapping": 2.0}}, False),  # which brings no padding back
    ],
)
def test_loss_and_gradients_are_those_without_padding(
    architecture: Architecture, settings: dict[str, Any], chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded, plain = both(architecture, **settings)
    expected = gradients(plain)
    if chunked:
        monkeypatch.setattr(loss, "CHUNK_LOGITS", 5 * PADDED)
    found = gradients(padded)
    assert found.keys() == expected.keys()
    assert any(found[name].shape != tensor.shape for name, tensor in expected.items())
    for name, tensor in expected.items():
        rows = len(tensor) if tensor.ndim else None
        assert_same_but_for_rounding(found[name][:rows] if rows else found[name], tensor, *SUMS)
        assert rows is None or not found[name][rows:].any(), name


def test_padding_is_in_no_count_of_parameters_or_flops() -> None:
    padded, plain = both(Architecture.gpt2, tie_word_embeddings=False)
    rows = 2 * (PADDED - VOCAB)
    assert sum(p.numel() for p in padded.parameters()) == count_parameters(plain) + rows * HIDDEN
    assert count_parameters(padded) == count_parameters(plain)
    assert count_parameters(padded, trainable=True) == count_parameters(plain)
    assert flops(padded) == flops(plain)


def test_a_text_is_written_as_without_padding(words: Any) -> None:  # noqa: F811
    prompts = [[0, *words.encode(prompt, add_special_tokens=False).ids] for prompt in PROMPTS]
    answers = []
    for multiple in (512, None):
        model = small_model("llama", vocab_size=400, pad_vocab_to_multiple_of=multiple).eval()
        with torch.no_grad():  # every token that there is scores below the zeros of the padding
            model.model.norm.weight.fill_(1)
            rows = 1 + torch.rand(400, HIDDEN, generator=torch.Generator().manual_seed(2))
            model.get_input_embeddings().weight[:400] = rows
            model.get_output_embeddings().weight = torch.nn.Parameter(-model.get_input_embeddings().weight.detach())
        last = model(torch.tensor(prompts[0])[None]).logits[0, -1]
        assert last[:400].max() < 0
        assert multiple is None or int(last.argmax()) >= 400
        answers.append(generate(model, prompts, words, sampling=DRAWN, pad_id=1, seeds=SEEDS))
    assert answers[0] == answers[1]


def test_a_padded_run_leaves_the_model_of_one_without(tmp_path: Path) -> None:
    text, models, made = write_text(tmp_path / "text.jsonl"), [], []
    for padding in ("null", "128"):
        given = [*TINY, "trainer.precision=fp32", "optimizer.warmup_steps=0", f"outputs={tmp_path / 'outputs'}"]
        made.append(
            run("pretrain", "data=text", f"data.path={text}", *given, f"model.pad_vocab_to_multiple_of={padding}")
        )
        models.append(AutoModelForCausalLM.from_pretrained(made[-1].path / "model"))
    (plain, padded), (expected, found) = made, models
    assert padded.path != plain.path
    size = padded.parent("shards").results["vocab_size"]
    assert size % 128
    assert found.get_input_embeddings().weight.shape[0] == found.config.vocab_size == size
    assert padded.results["parameters"] == plain.results["parameters"] == count_parameters(found)
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=0, atol=1e-4)
    left, right = (read_metrics(each.path / "metrics.jsonl")[-1]["val/loss"] for each in made)
    assert left == pytest.approx(right, rel=1e-5)


# Folder


@pytest.mark.parametrize(("architecture", "tied"), EACH_TIED_OR_NOT)
def test_a_saved_model_has_no_padding_and_scores_the_same_under_transformers(
    architecture: Architecture, tied: bool, tmp_path: Path
) -> None:
    padded, model = both(architecture, tie_word_embeddings=tied)
    for name, each in (("padded", padded), ("plain", model)):
        save(each, tmp_path / name)
    assert same(*(load_file(tmp_path / name / "model.safetensors") for name in ("padded", "plain")))
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "padded" / name).read_text() == (tmp_path / "plain" / name).read_text()
    ids = random_ids(2, 12)
    assert torch.equal(logits_of(load(tmp_path / "plain").eval(), ids), logits_of(model, ids))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "padded", local_files_only=True).eval()
    assert_same_but_for_rounding(logits_of(again, ids), logits_of(model, ids), *SUMS)
    assert count_parameters(again) == count_parameters(model)
    assert (again.config.eos_token_id, again.generation_config.pad_token_id) == (0, 1)


# Settings and keys of an architecture


def test_extra_keys_reach_the_hugging_face_config() -> None:
    model = small_model(Architecture.qwen3, extra={"rms_norm_eps": 0.5, "attention_bias": True})
    assert model.config.rms_norm_eps == 0.5
    assert model.model.layers[0].self_attn.q_proj.bias is not None


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"extra": {"rms_norm_esp": 1}}, "model.extra.rms_norm_esp is not in the config of llama. Did you m"),
        ("gpt2", {"extra": {"n_embd": 8}}, "model.extra.n_embd is set by another setting, or by the tokenizer. Remove"),
        ("llama", {"extra": {"vocab_size": 8}}, "model.extra.vocab_size is set by another setting, or by the tok"),
        ("qwen3", {"extra": {"rms_norm_eps": "x"}}, "is not what qwen3 takes: "),
        ("gpt2", {"extra": {"activation_function": "gelo"}}, "is not what gpt2 takes: KeyError: 'gelo'. Put it right"),
        ("gtp2", {}, "model.architecture=gtp2 is no causal language model of transformers. Did you mean gpt2?"),
        ("gpt_neox", {"num_key_value_heads": 1}, "model.num_key_value_heads=1 is no setting of gpt_neox. Leave it out"),
        ("olmo2", {"num_experts": 2}, "model.num_experts=2 is no setting of olmo2. Leave it out."),
        ("bloom", {}, "model.max_position_embeddings=64 is no setting of bloom. Leave it out."),
    ],
)
def test_what_an_architecture_does_not_take_is_refused(
    architecture: str, changes: dict[str, Any], message: str
) -> None:
    made = small_config(architecture, **changes)
    assert made.needs_library
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_architecture(made)


@pytest.mark.parametrize("architecture", [*Architecture, "olmo2", "gpt_neox", "mixtral"])
def test_the_config_of_a_model_says_the_settings_that_it_was_made_of(architecture: str) -> None:
    made = small_config(architecture, dropout=0.1, tie_word_embeddings=False, intermediate_size=96)
    found = settings_of(hugging_face_config(made, vocab_size=VOCAB, special=SPECIAL))
    assert all(found[key] == getattr(made, key) for key in found if getattr(made, key) is not None)
