"""Large vocabularies: a loss by chunks of tokens is the loss, whatever is done to logits after the head."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, GraniteMoeConfig

from llm.config.training import Architecture
from llm.config.tuning import LoraConfig
from llm.model import add_lora, loss, next_token_nats
from tests.test_fast_path import LENGTH, PACKED, PLAIN, VOCAB, Seen, assert_close, batch_of, gradients, model_of


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", [Architecture.gpt2, Architecture.llama])
def test_a_loss_by_chunks_is_the_loss_and_no_larger_tensor_is_made(
    architecture: Architecture, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = model_of(architecture, lora=lora), batch_of(PACKED)
    if lora:  # B starts at zero, and so would the gradient of A
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    with Seen() as whole:
        expected = gradients(model, batch)
    assert whole.largest == 3 * LENGTH * VOCAB
    most = max(p.numel() for p in model.parameters())  # 512 x 32; six tokens of logits are 6 x 512
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 6 * VOCAB)
    with Seen() as seen:
        chunked = gradients(model, batch)
    assert seen.largest <= max(most, 3 * LENGTH * 4 * 32)  # weights and activations, but no logits
    assert seen.names.count("aten::_log_softmax") == 8  # 48 tokens, 6 at a time
    assert_close(chunked, expected)
    with torch.no_grad():
        torch.testing.assert_close(next_token_nats(model, batch), expected["nats"])


def test_the_loss_of_a_chunk_under_autocast_is_added_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(Architecture.gpt2), batch_of(PACKED)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, batch)
        monkeypatch.setattr(loss, "CHUNK_LOGITS", 6 * VOCAB)
        chunked = gradients(model, batch)
    assert chunked["nats"].dtype is torch.float32
    torch.testing.assert_close(chunked["nats"], expected["nats"], rtol=1e-5, atol=0)
    assert_close(chunked, expected, rtol=3e-2, atol=0.1)  # bf16 has 8 bits; gradients are up to 50


@pytest.mark.parametrize("lora", [False, True])
def test_labels_that_are_ignored_give_no_gradient_by_chunks(lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(Architecture.llama, lora=lora), batch_of(PACKED)
    batch["labels"][0] = loss.IGNORED  # whole chunks of it
    batch["labels"][1, ::3] = loss.IGNORED
    expected = gradients(model, batch)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 6 * VOCAB)
    assert_close(gradients(model, batch), expected)


@pytest.mark.parametrize(
    ("device", "num_tokens", "vocab_size", "sizes"),
    [
        ("meta", 48, 512, [48]),
        ("meta", 2**15, 50304, [1024] * 32),
        ("meta", 7, 2**26, [1] * 7),
        ("meta", 3, 2**27, [1] * 3),
        ("meta", 8191, 50304, [1171] * 6 + [1165]),  # a prime: not one token at a time
        ("cpu", 1024, 2048, [1024]),
        ("cpu", 1024, 8192, [256] * 4),
        ("cpu", 1024, 50304, [128] * 8),  # 26 MB at once, for each chunk reads a head of as many rows
        ("cpu", 16, 2**26, [1] * 16),  # but never more than on another device
    ],
)
def test_chunks_are_few_and_of_one_size_where_that_can_be(
    device: str, num_tokens: int, vocab_size: int, sizes: list[int]
) -> None:
    size = loss._chunk_size(torch.empty(num_tokens, device=device), vocab_size, loss.EAGER)
    assert [len(range(num_tokens)[start : start + size]) for start in range(0, num_tokens, size)] == sizes


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rows_of_new_tokens_are_trained_by_chunks_too(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(Architecture.llama, tie_word_embeddings=tied)
    model = add_lora(model, LoraConfig(rank=2, alpha=4), new_token_ids=[500, 511])
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_of(PACKED)
    batch["labels"][1, :4] = torch.tensor([500, 511, 500, 511])
    expected = gradients(model, batch)
    assert any("trainable_tokens" in name and gradient.any() for name, gradient in expected.items())
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 6 * VOCAB)
    with Seen() as seen:
        chunked = gradients(model, batch)
    assert seen.largest <= max(VOCAB * 32, 3 * LENGTH * 4 * 32)  # the head and activations, but no logits
    assert seen.names.count("aten::_log_softmax") == 8
    assert_close(chunked, expected)


SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**SHAPE, logit_scale=0.25),
        GraniteConfig(**SHAPE, logits_scaling=8.0),
        GraniteMoeConfig(**SHAPE, logits_scaling=8.0),
        Gemma2Config(**SHAPE),
    ],
    ids=lambda config: config.model_type,
)
def test_logits_that_are_scaled_or_capped_keep_their_loss_by_chunks(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # so large that a cap of 30 is felt
    batch = batch_of(PLAIN)
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="sum")
        monkeypatch.setattr(loss, "CHUNK_LOGITS", 6 * VOCAB)
        torch.testing.assert_close(next_token_nats(model, batch), expected, rtol=1e-5, atol=0)
        head, states = model.get_output_embeddings(), model.base_model(batch["input_ids"]).last_hidden_state
        assert (head(states).flatten(0, 1) - logits).abs().max() > 1e-2  # what the head alone would give
    assert loss._head(model) is None


@pytest.mark.parametrize("change", ["final_logit_softcapping", "output_router_logits"])
def test_a_head_that_is_not_all_of_the_logits_is_not_taken_by_itself(change: str) -> None:
    model = model_of(Architecture.llama)
    assert loss._head(model) is model.lm_head
    setattr(model.config, change, 30.0)
    assert loss._head(model) is None
