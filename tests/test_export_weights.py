"""What export writes is what the run computes: merged or not, tied or not, with new tokens; or it is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from korean import preset, save_preset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm import model as models
from llm import tokenizer
from llm.config.evaluation import ExportConfig, WeightType
from llm.config.training import Architecture, ModelConfig
from llm.errors import UnequalError
from llm.export.weights import (
    Reference,
    differences,
    export_adapter,
    export_model,
    logits_of,
    reference_of,
    require_close,
    write_tokenizer,
)
from llm.model import targets
from llm.tokenizer import Special

MOST = 64


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as a run keeps it."""
    return save_preset("byte_bpe", tmp_path_factory.mktemp("words"), vocab_size=300)


def build(architecture: str, *, tied: bool, vocab_size: int, special: Special) -> Any:
    torch.manual_seed(1)
    config = ModelConfig(
        name="tiny",
        architecture=Architecture[architecture],
        num_layers=2,
        num_heads=2,
        hidden_size=32,
        max_position_embeddings=MOST,
        tie_word_embeddings=tied,
    )
    model = models.build(config, vocab_size=vocab_size, special=special)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # logits of the size that trained models have, so that an error shows
            parameter.data *= 3
    return model.eval()


def trained_adapter(base: Any, architecture: str, *, new_ids: list[int], tied: bool, **method: Any) -> Any:
    """The base with an adapter after five steps, in which every part of it moved."""
    new: dict[str, Any] = {}
    if new_ids and tied:
        new["trainable_token_indices"] = {name_of_embeddings(architecture): new_ids}
    elif new_ids:
        new["trainable_token_indices"] = {name_of_embeddings(architecture): new_ids, "lm_head": new_ids}
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=targets(base),
        fan_in_fan_out=architecture == "gpt2",
        **new,
        **method,
    )
    model = peft.get_peft_model(base, settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    ids = torch.randint(2, base.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    if new_ids:
        ids[:, ::5] = torch.tensor(new_ids).repeat(2)
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


def name_of_embeddings(architecture: str) -> str:
    return "wte" if architecture == "gpt2" else "embed_tokens"


def prompts_of(vocab_size: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(2, vocab_size, (n,), generator=draw).tolist() for n in (5, 9, 14)]


def refer(model: Any, words: Path, new_ids: list[int] | None = None) -> Reference:
    """The model's own answers to the prompts."""
    special = tokenizer.special(words)
    return reference_of(model, prompts_of(300), tokenizer.load(words), special, new_ids or [], positions=MOST)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("architecture", "tied", "method", "new_tokens"),
    [
        ("gpt2", True, {}, 2),
        ("llama", False, {"use_dora": True}, 2),
        ("llama", True, {"use_dora": True}, 0),
        ("qwen3", True, {}, 2),
        ("qwen3", False, {}, 0),
    ],
    ids=lambda value: str(value),
)
def test_adapter_merged_and_exported_model_have_the_same_logits_and_text(
    architecture: str, tied: bool, method: dict[str, Any], new_tokens: int, words: Path, tmp_path: Path
) -> None:
    special = tokenizer.special(words)
    size = 300 + new_tokens
    base = build(architecture, tied=tied, vocab_size=size, special=special)
    models.save(base, tmp_path / "base")
    new_ids = list(range(300, size))
    tuned = trained_adapter(base, architecture, new_ids=new_ids, tied=tied, **method)
    row = torch.tensor([[*prompts_of(300)[1], *new_ids]])
    with torch.inference_mode():
        before = tuned(input_ids=row).logits
    reference = refer(tuned, words, new_ids)
    prompts = prompts_of(300)
    assert [row[: len(prompt)] for row, prompt in zip(reference.rows, prompts, strict=False)] == prompts
    assert reference.rows[-1] == [special.bos_id, *new_ids, special.eos_id]
    proof = export_model(tuned, tmp_path / "out", reference, special, ExportConfig())
    assert proof["max_logit_difference"] <= 1e-4
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert read.dtype == torch.float32 and read.config.vocab_size == size
    assert (read.get_output_embeddings().weight is read.get_input_embeddings().weight) is tied
    with torch.inference_mode():
        torch.testing.assert_close(read(input_ids=row).logits, before, atol=1e-4, rtol=0)
        original = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")(input_ids=row).logits
    assert (original - before).abs().max() > 0.1  # the adapter does something that could have been lost


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_on_a_tied_head_is_refused(words: Path, tmp_path: Path) -> None:
    special = tokenizer.special(words)
    base = build("llama", tied=True, vocab_size=300, special=special)
    tuned = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    ).eval()
    reference = refer(tuned, words)
    with pytest.raises(UnequalError, match=r"the merged model gives other logits than the run: .* is allowed"):
        export_model(tuned, tmp_path, reference, special, ExportConfig())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_same", [True, False], ids=["same", "other"])
