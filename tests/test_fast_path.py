"""The fast path of training: no mask, no graph break, no large logits, no wait for the host; and the same numbers."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from llm.config.training import Architecture, ModelConfig
from llm.config.tuning import LoraConfig
from llm.model import (
    add_lora,
    attention,
    build,
    checkpoint_blocks,
    document_bounds,
    loss,
    next_token_loss,
    next_token_nats,
)
from llm.model.loss import IGNORED
from llm.tokenizer.folder import Special
from llm.trainer.fit import fit
from tests.test_trainer import model_of as trainer_model_of
from tests.test_trainer import task, untimed, values, weights

ARCHITECTURES = list(Architecture)
VOCAB, LENGTH = 512, 16
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=1, tokens=())
PACKED = [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 7, 8], [*range(12), 0, 1, 0, 1], [*range(16)]]
PLAIN = [[*range(16)]] * 3
FUSED = ("ttukttak::document_attention", "aten::_scaled_dot_product_flash_attention_for_cpu")


def model_of(architecture: str, *, dropout: float = 0.0, lora: bool = False, **settings: Any) -> Any:
    torch.manual_seed(0)
    grouped = {"num_key_value_heads": 1} if architecture == Architecture.llama else {}
    config = ModelConfig(
        name="small",
        architecture=architecture,
        num_layers=2,
        num_heads=4,
        hidden_size=32,
        max_position_embeddings=LENGTH,
        dropout=dropout,
        **grouped,
        **settings,
    )
    model = build(config, vocab_size=VOCAB, special=SPECIAL)
    with torch.no_grad():  # what starts at zero or one would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return add_lora(model, LoraConfig(rank=2, alpha=4)) if lora else model


def batch_of(position_ids: list[list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = len(position_ids), len(position_ids[0])
    labels = torch.randint(VOCAB, shape, generator=draw)
    labels[0, ::5] = IGNORED
    return {
        "input_ids": torch.randint(VOCAB, shape, generator=draw),
        "labels": labels,
        "position_ids": torch.tensor(position_ids),
    }


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
    """The operators that run: their names, and the elements of the largest tensor that one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.append(function._schema.name)
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


# Where documents begin


@pytest.mark.parametrize(
    ("position_ids", "expected"),
    [
        ([[0, 1, 2, 0, 1, 2]], [0, 3, 6]),
        ([[0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4]], [0, 4, 6, 7, 12]),
        ([[5, 6, 7, 9, 10, 11]], [0, 3, 6]),  # positions that do not go on part documents too, as in transformers
    ],
)
def test_a_document_begins_where_positions_do_not_go_on_and_with_each_row(
    position_ids: list[list[int]], expected: list[int]
) -> None:
    bounds = document_bounds(torch.tensor(position_ids))
    assert bounds is not None
    assert bounds.dtype is torch.int32
    assert bounds.tolist() == expected + [expected[-1]] * (64 - len(expected))


def test_rows_of_one_document_each_have_no_bounds() -> None:
    assert document_bounds(torch.tensor(PLAIN)) is None


# Attention


@pytest.mark.parametrize("model_type", sorted(attention.KNOWN))
def test_every_known_model_has_its_own_loss_and_gradients(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"sliding_window": None} if model_type == "mistral" else {}
    model, batch = model_of(model_type, extra=extra), batch_of(PACKED)
    plain = attention.KNOWN
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 6 * VOCAB)
    with Seen() as seen:
        ours = gradients(model, batch)
    assert (FUSED[0] in seen.names) is (model_type != "gemma3_text")  # most of whose layers have a window
    assert seen.names.count("aten::_log_softmax") == 8  # 48 tokens, 6 at a time
    for module in (attention, loss):
        monkeypatch.setattr(module, "KNOWN", plain - {model_type})
    with Seen() as seen:
        theirs = gradients(model, batch)
    assert FUSED[0] not in seen.names and seen.names.count("aten::_log_softmax") == 1
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


@pytest.mark.parametrize("size", [8, 10])
def test_on_a_gpu_flash_attention_is_given_half_precision_and_heads_of_a_multiple_of_eight(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever layers leave: those of 4 bits give fp32 under autocast."""
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
    assert FUSED[0] not in seen.names


def test_a_model_is_as_transformers_made_it_outside_the_loss(tmp_path: Path) -> None:
    model, batch = model_of(Architecture.llama).eval(), batch_of(PACKED)
    before = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    next_token_nats(model, batch)
    after = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    assert torch.equal(before, after)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


# torch.compile


def graphs_of(model: PreTrainedModel, positions: list[list[int]]) -> list[torch.fx.GraphModule]:
    """What torch.compile makes of the loss, or an error where its graph would break."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    one_graph: Any = partial(torch.compile, fullgraph=True, backend=keep)
    passes = replace(loss.EAGER, nats=one_graph(loss._nats), balanced=one_graph(loss._balanced))
    compiled, plain = (next_token_loss(model, batch_of(positions), passes=p) for p in (passes, None))
    torch.testing.assert_close(compiled, plain)
    return graphs


UNMASKED = [
    (Architecture.gpt2, ""),
    (Architecture.gpt2, "lora"),
    (Architecture.llama, "checkpointing lora"),
    (Architecture.qwen3, ""),
    (Architecture.qwen3_moe, ""),
    (Architecture.qwen3_moe, "lora"),
]


@pytest.mark.parametrize("positions", [PACKED, PLAIN], ids=["packed", "plain"])
@pytest.mark.parametrize(("architecture", "kind"), UNMASKED)
def test_the_loss_compiles_to_one_graph_without_a_mask(
    architecture: Architecture, kind: str, positions: list[list[int]]
) -> None:
    model = model_of(architecture, lora="lora" in kind).train()
    if "checkpointing" in kind:
        checkpoint_blocks(model, compiled=True)
    (graph,) = graphs_of(model, positions)
    shapes = [
        tuple(value.shape)
        for module in graph.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if isinstance(value := node.meta.get("example_value"), torch.Tensor)
    ]
    assert len(shapes) > 50
    assert not [shape for shape in shapes if shape[-2:] == (LENGTH, LENGTH)]


def test_batches_of_any_documents_take_two_graphs_and_unpacked_ones_a_third() -> None:
    graphs = []
    torch.compiler.reset()
    passes = replace(
        loss.EAGER,
        nats=torch.compile(loss._nats, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward),
    )
    model = model_of(Architecture.llama)
    for documents in (2, 5, 70, 130, 1):  # in a row of 256
        positions = torch.arange(256) % -(-256 // documents)
        model.config.max_position_embeddings = 256
        batch = batch_of([positions.tolist()])
        torch.testing.assert_close(next_token_nats(model, batch, passes=passes), next_token_nats(model, batch))
    assert len(graphs) <= 3


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


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
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
