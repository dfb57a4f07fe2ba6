"""A vocabulary padded to a multiple: the model that comes out, its losses and its texts are those without padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from llm.config.training import Architecture, ModelConfig
from llm.model import (
    build,
    count_parameters,
    generate,
    loss,
    next_token_loss,
    next_token_nats,
    padding_of,
    save,
)
from llm.model.loss import IGNORED, Passes
from llm.run.metrics import read_metrics
from llm.run.runs import Run, load
from llm.stage import run_stage
from llm.tokenizer.folder import Special
from llm.trainer.throughput import flops_per_token
from tests.rounding import assert_same_but_for_rounding
from tests.test_dry_run import MODEL, SMALL, config, memory, text  # noqa: F401  # a fixture
from tests.test_generation import DRAWN, GREEDY, PROMPTS, SEEDS, words  # noqa: F401  # a fixture
from tests.test_trainer import same

ARCHITECTURES = list(Architecture)
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=1, tokens=())
VOCAB, MULTIPLE, PADDED = 50, 28, 56  # no width of these models
HIDDEN = 16
SUMS = (HIDDEN, 4 * HIDDEN, 12, VOCAB)  # the width of a layer and of what is between, positions, vocabulary
POSITIONS = [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6], [*range(12)]]


def model_of(
    architecture: Architecture, *, multiple: int | None = MULTIPLE, vocab_size: int = VOCAB, **changes: Any
) -> Any:
    """The same weights with padding and without, none of them at zero or one."""
    torch.manual_seed(0)
    settings = {"num_layers": 1, "num_heads": 2, "hidden_size": HIDDEN, "max_position_embeddings": 40} | changes
    made = ModelConfig(name="x", architecture=architecture, pad_vocab_to_multiple_of=multiple, **settings)
    model = build(made, vocab_size=vocab_size, special=SPECIAL)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            rows = vocab_size if parameter in padding_of(model) else len(parameter)
            parameter[:rows] += 0.1 * torch.randn(rows, *parameter.shape[1:], generator=draw)
    return model.eval()


def both(architecture: Architecture, **changes: Any) -> tuple[Any, Any]:
    """(padded, not padded)."""
    return model_of(architecture, **changes), model_of(architecture, multiple=None, **changes)


def batch_of() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(2, VOCAB, (2, 2, 12), generator=draw)
    labels[0, ::5] = IGNORED
    return {"input_ids": ids, "labels": labels, "position_ids": torch.tensor(POSITIONS)}


def gradients(model: Any, *, passes: Passes | None = None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    nats, minimised = next_token_loss(model, batch_of(), passes=passes)
    minimised.backward()
    return {"nats": nats.detach()} | {name: p.grad for name, p in model.named_parameters()}


def assert_same_but_for_padding(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        rows = len(tensor) if tensor.ndim else None
        assert_same_but_for_rounding(found[name][:rows] if rows else found[name], tensor, *SUMS)
        assert rows is None or not found[name][rows:].any(), name
    assert any(found[name].shape != tensor.shape for name, tensor in expected.items())


# The same losses


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_without_padding(
    architecture: Architecture, chunked: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded, plain = both(architecture, tie_word_embeddings=tied)
    expected = gradients(plain)
    if chunked:
        monkeypatch.setattr(loss, "CHUNK_LOGITS", 5 * PADDED)
    assert_same_but_for_padding(gradients(padded), expected)


def test_a_cap_on_the_logits_does_not_bring_the_padding_back() -> None:
    padded, plain = both(Architecture.gemma3, extra={"final_logit_softcapping": 2.0})
    assert_same_but_for_padding(gradients(padded), gradients(plain))


# What is counted, said and kept


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_padding_is_in_no_count_of_parameters_or_flops(tied: bool) -> None:
    padded, plain = both(Architecture.gpt2, tie_word_embeddings=tied)
    assert sum(p.numel() for p in padded.parameters()) == count_parameters(plain) + (PADDED - VOCAB) * HIDDEN * (
        2 - tied
    )
    for count in (
        count_parameters,
        lambda model: count_parameters(model, trainable=True),
        lambda model: flops_per_token(model, model.config, sequence_length=20),
    ):
        assert count(padded) == count(plain)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_text_is_written_as_without_padding(words: Tokenizer, sampling: Any) -> None:  # noqa: F811
    prompts = [[0, *words.encode(prompt, add_special_tokens=False).ids] for prompt in PROMPTS]
    answers = []
    for multiple in (512, None):
        model = model_of(Architecture.llama, multiple=multiple, vocab_size=400)
        with torch.no_grad():  # every token that there is scores below the zeros of the padding
            model.model.norm.weight.fill_(1)
            model.get_input_embeddings().weight[:400] = 1 + torch.rand(
                400, HIDDEN, generator=torch.Generator().manual_seed(2)
            )
            model.get_output_embeddings().weight = torch.nn.Parameter(-model.get_input_embeddings().weight.detach())
        last = model(torch.tensor(prompts[0])[None]).logits[0, -1]
        assert last[:400].max() < 0
        assert multiple is None or int(last.argmax()) >= 400
        answers.append(generate(model, prompts, words, sampling=sampling, pad_id=1, seeds=SEEDS))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_has_no_padding(architecture: Architecture, tied: bool, tmp_path: Path) -> None:
    padded, plain = both(architecture, tie_word_embeddings=tied)
    for name, model in (("padded", padded), ("plain", plain)):
        save(model, tmp_path / name)
    kept, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("padded", "plain"))
    assert same(kept, expected)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "padded" / name).read_text() == (tmp_path / "plain" / name).read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert loaded(batch_of()["input_ids"]).logits.shape[-1] == VOCAB == loaded.config.vocab_size
    assert next_token_nats(loaded, batch_of()) == next_token_nats(plain, batch_of())


# A command


def pretrained(text: Path, outputs: Path, *overrides: str) -> Run:  # noqa: F811
    made = run_stage(
        config("pretrain", text, outputs, "trainer.precision=fp32", "optimizer.warmup_steps=0", *MODEL, *overrides)
    )
    assert isinstance(made, Run)
    return load(made.path)


def test_a_padded_run_leaves_the_model_of_one_without(text: Path, tmp_path: Path) -> None:  # noqa: F811
    outputs = tmp_path / "outputs"
    plain = pretrained(text, outputs)
    padded = pretrained(text, outputs, "model.pad_vocab_to_multiple_of=128", "trainer.log_every_steps=1")
    assert padded.path != plain.path
    size = padded.parent("shards").results["vocab_size"]
    assert size % 128
    found, expected = (AutoModelForCausalLM.from_pretrained(run.path / "model") for run in (padded, plain))
    assert found.get_input_embeddings().weight.shape[0] == found.config.vocab_size == size
    assert padded.results["parameters"] == plain.results["parameters"] == count_parameters(found)
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=0, atol=1e-4)
    left, right = (read_metrics(run.path / "metrics.jsonl")[-1]["val/loss"] for run in (padded, plain))
    assert left == pytest.approx(right, rel=1e-5)


# The setting
