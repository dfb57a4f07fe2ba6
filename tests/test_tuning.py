"""stage=finetune by each method and on any base, end to end, on a little Korean text."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BioGptForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

from llm import model as models
from llm.chat.talker import Talker
from llm.config.evaluation import Sampling
from llm.errors import ConfigError
from llm.run import launch
from llm.run.models import find_model, model_of, with_parents
from llm.run.runs import Run
from llm.tokenize import find_tokenizers
from tests.rounding import rounding
from tests.test_stages import CHAT, TINY, run, write_conversations, write_text
from tests.tuned import quick_peak  # noqa: F401  # a fixture


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of outputs, with a finished pretraining named base; beside it chat.jsonl."""
    folder = tmp_path_factory.mktemp("made")
    text = write_text(folder / "text.jsonl")
    write_conversations(folder / "chat.jsonl")
    run("pretrain", "data=text", f"data.path={text}", f"outputs={folder / 'outputs'}", "name=base", *TINY)
    return folder / "outputs"


def tune(outputs: Path, *overrides: str) -> Run:
    chats = f"data.path={outputs.parent / 'chat.jsonl'}"
    return run("finetune", f"outputs={outputs}", *CHAT, chats, "base=base", *overrides)


def base_folder(outputs: Path) -> Path:
    (folder,) = (outputs / "pretrain").glob("base-*")
    return folder / "model"


@pytest.fixture
def foreign(outputs: Path, tmp_path: Path) -> Path:
    """The base's model as any model of Hugging Face, which no run stands behind."""
    folder = tmp_path / "other-model"
    shutil.copytree(base_folder(outputs), folder)
    (folder / "tokenizer.sha256").unlink()
    return folder


def test_a_conversation_as_long_as_the_model_has_positions_is_trained(outputs: Path, tmp_path: Path) -> None:
    """50 is no multiple of what rows are padded to."""
    text, chats = outputs.parent / "text.jsonl", tmp_path / "chats.jsonl"
    lines = [{"question": f"{n}번", "answer": "가" * n} for n in range(1, 60)]
    chats.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    places = [f"outputs={tmp_path}", "data.sequence_length=50"]
    run("pretrain", "data=text", f"data.path={text}", *TINY, "model.max_position_embeddings=50", "name=base", *places)
    tuned = run("finetune", *CHAT, f"data.path={chats}", "base=base", *places, "trainer.max_steps=40")
    assert tuned.record["notes"]["dropped_after_encoding"]["train: longer than data.sequence_length=50 tokens"] > 0
    assert tuned.results["val/loss"] < tuned.results["val/loss_before"]


# Adapters


