"""Every way of tuning, on every architecture: what is trained is what is saved, what is loaded, and what is merged."""

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from llm import optimizer
from llm.config.training import Architecture, OptimizerConfig
from llm.config.tuning import LoraConfig, Method
from llm.model import add_lora, count_parameters, load, merge, next_token_nats, save, save_adapter
from tests.models import logits_of, random_ids, small_model

VOCAB, NEW = 40, [40, 41]
IDS = random_ids(2, 8, vocab_size=VOCAB)
ADAMW = OptimizerConfig(learning_rate=2e-2, warmup_steps=0, weight_decay=0.0)
ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
MLP = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


def base_of(architecture: Architecture, *, tie: bool = True, **changes: Any) -> Any:
    return small_model(architecture, vocab_size=VOCAB, noise=0.2, tie_word_embeddings=tie, **changes).eval()


def grown(model: Any) -> Any:
    """The model with a row for each new token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(VOCAB + len(NEW), mean_resizing=False)
    return model


def written(model: Any) -> list[int]:
    """What a model goes on with after a prompt, the likeliest token each time."""
    with torch.no_grad():
        made = model.generate(
            input_ids=random_ids(1, 4, vocab_size=VOCAB, seed=3), max_new_tokens=12, do_sample=False, eos_token_id=-1
        )
    return made[0].tolist()


def trained(model: torch.nn.Module, *, vocab: int = VOCAB, steps: int = 5) -> torch.nn.Module:
    """The model after that many steps, on tokens of all the vocabulary."""
    model.train()
    adamw, schedule = optimizer.build(model, ADAMW, max_steps=steps)
    for step in range(steps):
        tokens = random_ids(4, 17, vocab_size=vocab, seed=step)
        tokens[:, ::5] = vocab - 1 - torch.arange(4)[:, None] % 2  # the new tokens, where there are, in every row
        positions = torch.arange(16).expand(4, 16)
        batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "position_ids": positions}
        (next_token_nats(model, batch) / 64).backward()
        adamw.step()
        adamw.zero_grad()
        schedule.step()
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "tie", "method", "new"),
    [
        (Architecture.gpt2, True, Method.lora, NEW),
        (Architecture.gpt2, True, Method.dora, NEW),
        (Architecture.gpt2, False, Method.pissa, []),
        (Architecture.llama, True, Method.pissa, NEW),
        (Architecture.llama, False, Method.rslora, NEW),
        (Architecture.llama, False, Method.dora, []),
        (Architecture.qwen3, True, Method.rslora, []),
        (Architecture.qwen3, False, Method.lora, NEW),
    ],
)
def test_trained_reloaded_and_merged_are_one_model(
    architecture: Architecture, tie: bool, method: Method, new: list[int], tmp_path: Path
) -> None:
    base, vocab = base_of(architecture, tie=tie), VOCAB + len(new)
    save(base, tmp_path / "base")
    plain = logits_of(base, IDS)
    config = LoraConfig(method=method, rank=3, alpha=4)
    model = trained(add_lora(grown(base) if new else base, config, new_token_ids=new), vocab=vocab)
    scores, text = logits_of(model, tokens := random_ids(2, 24, vocab_size=vocab, seed=9)), written(model)
    assert (logits_of(model, IDS)[..., :VOCAB] - plain).abs().max() > 0.05  # it has learned something

    save_adapter(model, tmp_path / "adapter")
    again = load(tmp_path / "base", adapter=tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(again, tokens), scores, rtol=0, atol=1e-4)
    assert written(again) == text

    merged = merge(again)
    torch.testing.assert_close(logits_of(merged, tokens), scores, rtol=0, atol=1e-4)
    assert written(merged) == text
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == tie

    save(merged, tmp_path / "merged")
    reloaded = load(tmp_path / "merged").eval()
    assert torch.equal(logits_of(reloaded, tokens), logits_of(merged, tokens))
    assert written(reloaded) == text


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_of_the_embeddings_only_the_rows_of_new_tokens_are_trained(tie: bool, tmp_path: Path) -> None:
    base = grown(base_of(Architecture.llama, tie=tie))
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = trained(add_lora(base, LoraConfig(rank=2, target_modules=["q_proj"]), new_token_ids=NEW), vocab=VOCAB + 2)
    save_adapter(model, tmp_path)
    rows = [tensor for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_" not in name]
    assert [tuple(tensor.shape) for tensor in rows] == [(2, 16)] * (1 if tie else 2)  # and no whole embedding
    after = merge(model).state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][:VOCAB], before[name][:VOCAB])
        assert not any(torch.equal(after[name][row], before[name][row]) for row in NEW)


def test_a_pissa_adapter_is_an_update_of_the_whole_base(tmp_path: Path) -> None:
    """It loads without taking the base apart, and merges into it as plain LoRA of twice the rank, by any tool."""
    base = base_of(Architecture.llama, tie=False)
    save(base, tmp_path / "base")
    whole = base.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    model = trained(add_lora(base, LoraConfig(method=Method.pissa, rank=3, alpha=6)))
    save_adapter(model, tmp_path / "adapter")
    settings = peft.PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert (settings.r, settings.lora_alpha, settings.init_lora_weights) == (6, 12, True)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    place = "base_model.model.model.layers.0.mlp.up_proj"
    by_hand = whole + 2 * state[f"{place}.lora_B.weight"] @ state[f"{place}.lora_A.weight"]
    merged = merge(model).state_dict()["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(by_hand, merged, rtol=0, atol=1e-5)
    assert model.peft_config["default"].r == 3  # saving has not changed what goes on training


@pytest.mark.parametrize(("method", "scale"), [(Method.lora, 16 / 4), (Method.rslora, 16 / 4**0.5)])
def test_the_update_is_scaled_as_its_paper_has_it(method: Method, scale: float) -> None:
    base = base_of(Architecture.llama)
    whole = base.model.layers[1].mlp.down_proj.weight.detach().clone()
    model = trained(add_lora(base, LoraConfig(method=method, rank=4, alpha=16)))
    layer = model.get_base_model().model.layers[1].mlp.down_proj
    update = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    merged = merge(model).model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(merged, whole + scale * update, rtol=0, atol=1e-5)


def test_the_adapters_have_the_dropout_that_is_asked_for() -> None:
    model = add_lora(base_of(Architecture.llama), LoraConfig(dropout=0.25))
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} == {0.25}


# What adapters are put on


@pytest.mark.parametrize("architecture", list(Architecture))
def test_adapters_lie_on_every_linear_layer_change_nothing_at_first_and_are_trained_alone(
    architecture: Architecture,
) -> None:
    base = base_of(architecture, tie=architecture is not Architecture.llama)
    before, frozen = logits_of(base, IDS), count_parameters(base)
    model = add_lora(base, LoraConfig(rank=2, alpha=4))
    assert torch.equal(logits_of(model, IDS), before)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert count_parameters(model) - count_parameters(model, trainable=True) == frozen
    layers = [name.split(".lora_A")[0] for name in trained if ".lora_A" in name]
    expected = {
        Architecture.gpt2: {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
        Architecture.qwen3_moe: ATTENTION,
    }.get(architecture, ATTENTION | MLP)
    assert {".".join(name.split(".")[-2:]) for name in layers} == expected
    assert len(layers) == 2 * len(expected)  # in both layers


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["all-linear"], {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
        (["q_proj", "down_proj"], {"q_proj", "down_proj"}),
    ],
)
def test_experts_are_adapted_where_they_are_named(wanted: list[str] | None, expected: set[str], tmp_path: Path) -> None:
    base = base_of(Architecture.qwen3_moe, num_experts=3)
    save(base, tmp_path / "base")
    model = trained(add_lora(base, LoraConfig(rank=2, target_modules=wanted)))
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    scores = logits_of(model, tokens := random_ids(2, 9, vocab_size=VOCAB))
    save_adapter(model, tmp_path / "adapter")
    again = load(tmp_path / "base", adapter=tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(again, tokens), scores, rtol=0, atol=1e-5)
    settings = peft.PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["target_modules"] == sorted(settings.target_modules)  # the same bytes from every process
    found = {*settings.target_modules, *(name.rpartition(".")[2] for name in settings.target_parameters or [])}
    assert found == expected
    assert len(names) == 2 * len(expected)  # in both layers
    torch.testing.assert_close(logits_of(merge(again), tokens), scores, rtol=0, atol=1e-4)
