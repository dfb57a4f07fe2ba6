"""The fast path on a GPU: varlen kernels, no wait in a step, and the compiled step in bf16."""

from pathlib import Path

import pytest
import torch

from llm.config.training import Accelerator, Architecture, Precision
from llm.model import attention, document_bounds, loss, next_token_nats
from llm.trainer.fit import fit
from tests.test_fast_path import LENGTH, PACKED, PLAIN, VOCAB, assert_close, batch_of, gradients, model_of
from tests.test_trainer import task, values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("positions", [PACKED, PLAIN], ids=["packed", "plain"])
@pytest.mark.parametrize("architecture", [Architecture.gpt2, Architecture.llama, Architecture.qwen3])
def test_loss_and_gradients_are_those_of_the_masks_of_transformers_in_bf16(
    architecture: Architecture, positions: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(architecture).cuda()
    batch = batch_of(positions)
    bounds = document_bounds(batch["position_ids"])
    batch = {name: value.cuda() for name, value in batch.items()}
    batch["document_bounds"] = bounds if bounds is None else bounds.cuda()

    def measured() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            nats = next_token_nats(model, batch)
        nats.backward()
        return float(nats.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])

    nats, gradient = measured()
    monkeypatch.setattr(attention, "_can_part", lambda config, device: False)
    expected_nats, expected = measured()
    assert nats == pytest.approx(expected_nats, rel=5e-3)
    assert torch.nn.functional.cosine_similarity(gradient, expected, dim=0) > 0.999


def test_varlen_attention_does_not_see_other_documents() -> None:
    torch.manual_seed(0)
    bounds = document_bounds(torch.tensor(PACKED)).cuda()
    query, key, value = torch.randn(3, 3, 2, LENGTH, 16, device="cuda", dtype=torch.bfloat16).unbind(0)

    def attended(values: torch.Tensor) -> torch.Tensor:
        how = {"dtype": torch.bfloat16, "scale": 0.25, "longest": LENGTH, "grouped": False}
        return attention._on_gpu(query, key, values, bounds, **how)

    before = attended(value)
    changed = value.clone()
    changed[0, :, :7] += 1  # the first document of the first row
    after = attended(changed)
    assert torch.equal(after[0, 7:], before[0, 7:])
    assert torch.equal(after[1:], before[1:])
    assert not torch.equal(after[0, :7], before[0, :7])


def test_a_forward_and_backward_pass_does_not_wait_for_the_gpu() -> None:
    model = model_of(Architecture.llama).cuda()
    batch = batch_of(PACKED)
    bounds = document_bounds(batch["position_ids"])
    moved = {name: value.cuda() for name, value in (batch | {"document_bounds": bounds}).items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            next_token_nats(model, moved).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", [False, True])
def test_a_small_model_learns_in_bf16(compile: bool, tmp_path: Path) -> None:
    made = task(tmp_path, max_steps=30, precision=Precision.bf16, compile=compile)
    made.trainer.accelerator = Accelerator.gpu
    fit(made)
    losses = values(tmp_path, "val/loss")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("passes", [loss.EAGER, loss.compiled()], ids=["eager", "compiled"])
def test_a_loss_by_chunks_is_the_loss(passes: loss.Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(Architecture.llama).cuda()
    batch = {name: value.cuda() for name, value in batch_of(PLAIN).items()}
    measured = []
    for most in (2**26, 6 * VOCAB):
        for name in ("CHUNK_LOGITS", "GPU_CHUNK_LOGITS"):
            monkeypatch.setattr(loss, name, most)
        with torch.autocast("cuda", torch.bfloat16):
            measured.append(gradients(model, batch, passes=passes))
    assert_close(measured[1], measured[0], rtol=3e-2, atol=0.1)
