"""Large vocabularies: a loss by chunks of tokens is the loss, whatever is done to logits after the head."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig

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
        ("meta", 8191, 50304, [1171] * 6 + [1165]),  # a prime: not one token at a time
        ("cpu", 1024, 8192, [256] * 4),
        ("cpu", 1024, 50304, [128] * 8),  # 26 MB at once, for each chunk reads a head of as many rows
        ("compiled cpu", 1024, 8192, [1024]),
        ("compiled cuda", 2**15, 50304, [8192] * 4),
    ],
)
def test_chunks_are_few_and_of_one_size_where_that_can_be(
    device: str, num_tokens: int, vocab_size: int, sizes: list[int]
) -> None:
    labels: Any = SimpleNamespace(device=torch.device(device.split()[-1]), numel=lambda: num_tokens)
    passes = replace(loss.EAGER, is_compiled=device.startswith("compiled"))
    size = loss._chunk_size(labels, vocab_size, passes)
    assert [len(range(num_tokens)[start : start + size]) for start in range(0, num_tokens, size)] == sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_chunk_is_the_same_without_a_pass_of_its_own_for_the_labels(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, 32, generator=draw).to(dtype) for size in (64, VOCAB))
    labels = torch.randint(VOCAB, (64,), generator=draw)
    labels[::7] = loss.IGNORED
    graphs: list[Any] = []
    torch.compiler.reset()
    chunk = torch.compile(loss._chunk, fullgraph=True, backend=lambda g, _: graphs.append(g) or g.forward)
    nats, gradient = chunk(states, weight, labels, VOCAB)
    expected_nats, expected = loss._chunk(states, weight, labels, VOCAB)
    assert torch.equal(nats, expected_nats) and torch.equal(gradient, expected)
    assert not any("scatter" in str(node.target) for graph in graphs for node in graph.graph.nodes)


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


def test_logits_that_are_scaled_keep_their_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is not known its own logits are asked for, all at once."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CohereConfig(vocab_size=VOCAB, pad_token_id=0, logit_scale=0.25, **shape)
    model, batch = AutoModelForCausalLM.from_config(config).eval(), batch_of(PLAIN)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
        logits = model(batch["input_ids"]).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="sum")
        monkeypatch.setattr(loss, "CHUNK_LOGITS", 6 * VOCAB)
        torch.testing.assert_close(next_token_nats(model, batch), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("change", ["final_logit_softcapping", "output_router_logits"])
def test_a_head_that_is_not_all_of_the_logits_is_not_taken_by_itself(change: str) -> None:
    model = model_of(Architecture.llama)
    assert loss._head(model) is model.lm_head
    setattr(model.config, change, 30.0)
    assert loss._head(model) is None
