"""The fast path of training: no mask, no graph break, no large logits; and the same numbers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from llm.config.training import Architecture, Precision, ResidualPrecision
from llm.config.tuning import LoraConfig
from llm.errors import ConfigError
from llm.model import (
    add_lora,
    attention,
    blocks_of,
    checkpoint_blocks,
    document_bounds,
    half,
    halve_experts,
    halve_residual,
    loss,
    next_token_loss,
    next_token_nats,
)
from llm.model.loss import IGNORED
from llm.trainer.fit import fit
from tests.models import random_batch, small_model
from tests.test_trainer import model_of as trainer_model_of
from tests.test_trainer import quick_peak, task, untimed, values, weights  # noqa: F401  # a fixture

VOCAB, LENGTH = 512, 16
PACKED = [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7, 8], [*range(12), 0, 1, 0, 1], [*range(16)]]
PLAIN = [[*range(16)]] * 3
OURS = "ttukttak::document_attention"
SIX_AT_A_TIME = 6 * VOCAB  # logits, of 48 tokens


def model_of(architecture: str, *, lora: bool = False, **settings: Any) -> Any:
    grouped = {"num_key_value_heads": 1} if architecture == Architecture.llama else {}
    shape = {"num_heads": 4, "hidden_size": 32, "max_position_embeddings": LENGTH} | grouped | settings
    return small_model(architecture, vocab_size=VOCAB, lora=LoraConfig(rank=2, alpha=4) if lora else None, **shape)


def batch_of(position_ids: list[list[int]]) -> dict[str, torch.Tensor]:
    return random_batch(position_ids, vocab_size=VOCAB)


def gradients(model: torch.nn.Module, batch: dict[str, Any], **settings: Any) -> dict[str, torch.Tensor]:
    """The loss and the gradient of each parameter that is trained."""
    model.zero_grad()
    nats = next_token_nats(model, batch, **settings)
    nats.backward()
    return {"nats": nats.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


class Seen(TorchDispatchMode):
    """The operators that run: their names, the elements of the largest tensor that one gave, and experts' dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0
        self.experts: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.append(function._schema.name)
        if self.names[-1] == "aten::_grouped_mm":
            self.experts |= {args[0].dtype, args[1].dtype}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


# Where documents begin


@pytest.mark.parametrize(
    ("position_ids", "expected"),
    [
        ([[0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4]], [0, 4, 6, 7, 12]),
        ([[5, 6, 7, 9, 10, 11]], [0, 3, 6]),  # positions that do not go on part documents too, as in transformers
    ],
)
def test_a_document_begins_where_positions_do_not_go_on_and_with_each_row(
    position_ids: list[list[int]], expected: list[int]
) -> None:
    bounds = document_bounds(torch.tensor(position_ids))
    assert bounds is not None and bounds.dtype is torch.int32
    assert bounds.tolist() == expected + [expected[-1]] * (64 - len(expected))
    assert document_bounds(torch.tensor(PLAIN)) is None


# Attention


