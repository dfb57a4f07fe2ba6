"""What export writes is what the run computes: merged or not, tied or not, with new tokens; or it is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm import model as models
from llm.config.evaluation import ExportConfig, WeightType
from llm.config.training import Architecture, ModelConfig
from llm.errors import UnequalError
from llm.export.weights import Reference, export_adapter, export_model, reference_of, require_close, write_tokenizer
from llm.tokenizer.chat import read_template
from llm.tokenizer.folder import load_chat, load_tokenizer, read_special, save_with_template
from tests.korean import preset, save_preset

POSITIONS = 64
NEW_IDS = [300, 301]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as a run keeps it."""
    return save_preset("byte_bpe", tmp_path_factory.mktemp("words"), vocab_size=300)


@pytest.fixture(scope="module")
def more_words(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two tokens of a chat template more."""
    folder = tmp_path_factory.mktemp("more")
    assert save_with_template(words, read_template("chatml"), folder, name="chatml") == NEW_IDS
    return folder


def build(architecture: str, words: Path, *, tied: bool = False) -> Any:
    torch.manual_seed(1)
    config = ModelConfig(
        name="tiny",
        architecture=Architecture[architecture],
        num_layers=2,
        num_heads=2,
        hidden_size=32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=tied,
    )
    size, special = load_tokenizer(words).get_vocab_size(), read_special(words)
    model = models.build(config, vocab_size=size, special=special)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # logits of the size that trained models have, so that an error shows
            parameter.data *= 3
    return model.eval()


def trained_adapter(base: Any, *, new_ids: list[int], **method: Any) -> Any:
    """The base with an adapter after five steps, in which every part of it moved."""
    is_gpt2 = base.config.model_type == "gpt2"
    new = {"wte" if is_gpt2 else "embed_tokens": new_ids} if new_ids else {}
    new |= {} if base.config.tie_word_embeddings or not new_ids else {"lm_head": new_ids}
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=models.targets(base),
        fan_in_fan_out=is_gpt2,
        trainable_token_indices=new or None,
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


PROMPTS = [torch.randint(2, 300, (n,), generator=torch.Generator().manual_seed(3 + n)).tolist() for n in (5, 9, 14)]


def refer(model: Any, words: Path) -> Reference:
    """The model's own answers to the prompts."""
    return reference_of(model, PROMPTS, words, positions=POSITIONS)


def export(model: Any, words: Path, folder: Path, **settings: Any) -> dict[str, float]:
    return export_model(model, folder, refer(model, words), read_special(words), ExportConfig(**settings))


@pytest.mark.parametrize(
    ("architecture", "tied", "method", "has_new"),
    [
        ("gpt2", True, {}, True),
        ("llama", False, {"use_dora": True}, True),
        ("llama", True, {"use_dora": True}, False),
        ("qwen3", True, {}, True),
        ("qwen3", False, {}, False),
    ],
    ids=lambda value: str(value),
)
def test_adapter_merged_and_exported_model_have_the_same_logits(
    architecture: str, tied: bool, method: dict[str, Any], has_new: bool, words: Path, more_words: Path, tmp_path: Path
) -> None:
    folder, new_ids = (more_words, NEW_IDS) if has_new else (words, [])
    base = build(architecture, folder, tied=tied)
    models.save(base, tmp_path / "base")
    tuned = trained_adapter(base, new_ids=new_ids, **method)
    row = torch.tensor([[*PROMPTS[1], *new_ids]])
    with torch.inference_mode():
        before = tuned(input_ids=row).logits
    proof = export(tuned, folder, tmp_path / "out")
    assert proof["max_logit_difference"] <= 1e-4
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert read.dtype == torch.float32 and read.config.vocab_size == 300 + len(new_ids)
    assert read.generation_config.eos_token_id == read.config.eos_token_id == read_special(folder).eos_id
    assert (read.get_output_embeddings().weight is read.get_input_embeddings().weight) is tied
    with torch.inference_mode():
        torch.testing.assert_close(read(input_ids=row).logits, before, atol=1e-4, rtol=0)
        original = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")(input_ids=row).logits
    assert (original - before).abs().max() > 0.1  # the adapter does something that could have been lost


def test_what_is_compared_is_the_prompts_with_answers_that_fit_and_every_added_token(more_words: Path) -> None:
    model, special = build("gpt2", more_words, tied=True), read_special(more_words)
    reference = reference_of(model, [[2] * 40, [2] * 41], more_words, positions=POSITIONS)
    first, last = reference.rows
    assert first[:40] == [2] * 40 and 40 < len(first) <= POSITIONS
    assert last == [special.bos_id, 0, 1, *NEW_IDS, special.eos_id]
    assert [tuple(each.shape) for each in reference.logits] == [(len(row), 302) for row in reference.rows]


@pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_on_a_tied_head_is_refused(words: Path, tmp_path: Path) -> None:
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(build("llama", words, tied=True), settings).eval()
    with pytest.raises(UnequalError, match=r"the merged model gives other logits than the run: .* is allowed"):
        export(tuned, words, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_same", [True, False], ids=["same", "other"])
def test_the_config_says_whether_the_head_is_that_of_the_embeddings(is_same: bool, words: Path, tmp_path: Path) -> None:
    model = build("llama", words)
    model.config.tie_word_embeddings = True
    if is_same:
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    export(model, words, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is is_same
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not is_same


@pytest.mark.parametrize("dtype", list(WeightType), ids=lambda dtype: dtype.name)
def test_weights_are_written_in_the_dtype_that_is_asked_for(dtype: WeightType, words: Path, tmp_path: Path) -> None:
    model = build("qwen3", words, tied=True)
    expected = {name: tensor.to(getattr(torch, dtype.value)) for name, tensor in model.state_dict().items()}
    proof = export(model, words, tmp_path, dtype=dtype)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == expected.keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype.value
    assert (proof["max_logit_difference"] == 0) is (dtype is WeightType.fp32)
    assert proof["median_logit_difference"] <= proof["rounding"] / 4 * (dtype is not WeightType.fp32)


def test_rounding_past_the_bound_is_refused(words: Path, tmp_path: Path) -> None:
    with pytest.raises(UnequalError, match=r"the exported model in bf16 gives other logits .* and 1e-05 is allowed"):
        export(build("llama", words), words, tmp_path, dtype=WeightType.bf16, max_logit_difference=1e-5)


def test_an_exported_adapter_loads_on_its_base(words: Path, tmp_path: Path) -> None:
    base, (adapter, out) = build("llama", words, tied=True), (tmp_path / "adapter", tmp_path / "out")
    models.save(base, tmp_path / "base")
    tuned = trained_adapter(base, new_ids=[])
    tuned.save_pretrained(adapter)
    out.mkdir()
    reference, config = refer(tuned, words), ExportConfig(merge=False)
    proof = export_adapter(adapter, tmp_path / "base", out, reference, config)
    assert (proof["max_logit_difference"], proof["same_likeliest_token"]) == (0, 1)
    named = [json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]]
    published = replace(config, base_model="me/base", dtype=WeightType.bf16, max_logit_difference=1.0)
    export_adapter(adapter, tmp_path / "base", out, reference, published)
    named.append(json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
    assert named == [str((tmp_path / "base").resolve()), "me/base"]
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    save_file({name: 1.5 * tensor for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(UnequalError, match=r"the exported adapter in fp32 gives other logits than the run"):
        export_adapter(adapter, tmp_path / "base", out, reference, config)


def test_a_file_that_has_other_weights_than_the_model_is_refused(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = build("llama", words), tmp_path / "model.safetensors"
    save = model.save_pretrained

    def spoil(folder: Path) -> None:
        save(folder)
        save_file({name: 1.5 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})

    monkeypatch.setattr(model, "save_pretrained", spoil)
    with pytest.raises(UnequalError, match=r"^the exported model in fp32 gives other logits than the run"):
        export(model, words, tmp_path)


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
    model = build("llama", words)
    reference = refer(model, words)
    model.get_input_embeddings().weight.data[read_special(words).eos_id] = float("nan")  # where a text ends
    with pytest.raises(UnequalError, match=r"^a model gives other logits than the run: 0 apart"):  # at the median
        require_close(model, reference, ExportConfig(dtype=WeightType.bf16), what="a model")


@pytest.mark.parametrize("name", ["byte_bpe", "bert_wordpiece"])
def test_an_exported_tokenizer_begins_a_text_as_training_did(name: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    save_preset(name, source, vocab_size=3000)
    special = read_special(source)
    write_tokenizer(source, out, positions=77)
    loaded, text = AutoTokenizer.from_pretrained(out), "어제 도서관에서 책을 읽었다."
    ids = load_tokenizer(source).encode(text, add_special_tokens=False).ids
    assert loaded(text)["input_ids"] == [special.bos_id, *ids]
    assert loaded(text, text)["input_ids"] == [special.bos_id, *ids, *ids]
    assert loaded.model_max_length == 77 and loaded.eos_token_id == special.eos_id == loaded.convert_tokens_to_ids(
        preset(name).eos_token or preset(name).special_tokens[0]
    )
    turns = [{"role": "user", "content": text}]
    asked = [chat.apply_chat_template(turns, return_dict=True)["input_ids"] for chat in (loaded, load_chat(source))]
    assert asked[0] == asked[1] and asked[0].count(special.bos_id) == 1
