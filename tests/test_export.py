"""stage=export end to end on tiny runs: it loads without us, says where it is from, and refuses what is not the run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import yaml
from safetensors.torch import load_file, save_file

from llm import model as models
from llm.config.evaluation import Sampling
from llm.dry_run.survey import survey
from llm.errors import ConfigError, DamagedError, UnequalError
from llm.run.console import markdown_text, shown
from llm.run.models import find_model, with_parents
from llm.run.runs import Run, load
from llm.tokenizer.folder import load_chat, load_tokenizer, read_special
from llm.verify import verify
from tests.korean import documents
from tests.test_stages import compose, run
from tests.tuned import copy_of, folder_of, quick_peak, train_first, tuning_on  # noqa: F401  # quick_peak is a fixture


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a pretraining and a fine-tuning, both named first."""
    words = ["tokenizer=byte_bpe", "model=llama_tiny"]
    tuning = ["optimizer.learning_rate=0.05", "optimizer.warmup_steps=0"]
    return train_first(tmp_path_factory.mktemp("trained"), documents(200), words=words, tuning=tuning)


@pytest.fixture(scope="module")
def merged(trained: Path) -> Run:
    return run("export", f"outputs={trained}", f"run={folder_of(trained, 'finetune')}")


@pytest.fixture(scope="module")
def adapter(trained: Path) -> Run:
    return run("export", f"outputs={trained}", "run=first", "export.merge=false")


@pytest.fixture
def outputs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained runs, with all that refers to their place, and nothing exported."""
    return copy_of(trained, tmp_path / "outputs", without="export")


HALF = "\ufffd"  # of a character that the last token cuts: ours leaves it out
OTHERS_ALONE = """
import warnings
warnings.simplefilter("ignore")
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, adapter = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
turns = [{"role": "user", "content": "5번 사람은 어디에 있나요?"}]
inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
made = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1]:]
pipe = pipeline("text-generation", model=folder)
with torch.inference_mode():
    apart = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()(**inputs).logits - model(**inputs).logits