def test_what_a_tuning_takes_is_said_beside_full_fine_tuning(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuned = tune(outputs, "lora.rank=2")
    base = models.count_parameters(models.load(base_folder(outputs)))
    results, adapter = tuned.results, load_file(tuned.path / "adapter" / "adapter_model.safetensors")
    trained = sum(tensor.numel() for tensor in adapter.values())
    assert results["trainable_parameters"] == trained
    assert (results["optimizer_bytes"], results["optimizer_bytes_full"]) == (8 * trained, 8 * base)
    assert results["adapter_bytes"] == (tuned.path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert results["model_bytes"] == 4 * base
    (checkpoint,) = (tuned.path / "checkpoints").iterdir()
    kept = load_file(checkpoint / "tensors.safetensors")
    moments = sum(t.numel() * t.element_size() for name, t in kept.items() if name.endswith(("exp_avg", "exp_avg_sq")))
    assert moments == results["optimizer_bytes"]
    assert sum(t.numel() for t in kept.values()) < 3 * trained + 100  # and none of the frozen base


def talker_of(outputs: Path, tuned: Run) -> Talker:
    return Talker(find_model(str(outputs), str(tuned.path)))


def test_a_frozen_base_in_bf16_has_the_adapter_in_fp32(outputs: Path) -> None:
    tuned = tune(outputs, "lora.base_precision=bf16")
    adapter = load_file(tuned.path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert tuned.results["val/loss"] < tuned.results["val/loss_before"]
    halved = tune(outputs, "lora.base_precision=bf16", "lora.precision=bf16")
    assert halved.results["optimizer_bytes"] * 2 == tuned.results["optimizer_bytes"]


# Full fine-tuning


def test_full_fine_tuning_leaves_a_model_that_stands_by_itself_and_is_evaluated(outputs: Path) -> None:
    tuned = tune(outputs, "lora.method=full", "name=whole")
    assert not (tuned.path / "adapter").exists()
    base, model = (load_file(folder / "model.safetensors") for folder in (base_folder(outputs), tuned.path / "model"))
    assert base.keys() == model.keys()
    assert not any(torch.equal(base[name], model[name]) for name in base)
    assert tuned.results["trainable_parameters"] == tuned.results["parameters"]
    evaluated = run(
        "evaluate", f"outputs={outputs}", f"run={tuned.path}", "evaluation.num_items=0", "evaluation.num_prompts=0",
        "evaluation.max_new_tokens=8", "logger=local",
    )  # fmt: skip
    assert evaluated.results["answers/loss"] == pytest.approx(tuned.results["val/loss"], rel=rounding(600))
    left = model_of(tuned).check()
    assert (left.weights, left.adapter, left.positions) == (tuned.path / "model", None, 64)
    talker = talker_of(outputs, tuned)
    assert type(talker.model) is type(AutoModelForCausalLM.from_pretrained(tuned.path / "model"))
    (named,) = find_tokenizers(str(outputs), [f"finetune/{tuned.path.name}"])
    assert named.tokenizer.get_vocab_size() == 600


# Bases that were not made here


def test_a_folder_of_hugging_face_is_tuned_as_the_run_that_it_is_a_copy_of(outputs: Path, foreign: Path) -> None:
    ours, theirs = tune(outputs, "lora.rank=2"), tune(outputs, "lora.rank=2", f"base={foreign}")
    assert theirs.path.name.startswith("other-model-conversations-")
    assert theirs.record["folders"] == {"base": str(foreign)}
    assert theirs.results["val/loss"] == ours.results["val/loss"]
    tensors = [load_file(tuned.path / "adapter" / "adapter_model.safetensors") for tuned in (ours, theirs)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert model_of(theirs).positions == 1024  # of its config; what its positions have learned is not known
    answers = [
        "".join(
            talker_of(outputs, tuned).answer(
                [{"role": "user", "content": "책"}], Sampling(max_new_tokens=8, temperature=0)
            )
        )
        for tuned in (ours, theirs)
    ]
    assert answers[0] == answers[1]
    assert with_parents([theirs]) == [theirs]


def test_ranks_above_zero_change_nothing_in_a_runs_folder(
    outputs: Path, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a folder, whose tokenizer is put into the run's, with records that are left out."""
    chats, changes = tmp_path / "chats.jsonl", tmp_path / "changes.txt"
    shutil.copyfile(outputs.parent / "chat.jsonl", chats)
    with chats.open("a", encoding="utf-8") as file:
        file.write('{"question": "답은?"}\n')
    script, root = tmp_path / "train.py", Path(__file__).parents[1]
    script.write_text(
        f"import os, runpy, sys; sys.path.insert(0, {str(root)!r})\n"
        "from pathlib import Path\nfrom tests.ranks import record_changes\n"
        f"if os.environ['RANK'] != '0': record_changes(Path({str(tmp_path / 'outputs')!r}), Path({str(changes)!r}))\n"
        f"runpy.run_path({str(root / 'train.py')!r}, run_name='__main__')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(launch, "TRAIN", script)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = [f"data.path={chats}", f"outputs={tmp_path / 'outputs'}", f"base={foreign}", "data.bad_records=drop"]
    (tmp_path / "told").mkdir()
    launch.launch_ranks(["stage=finetune", *CHAT, *given, "trainer.devices=2"], devices=2, folder=tmp_path / "told")
    (made,) = (tmp_path / "outputs" / "finetune").iterdir()
    assert {"tokenizer", "quarantine.jsonl", "adapter"} <= {path.name for path in made.iterdir()}
    assert changes.read_text(encoding="utf-8") == ""


def test_conversations_share_no_row_of_a_model_that_lets_them_see_each_other(outputs: Path, foreign: Path) -> None:
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "vocab_size": 600}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BioGptForCausalLM(BioGptConfig(**shape, **ids)).save_pretrained(foreign)
    with pytest.raises(ConfigError, match="documents that share a row see each other"):
        tune(outputs, f"base={foreign}", "data.packing=best_fit")


def test_an_architecture_that_is_none_of_ours_is_tuned_on_its_own_layers(outputs: Path, foreign: Path) -> None:
    """As Polyglot-Ko is: a run that went on from it, and the folder itself."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64, "vocab_size": 600}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **ids)).save_pretrained(foreign)
    text = ["data=text", f"data.path={outputs.parent / 'text.jsonl'}", f"outputs={outputs}", "name=neox"]
    taken = ["model=pretrained", f"model.path={foreign}", "tokenizer=pretrained"]
    made = run("pretrain", *text, *taken, *[each for each in TINY if each.startswith(("data.", "trainer.", "logger"))])
    assert type(AutoModelForCausalLM.from_pretrained(made.path / "model")) is GPTNeoXForCausalLM
    tuned = tune(outputs, f"base={made.path}", "lora.rank=2", "seed=6")
    settings = json.loads((tuned.path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert set(settings["target_modules"]) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert tuned.results["val/loss"] < tuned.results["val/loss_before"]
    named = tune(outputs, f"base={foreign}", "lora.rank=2", "lora.target_modules=[dense]")
    assert named.results["trainable_parameters"] == 2 * (16 + 16)
    with pytest.raises(ConfigError, match=r"has no layer q_proj\. It has: query_key_value, dense, dense_h_to_4h, de"):
        tune(outputs, f"base={foreign}", "lora.target_modules=[q_proj]")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", r"base=.*other-model has no tokenizer\.json\. Put the model's tokenizer beside"),
        ("chat_template.jinja", r"base=.*other-model: its tokenizer has no chat template\. Choose one"),
    ],
)
def test_a_folder_that_lacks_something_is_one_line(outputs: Path, foreign: Path, missing: str, message: str) -> None:
    (foreign / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        tune(outputs, f"base={foreign}")


def test_an_adapter_is_no_base(outputs: Path) -> None:
    adapter = tune(outputs, "lora.rank=2").path / "adapter"
    with pytest.raises(ConfigError, match=r"holds an adapter, not a model\. Name the run or the folder that it is for"):
        tune(outputs, f"base={adapter}")


def test_a_layer_that_a_folder_does_not_have_is_refused(outputs: Path, foreign: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"lora\.target_modules: other-model has no layer c_atn\. Did you mean c_attn"
    ):
        tune(outputs, f"base={foreign}", "lora.target_modules=[c_atn]")


# 4 bits


def test_four_bits_without_their_library_are_refused(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("llm.stage.finetune"), "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"through bitsandbytes, which is not installed\. Install the extra: pip"):
        tune(outputs, "lora.method=qlora")


@pytest.mark.filterwarnings("default")  # of bitsandbytes
def test_a_base_in_four_bits_is_tuned_as_it_is_without_a_gpu(outputs: Path) -> None:
    """Validation lays nothing out anew; the adapter is for the base as it was, and merges into that."""
    pytest.importorskip("bitsandbytes", reason="the extra qlora (bitsandbytes) is not installed")
    lora, often, seldom = (
        tune(outputs, f"lora.method={method}", "name=four", f"trainer.validate_every_steps={every}", *more)
        for method, every, more in (("lora", 4, []), ("qlora", 1, []), ("qlora", 4, ["reuse=never"]))
    )
    assert often.results["val/loss"] == seldom.results["val/loss"] != lora.results["val/loss"]
    assert often.results["val/loss_before"] == pytest.approx(lora.results["val/loss_before"], rel=0.01)
    counted = ("parameters", "trainable_parameters", "optimizer_bytes_full", "model_bytes")
    assert [often.results[name] for name in counted] == [lora.results[name] for name in counted]
    exported = run("export", f"outputs={outputs}", f"run={seldom.path}")
    assert 0 < exported.results["max_logit_difference"] <= 1e-4
    merged = load_file(exported.path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