@pytest.mark.parametrize("model_type", sorted(attention.KNOWN))
def test_every_known_model_has_its_own_loss_and_gradients(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"sliding_window": None} if model_type == "mistral" else {}
    model, batch = model_of(model_type, extra=extra), batch_of(PACKED)
    plain = attention.KNOWN
    monkeypatch.setattr(loss, "CHUNK_LOGITS", SIX_AT_A_TIME)
    with Seen() as seen:
        ours = gradients(model, batch)
    assert (OURS in seen.names) is (model_type != "gemma3_text")  # most of whose layers have a window
    assert seen.names.count("aten::_log_softmax") == 8  # 48 tokens, 6 at a time
    for module in (attention, loss):
        monkeypatch.setattr(module, "KNOWN", plain - {model_type})
    with Seen() as seen:
        theirs = gradients(model, batch)
    assert OURS not in seen.names and seen.names.count("aten::_log_softmax") == 1
    assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_document_attention_is_the_softmax_written_out(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    batch = batch_of(PACKED)
    bounds = document_bounds(batch["position_ids"])
    inputs = [torch.randn(3, 2, LENGTH, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    given = torch.randn(3, 2, LENGTH, 8, dtype=dtype)
    out, _ = attention._on_cpu(*inputs, bounds, 0.3)
    got = torch.autograd.grad(out, inputs, given)
    query, key, value = exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    document = (batch["position_ids"] == 0).cumsum(1)
    seen = (document[:, :, None] == document[:, None, :]).tril()[:, None]
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~seen, -torch.inf)
    expected = scores.softmax(3) @ value
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(got, torch.autograd.grad(expected, exact, given.double()), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


def test_on_a_gpu_flash_attention_is_given_half_precision_and_heads_of_a_multiple_of_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever layers leave: those of 4 bits give fp32 under autocast."""
    size = 10
    given: list[torch.Tensor] = []

    def varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, *_: Any, **how: Any):
        given.extend((query, key, value))
        heads = [tensor.unflatten(0, (3, LENGTH)).transpose(1, 2).contiguous() for tensor in (query, key, value)]
        return attention._on_cpu(*heads, bounds, how["scale"])[0].transpose(1, 2).flatten(0, 1)

    monkeypatch.setattr(attention, "varlen_attn", varlen)
    bounds = document_bounds(torch.tensor(PACKED))
    inputs = [torch.randn(3, 2, LENGTH, size, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    found = attention._on_gpu(*inputs, bounds, dtype=torch.bfloat16, scale=size**-0.5, longest=LENGTH, grouped=False)
    assert all(tensor.dtype is torch.bfloat16 and tensor.shape[-1] % 8 == 0 for tensor in given)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = attention._attend(torch.nn.Module(), *inputs, None, cu_seq_lens_q=bounds, max_length_q=LENGTH)
    assert expected.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)


def test_document_attention_keeps_the_rules_of_an_operator() -> None:
    inputs = [torch.randn(3, 2, LENGTH, 8, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(
        attention._on_cpu._opoverload,
        (*inputs, document_bounds(torch.tensor(PACKED)), 0.3),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_what_the_kernels_do_not_know_keeps_the_masks_of_transformers() -> None:
    model = model_of(Architecture.llama)
    model.config.sliding_window = 4
    with Seen() as seen:
        next_token_nats(model, batch_of(PACKED))
    assert OURS not in seen.names


def test_a_model_is_as_transformers_made_it_outside_the_loss(tmp_path: Path) -> None:
    model, batch = model_of(Architecture.llama).eval(), batch_of(PACKED)
    before = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    next_token_nats(model, batch)
    after = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    assert torch.equal(before, after)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


# torch.compile


def graphs_of(model: Any, batches: list[dict[str, Any]]) -> list[torch.fx.GraphModule]:
    """What torch.compile makes of the loss, or an error where its graph would break."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    passes: Any = loss.compiled(backend=keep)
    for batch in batches:
        compiled, plain = (next_token_loss(model, batch, passes=each) for each in (passes, None))
        torch.testing.assert_close(compiled, plain)
    torch.compiler.reset()  # graphs that stay would be one limit for all tests
    return graphs


@pytest.mark.parametrize(
    ("architecture", "kind", "positions"),
    [
        (Architecture.gpt2, "", PACKED),
        (Architecture.gpt2, "lora", PLAIN),
        (Architecture.llama, "checkpointing lora", PACKED),
        (Architecture.qwen3, "", PACKED),
        (Architecture.gemma3, "", PACKED),
        (Architecture.qwen3_moe, "lora", PACKED),
    ],
)
def test_the_loss_compiles_to_one_graph_without_a_mask(
    architecture: Architecture, kind: str, positions: list[list[int]]
) -> None:
    model = model_of(architecture, lora="lora" in kind).train()
    if "checkpointing" in kind:
        checkpoint_blocks(model, compiled=True)
    (graph,) = graphs_of(model, [batch_of(positions)])
    shapes = [
        tuple(value.shape)
        for module in graph.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if isinstance(value := node.meta.get("example_value"), torch.Tensor)
    ]
    assert len(shapes) > 50
    has_masks = architecture is Architecture.gemma3  # most of whose layers have a window
    assert any(shape[-2:] == (LENGTH, LENGTH) for shape in shapes) is has_masks


def test_batches_of_any_documents_take_two_graphs_and_unpacked_ones_a_third() -> None:
    model = model_of(Architecture.llama, num_layers=1, max_position_embeddings=256)
    positions = (torch.arange(256) % -(-256 // documents) for documents in (2, 70, 130, 1))
    assert len(graphs_of(model, [batch_of([each.tolist()]) for each in positions])) <= 3


def test_a_compiled_training_learns_the_same(tmp_path: Path) -> None:
    eager, compiled = task(tmp_path / "eager", max_steps=3), task(tmp_path / "compiled", max_steps=3, compile=True)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for made in (eager, compiled):
        fit(made)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for name in ("train/loss", "val/loss"):
        assert values(compiled.folder, name) == pytest.approx(values(eager.folder, name), rel=1e-5)
    assert weights(compiled.model).keys() == weights(eager.model).keys()  # compiling renames nothing


def test_a_model_that_breaks_the_graph_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = GPT2MLP.forward

    def forward_in_two_graphs(self: Any, hidden_states: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(self, hidden_states)

    monkeypatch.setattr(GPT2MLP, "forward", forward_in_two_graphs)
    torch.compiler.reset()
    with pytest.raises(ConfigError, match=r"^trainer.compile=true: torch.compile fails at this model: .*graph_break"):
        fit(task(tmp_path, compile=True))
    assert not (tmp_path / "checkpoints").exists()


def test_a_compiler_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, str(tmp_path / "no-compiler")))
    torch.compiler.reset()
    with pytest.raises(ConfigError, match=r"torch.compile fails at this model: .*compiler.* Set trainer.compile=false"):
        fit(task(tmp_path, compile=True))


# Blocks that run again


@pytest.mark.parametrize(
    ("architecture", "lora"), list(zip(Architecture, (True, False, False, False, True), strict=True))
)
def test_checkpointed_blocks_run_again_on_packed_rows_and_change_no_bit(architecture: Architecture, lora: bool) -> None:
    model, batch = model_of(architecture, lora=lora).train(), batch_of(PACKED)
    plain = gradients(model, batch)
    blocks: list[int] = []
    for name, part in model.named_modules():
        if name.endswith("0.mlp"):
            part.register_forward_pre_hook(lambda *_: blocks.append(1))
    checkpoint_blocks(model)
    again = gradients(model, batch)
    assert len(blocks) == 2
    assert all(torch.equal(again[name], value) for name, value in plain.items())


def test_a_training_with_checkpointed_blocks_is_that_without(tmp_path: Path) -> None:
    """Samples too, which a model writes from its cache and without dropout."""
    read = []
    for on in (False, True):
        one = trainer_model_of(dropout=0.3)

        def sample(model: Any = one) -> list[dict[str, str]]:
            cached = model(torch.tensor([[2, 3]]), use_cache=True)
            assert cached.past_key_values.get_seq_length() == 2
            return [{"prompt": "", "text": str(cached.logits.double().sum().item())}]

        fit(task(tmp_path / str(on), model=one, max_steps=3, activation_checkpointing=on, sample=sample))
        read.append((tmp_path / str(on) / "samples.jsonl").read_text())
    assert untimed(tmp_path / "True") == untimed(tmp_path / "False")
    assert read[0] == read[1]


# What autocast leaves in fp32


@pytest.mark.parametrize("architecture", Architecture)
def test_a_halved_residual_stream_is_in_bf16_under_autocast_alone(architecture: Architecture) -> None:
    batch, dtypes = batch_of(PACKED), []
    plain, halved = (model_of(architecture, lora=architecture is Architecture.llama).train() for _ in range(2))
    halved.load_state_dict(plain.state_dict())
    halve_residual(halved)
    for block in blocks_of(halved):
        block.register_forward_hook(lambda _, inputs, output: dtypes.append(inputs[0].dtype))
    exact = gradients(plain, batch)
    assert_close(gradients(halved, batch), exact, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_halved, of_plain = gradients(halved, batch), gradients(plain, batch)
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert of_halved["nats"] != of_plain["nats"]
    lost, lost_anyway = (
        sum((made[name] - gradient).square().sum() for name, gradient in exact.items() if name != "nats") ** 0.5
        for made in (of_halved, of_plain)
    )
    assert lost < 4 * lost_anyway  # what two more roundings a block add to those of its products


def test_a_training_is_told_how_precise_its_residual_stream_is(tmp_path: Path) -> None:
    losses = {}
    for residual in (None, ResidualPrecision.bf16):
        how = {"max_steps": 3, "precision": Precision.bf16, "residual_precision": residual}
        fit(task(tmp_path / str(residual), model=trainer_model_of(), **how))
        losses[residual] = [
            record["train/loss"] for record in untimed(tmp_path / str(residual)) if "train/loss" in record
        ]
    assert losses[None] != losses[ResidualPrecision.bf16]
    assert losses[None] == pytest.approx(losses[ResidualPrecision.bf16], rel=2**-8)


def test_experts_are_multiplied_in_half_precision_under_autocast_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(Architecture.qwen3_moe).train(), batch_of(PACKED)
    monkeypatch.setattr(half, "HALVES_EXPERTS", {"cpu"})
    exact = gradients(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lost_anyway = gradients(model, batch)["nats"] - exact["nats"]
    halve_experts(model)
    with Seen() as seen:
        assert_close(gradients(model, batch), exact, rtol=0, atol=0)
    assert seen.experts == {torch.float32}
    with Seen() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        made = gradients(model, batch)
    assert seen.experts == {torch.bfloat16}
    assert {gradient.dtype for gradient in made.values()} == {torch.float32}
    assert abs(made["nats"] - exact["nats"]) < 4 * abs(lost_anyway) + 2**-8


# A loss by chunks of tokens


@pytest.mark.parametrize(
    ("architecture", "lora", "new_tokens", "tied"),
    [
        (Architecture.gpt2, False, [], True),
        (Architecture.llama, True, [], True),
        (Architecture.llama, True, [500, 511], True),
        (Architecture.llama, True, [500, 511], False),
    ],
)
def test_a_loss_by_chunks_is_the_loss_and_no_larger_tensor_is_made(
    architecture: Architecture, lora: bool, new_tokens: list[int], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(architecture, tie_word_embeddings=tied)
    if lora:
        model = add_lora(model, LoraConfig(rank=2, alpha=4), new_token_ids=new_tokens)
        for parameter in model.parameters():  # B starts at zero, and so would the gradient of A
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_of(PACKED)
    batch["labels"][0, :12] = IGNORED  # two whole chunks
    batch["labels"][1, :4] = torch.tensor([500, 511, 500, 511])
    with Seen() as whole:
        expected = gradients(model, batch)
    assert whole.largest == 3 * LENGTH * VOCAB
    monkeypatch.setattr(loss, "CHUNK_LOGITS", SIX_AT_A_TIME)
    with Seen() as seen:
        chunked = gradients(model, batch)
    assert seen.largest <= max(VOCAB * 32, 3 * LENGTH * 4 * 32)  # the head and activations, but no logits
    assert seen.names.count("aten::_log_softmax") == 8
    assert_close(chunked, expected)
    assert any("trainable_tokens" in name and gradient.any() for name, gradient in expected.items()) is bool(new_tokens)
    with torch.no_grad():
        torch.testing.assert_close(next_token_nats(model, batch), expected["nats"])


def test_the_loss_of_a_chunk_under_autocast_is_added_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(Architecture.gpt2), batch_of(PACKED)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, batch)
        monkeypatch.setattr(loss, "CHUNK_LOGITS", SIX_AT_A_TIME)
        chunked = gradients(model, batch)
    assert chunked["nats"].dtype is torch.float32
    torch.testing.assert_close(chunked["nats"], expected["nats"], rtol=1e-5, atol=0)
    assert_close(chunked, expected, rtol=3e-2, atol=0.1)  # bf16 has 8 bits; gradients are up to 50


@pytest.mark.parametrize(
    ("device", "num_tokens", "vocab_size", "sizes"),
    [
        ("meta", 48, 512, [48]),
        ("meta", 2**15, 50304, [1024] * 32),
        ("meta", 8191, 50304, [1171] * 6 + [1165]),  # a prime: not one token at a time
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


def test_a_compiled_chunk_is_the_same_without_a_pass_of_its_own_for_the_labels() -> None:
    draw = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, 32, generator=draw).bfloat16() for size in (64, VOCAB))
    labels = torch.randint(VOCAB, (64,), generator=draw)
    labels[::7] = IGNORED
    graphs: list[Any] = []
    torch.compiler.reset()
    chunk = torch.compile(loss._chunk, fullgraph=True, backend=lambda g, _: graphs.append(g) or g.forward)
    nats, gradient = chunk(states, weight, labels, VOCAB)
    expected_nats, expected = loss._chunk(states, weight, labels, VOCAB)
    assert torch.equal(nats, expected_nats) and torch.equal(gradient, expected)
    assert not any("scatter" in str(node.target) for graph in graphs for node in graph.graph.nodes)


def test_logits_that_are_scaled_keep_their_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is not known its own logits are asked for, all at once."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CohereConfig(vocab_size=VOCAB, pad_token_id=0, logit_scale=0.25, **shape)
    model, batch = AutoModelForCausalLM.from_config(config).eval(), batch_of(PLAIN)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
        logits = model(batch["input_ids"]).logits.flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="sum")
        monkeypatch.setattr(loss, "CHUNK_LOGITS", SIX_AT_A_TIME)
        torch.testing.assert_close(next_token_nats(model, batch), expected, rtol=1e-5, atol=0)