def test_the_config_says_whether_the_head_is_that_of_the_embeddings(is_same: bool, words: Path, tmp_path: Path) -> None:
    special = tokenizer.special(words)
    model = build("llama", tied=False, vocab_size=300, special=special)
    model.config.tie_word_embeddings = True
    if is_same:
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    reference = refer(model, words)
    export_model(model, tmp_path, reference, special, ExportConfig())
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is is_same
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not is_same


@pytest.mark.parametrize("dtype", list(WeightType), ids=lambda dtype: dtype.name)
def test_weights_are_written_in_the_dtype_that_is_asked_for(dtype: WeightType, words: Path, tmp_path: Path) -> None:
    special = tokenizer.special(words)
    model = build("qwen3", tied=True, vocab_size=300, special=special)
    expected = {name: tensor.to(getattr(torch, dtype.value)) for name, tensor in model.state_dict().items()}
    reference = refer(model, words)
    proof = export_model(model, tmp_path, reference, special, ExportConfig(dtype=dtype))
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == expected.keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype.value
    assert (proof["max_logit_difference"] == 0) is (dtype is WeightType.fp32)
    assert proof["median_logit_difference"] <= proof["rounding"] / 4 * (dtype is not WeightType.fp32)


def test_rounding_past_the_bound_is_refused(words: Path, tmp_path: Path) -> None:
    special = tokenizer.special(words)
    model = build("llama", tied=True, vocab_size=300, special=special)
    reference = refer(model, words)
    with pytest.raises(UnequalError, match=r"the exported model in bf16 gives other logits .* and 1e-05 is allowed"):
        export_model(
            model, tmp_path, reference, special, ExportConfig(dtype=WeightType.bf16, max_logit_difference=1e-5)
        )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_exported_adapter_loads_on_its_base(words: Path, tmp_path: Path) -> None:
    special, base_folder = tokenizer.special(words), tmp_path / "base"
    base = build("llama", tied=True, vocab_size=300, special=special)
    models.save(base, base_folder)
    tuned = trained_adapter(base, "llama", new_ids=[], tied=True)
    tuned.save_pretrained(tmp_path / "adapter")
    (out := tmp_path / "out").mkdir()
    reference = refer(tuned, words)
    config = ExportConfig(merge=False)
    proof = export_adapter(tmp_path / "adapter", base_folder, out, reference, special, config)
    assert (proof["max_logit_difference"], proof["same_likeliest_token"]) == (0, 1)
    settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == str(base_folder.resolve())
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(out)
    with torch.inference_mode():
        found = loaded(input_ids=torch.tensor([reference.rows[0]])).logits[0]
    torch.testing.assert_close(found, reference.logits[0], atol=1e-5, rtol=0)
    named = replace(config, base_model="me/base", dtype=WeightType.bf16, max_logit_difference=1.0)
    export_adapter(tmp_path / "adapter", base_folder, out, reference, special, named)
    settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "me/base"
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(UnequalError, match=r"the exported adapter in fp32 gives other logits than the run"):
        export_adapter(tmp_path / "adapter", base_folder, out, reference, special, config)