print(json.dumps({
    "text": tokenizer.decode(made, skip_special_tokens=True),
    "pipeline": pipe(turns, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]["content"],
    "prompt_ids": inputs["input_ids"][0].tolist(),
    "ids": made.tolist(),
    "plain_ids": tokenizer("어제 책을")["input_ids"],
    "plain": pipe("어제 책을", max_new_tokens=4, do_sample=False, return_full_text=False)[0]["generated_text"],
    "of_adapter": AutoTokenizer.from_pretrained(adapter)("어제 책을")["input_ids"],
    "apart": float(apart.abs().max()),
}))
assert not [name for name in sys.modules if name.split(".")[0] == "llm"]
"""


def test_model_and_adapter_load_and_write_without_us(merged: Run, adapter: Run, trained: Path, tmp_path: Path) -> None:
    code = ["-c", f"import sys, json, torch\n{OTHERS_ALONE}", str(merged.path / "model"), str(adapter.path / "adapter")]
    shown = subprocess.run([sys.executable, *code], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    said = json.loads(shown.stdout)
    assert said["apart"] <= 1e-5
    base, tuned = folder_of(trained, "pretrain") / "model", folder_of(trained, "finetune") / "adapter"
    model, words, chat = models.load(base, adapter=tuned).eval(), load_tokenizer(tuned), load_chat(tuned)
    turns = [{"role": "user", "content": "5번 사람은 어디에 있나요?"}]
    assert said["prompt_ids"] == chat.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    begin = [read_special(tuned).bos_id]
    assert said["plain_ids"] == begin + words.encode("어제 책을", add_special_tokens=False).ids == said["of_adapter"]
    assert said["text"] == said["pipeline"] and len(said["ids"]) == 8
    for ids, text, count in ((said["prompt_ids"], said["text"], 8), (said["plain_ids"], said["plain"], 4)):
        sampling = Sampling(max_new_tokens=count, repetition_penalty=1.0)
        ours = models.generate(model, [ids], words, sampling=sampling, pad_id=1)[0].text
        assert ours.rstrip(HALF) == text.rstrip(HALF)


def test_an_export_is_a_run_that_is_found_again_and_verified(merged: Run, trained: Path) -> None:
    tuned, base = load(folder_of(trained, "finetune")), load(folder_of(trained, "pretrain"))
    assert merged.path.name == f"first-{merged.key}" and merged.path.parent.name == "export"
    assert merged.record["identity"]["parents"] == {"run": tuned.digest, "base": base.digest}
    files = {name for name in merged.record["files"] if name.startswith("model/")}
    assert files == {
        *("model/README.md", "model/config.json", "model/generation_config.json", "model/model.safetensors"),
        *("model/tokenizer.json", "model/tokenizer_config.json", "model/chat_template.jinja"),
    }
    assert merged.digest == find_model(trained, str(merged.path)).digest  # and not of the card, which has timings
    before = (merged.path / "run.json").read_bytes()
    again = run("export", f"outputs={trained}", "run=first", "export.max_logit_difference=0.01")
    assert again.path == merged.path and (again.path / "run.json").read_bytes() == before
    with pytest.raises(UnequalError, match=r"was exported with logits that are .* apart, and 0 is allowed\. Set"):
        run("export", f"outputs={trained}", "run=first", "export.max_logit_difference=0")
    assert [verify(each)[1] for each in with_parents([merged])] == [[]] * 6


def test_the_merge_and_the_files_are_within_the_bound(merged: Run) -> None:
    results = merged.results
    assert 0 < results["max_logit_difference_of_merge"] <= 1e-4 and results["max_logit_difference"] <= 1e-4
    assert results["same_likeliest_token"] == 1 and results["positions_compared"] > 100
    weights = load_file(merged.path / "model" / "model.safetensors")
    assert results["parameters"] == sum(tensor.numel() for tensor in weights.values())


def test_an_adapter_is_exported_by_itself(merged: Run, adapter: Run, trained: Path) -> None:
    assert adapter.key != merged.key and not (adapter.path / "model").exists()
    assert adapter.results["max_logit_difference"] == 0
    header = yaml.safe_load((adapter.path / "adapter" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["library_name"] == "peft" and header["base_model"] == folder_of(trained, "pretrain").name


def test_a_file_for_llama_cpp_goes_along(merged: Run, trained: Path) -> None:
    made = run("export", f"outputs={trained}", "run=first", "export.gguf=f32", "export.dtype=bf16", "name=both")
    found = {each.name: each for each in gguf.GGUFReader(made.path / "model" / "model.gguf").tensors}
    weights = load_file(made.path / "model" / "model.safetensors")
    value = weights["model.layers.0.self_attn.v_proj.weight"].float().numpy()
    assert np.array_equal(found["blk.0.attn_v.weight"].data, value)
    assert made.results["max_logit_difference"] > merged.results["max_logit_difference"]
    assert "llama-cli -m model.gguf -c 1024 -cnv --jinja" in (made.path / "model" / "README.md").read_text("utf-8")
    assert (made.path / "model" / "Modelfile").read_text("utf-8").startswith("FROM ./model.gguf\n")


def test_a_run_that_tuned_every_weight_is_exported_as_it_is(trained: Path) -> None:
    tuning = ["lora.method=full", f"base={folder_of(trained, 'pretrain')}", "name=whole"]
    chats = tuning_on(trained.parent / "chats.jsonl")
    tuned = run("finetune", *chats, f"outputs={trained.parent / 'full'}", *tuning)
    made = run("export", f"outputs={trained.parent / 'full'}", "run=whole")
    before, after = (load_file(each.path / "model" / "model.safetensors") for each in (tuned, made))
    assert all((before[name] == after[name]).all() for name in before) and before.keys() == after.keys()
    assert made.results["same_likeliest_token"] == 1
    with pytest.raises(ConfigError, match=r"export.merge=false is for a run with an adapter, and .* is a finetune run"):
        run("export", f"outputs={trained.parent / 'full'}", "run=whole", "export.merge=false")


def test_a_run_that_was_tuned_on_an_exported_folder_is_exported(merged: Run, trained: Path, tmp_path: Path) -> None:
    base = tmp_path / "내 모델"
    shutil.copytree(merged.path / "model", base)
    tuning = [f'base="{base}"', "name=again", "optimizer.learning_rate=0.05", "optimizer.warmup_steps=0"]
    run("finetune", *tuning_on(trained.parent / "chats.jsonl"), f"outputs={tmp_path / 'outputs'}", *tuning)
    made = run("export", f"outputs={tmp_path / 'outputs'}", "run=again")
    assert 0 < made.results["max_logit_difference"] <= 1e-4 and made.results["same_likeliest_token"] == 1
    text = (made.path / "model" / "README.md").read_text(encoding="utf-8")
    assert "begun from `내 모델` and tuned on `conversations`" in text
    assert "| model | 내 모델 |" in text and "those of the model's owner: see its own card" in text


def test_a_pretrained_run_is_exported_bit_for_bit(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = folder_of(trained, "pretrain")
    made = run("export", f"outputs={trained}", f"run={base}", "name=base")
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (base, made.path))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    assert made.results["max_logit_difference"] == 0 and made.record["identity"]["parents"]["run"] == load(base).digest
    assert "logits at most 0 from those of first-" in caplog.text


def test_the_card_says_where_the_model_comes_from(merged: Run, trained: Path) -> None:
    text = (merged.path / "model" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---")[1])
    assert header == {
        "language": ["ko"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["ttukttak", "llama"],
    }  # fmt: skip
    tuned = load(folder_of(trained, "finetune"))
    for stage in ("documents", "tokenizer", "shards", "pretrain", "finetune"):
        each = load(folder_of(trained, stage))
        assert f"| {stage} | {markdown_text(each.path.name)} | {each.digest[:12]} |" in text
    assert f"| val/loss | {shown(tuned.results['val/loss'])} |" in text
    assert f"| max\\_logit\\_difference | {shown(merged.results['max_logit_difference'])} |" in text
    assert "pretrained on `text` and tuned on `conversations`" in text
    assert "none stated: it is the owner's own text" in text
    assert str(trained) not in text


def refuse(error: type[Exception], message: str, outputs: Path, *overrides: str) -> None:
    """Nothing that looks like an export is left."""
    with pytest.raises(error, match=message):
        run("export", f"outputs={outputs}", "run=first", *overrides)
    assert not list(outputs.glob("export/*/model")) and not list(outputs.glob("export/*/.tmp-*"))
    assert all(not load(path).is_done for path in outputs.glob("export/*"))


def test_a_merge_that_changes_the_model_is_refused(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = peft.LoraModel.merge_and_unload

    def spoil(self: Any, **options: Any) -> Any:
        model = merge(self, **options)
        model.get_input_embeddings().weight.data[5:100] += 0.05
        return model

    monkeypatch.setattr(peft.LoraModel, "merge_and_unload", spoil)
    refuse(UnequalError, r"the merged model gives other logits than the run: .* Nothing was exported", outputs)


def test_weights_that_are_not_what_was_trained_are_refused(outputs: Path) -> None:
    path = folder_of(outputs, "pretrain") / "model" / "model.safetensors"
    save_file({key: tensor + 0.5 for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    refuse(DamagedError, r"safetensors is not what run.json says", outputs)


def test_a_dry_run_says_what_an_export_would_take(outputs: Path) -> None:
    job = survey(compose("export", f"outputs={outputs}", "run=first", "export.dtype=bf16", "dry_run=true"))
    size = (folder_of(outputs, "pretrain") / "model" / "model.safetensors").stat().st_size
    assert job.made == ["export"] and [*job.disk.values()] == [size / 2] and not (outputs / "export").exists()