def test_prompts_without_room_are_left_out_and_rows_fit_the_positions(words: Path) -> None:
    special = tokenizer.special(words)
    model = build("gpt2", tied=True, vocab_size=300, special=special)
    prompts = [[2] * 40, [2] * 41]
    reference = reference_of(model, prompts, tokenizer.load(words), special, [7] * 100, positions=MOST)
    first, last = reference.rows
    assert first[:40] == [2] * 40 and last == [special.bos_id, *[7] * 63]
    assert [tuple(each.shape) for each in reference.logits] == [(len(row), 300) for row in reference.rows]


def test_a_file_that_has_other_weights_than_the_model_is_refused(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = tokenizer.special(words)
    model = build("llama", tied=False, vocab_size=300, special=special)
    reference, save, path = refer(model, words), model.save_pretrained, tmp_path / "model.safetensors"

    def spoil(folder: Path) -> None:
        save(folder)
        save_file({name: 1.5 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})

    monkeypatch.setattr(model, "save_pretrained", spoil)
    with pytest.raises(UnequalError, match=r"^the exported model in fp32 gives other logits than the run"):
        export_model(model, tmp_path, reference, special, ExportConfig())


@pytest.mark.parametrize(
    ("settings", "judged"),
    [
        ({}, (3, 2)),
        ({"dtype": WeightType.bf16}, (1, 2)),
        ({"dtype": WeightType.bf16, "max_logit_difference": 5}, (3, 5)),
    ],
)
def test_in_fp32_and_under_a_bound_the_furthest_position_counts_else_the_median(
    settings: dict[str, Any], judged: tuple[float, float]
) -> None:
    measured = {"max_logit_difference": 3, "median_logit_difference": 1, "rounding": 2}
    assert ExportConfig(**settings).judged(measured) == judged


def test_a_position_that_is_not_a_number_refuses_a_model_whose_others_are_close(words: Path) -> None:
    special = tokenizer.special(words)
    model = build("llama", tied=False, vocab_size=300, special=special)
    reference = refer(model, words)
    model.get_input_embeddings().weight.data[special.eos_id] = float("nan")  # where a text ends
    apart = differences(logits_of(model, reference.rows), reference.logits)
    assert apart.median() == 0 and apart.max() == float("inf")
    with pytest.raises(UnequalError, match=r"^a model gives other logits than the run"):
        require_close(model, reference, ExportConfig(dtype=WeightType.bf16), what="a model")


def test_what_is_not_a_number_is_infinitely_far() -> None:
    one, nan = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, float("nan")]])
    assert differences([one], [one + torch.tensor([0.5, -0.25])]).tolist() == [0.5]
    assert differences([one], [nan]).tolist() == differences([one], [torch.zeros(1, 3)]).tolist() == [float("inf")]


@pytest.mark.parametrize("name", ["byte_bpe", "bert_wordpiece"])
def test_an_exported_tokenizer_begins_a_text_as_training_did(name: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    save_preset(name, source, vocab_size=3000)
    special = tokenizer.special(source)
    write_tokenizer(source, out, special, positions=77)
    loaded, text = AutoTokenizer.from_pretrained(out), "어제 도서관에서 책을 읽었다."
    ids = tokenizer.load(source).encode(text, add_special_tokens=False).ids
    assert loaded(text)["input_ids"] == [special.bos_id, *ids]
    assert loaded.model_max_length == 77 and loaded.eos_token_id == special.eos_id == loaded.convert_tokens_to_ids(
        preset(name).eos_token or preset(name).special_tokens[0]
    )
    turns = [{"role": "user", "content": text}]
    asked = [
        chat.apply_chat_template(turns, return_dict=True)["input_ids"] for chat in (loaded, tokenizer.load_chat(source))
    ]
    assert asked[0] == asked[1] and asked[0].count(special.bos_id) == 1
