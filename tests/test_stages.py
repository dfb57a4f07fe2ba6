"""The stages end to end, as the command line runs them, on a little Korean text."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm import model as models
from llm.chat.talker import Talker
from llm.config.compose import from_hydra
from llm.config.evaluation import Sampling
from llm.data.conversations import ConversationRows, encode_conversations
from llm.data.corpus import is_held_out, open_corpus
from llm.data.order import MicroBatch
from llm.data.records import Conversation
from llm.data.rows import Rows, TokenRows
from llm.data.shards import read_manifest
from llm.errors import ConfigError
from llm.run import devices
from llm.run.files import digest_of, sha256_of
from llm.run.models import find_model
from llm.run.record import read_metrics
from llm.run.runs import Run, check_files, load
from llm.stage import run_stage
from llm.tokenizer.folder import load_chat, read_special
from tests.korean import documents
from tests.rounding import rounding

TINY = [
    "tokenizer.initial_alphabet=none",
    "tokenizer.vocab_size=600",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.hidden_size=16",
    "data.held_out_share=0.1",
    "data.sequence_length=64",
    "data.batch_size=4",
    *(steps := ["trainer.max_steps=4", "trainer.log_every_steps=1", "trainer.sample_tokens=4", "logger=local"]),
]
CHAT = [*steps, "data=conversations", "data.held_out_share=0.2", "data.sequence_length=64", "data.batch_size=4"]


@pytest.fixture(autouse=True, scope="module")
def _quick_peak() -> Iterator[None]:
    """Do not measure the machine before every tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("llm.trainer.fit"), "peak_flops", lambda *_: (1e9, "assumed"))
        yield


def compose(stage: str, *overrides: str) -> Any:
    with hydra.initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        return from_hydra(hydra.compose("config", overrides=[f"stage={stage}", *overrides]))


def run(stage: str, *overrides: str) -> Run:
    """What `python train.py stage=... ...` does, in this process."""
    config = compose(stage, *overrides)
    finished = run_stage(config)
    assert isinstance(finished, Run)
    return finished


def write_text(path: Path, *, seed: int = 0) -> Path:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents(400, seed=seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_conversations(path: Path, count: int = 60) -> Path:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        place, thing = draw.choice(["학교", "시장", "바닷가"]), draw.choice(["책", "꽃", "옷"])
        question, answer = f"{number}번째로 {place}에서 무엇을 샀나요?", f"{place}에서 {thing}을 샀다."
        rows.append(json.dumps({"question": question, "answer": answer}, ensure_ascii=False))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def files_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of change and content of every file, by name."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, sha256_of(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def runs(outputs: Path, stage: str) -> list[Path]:
    return sorted((outputs / stage).glob("*"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Run]:
    """(the folder of outputs, the text, the finished pretraining run); tests only read them, or work on a copy."""
    folder = tmp_path_factory.mktemp("made")
    text = write_text(folder / "text.jsonl")
    finished = run("pretrain", "data=text", f"data.path={text}", f"outputs={folder / 'outputs'}", "name=base", *TINY)
    return folder / "outputs", text, finished


@pytest.fixture
def outputs(made: tuple[Path, Path, Run], tmp_path: Path) -> Path:
    """A copy of the outputs."""
    return Path(shutil.copytree(made[0], tmp_path / "outputs"))


def pretrain(outputs: Path, text: Path, *overrides: str) -> Run:
    return run("pretrain", "data=text", f"data.path={text}", f"outputs={outputs}", *TINY, *overrides)


def without_times(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, but for those that no two runs share."""
    timed = ("seconds", "throughput/", "memory/")
    return [{k: v for k, v in r.items() if not k.startswith(timed)} for r in read_metrics(folder / "metrics.jsonl")]


# Pretraining


def test_the_record_of_a_pretraining_says_what_it_is_made_of_and_what_came_out(made: tuple[Path, Path, Run]) -> None:
    outputs, _, finished = made
    stages = ("documents", "tokenizer", "shards", "pretrain")
    assert {path.name for path in outputs.iterdir()} == set(stages)
    assert [len(runs(outputs, stage)) for stage in stages] == [1, 1, 1, 1]
    assert finished.path == outputs / "pretrain" / f"base-{finished.key}"
    assert {path.name for path in finished.path.iterdir()} == {
        *(
            "config.yaml",
            "run.json",
            "metrics.jsonl",
            "samples.jsonl",
            "validation.jsonl",
            "log.txt",
            "checkpoints",
            "model",
            ".lock",
        )
    }
    record = json.loads((finished.path / "run.json").read_text(encoding="utf-8"))
    shards = runs(outputs, "shards")[0]
    assert (record["stage"], record["status"], record["name"]) == ("pretrain", "done", "base")
    assert record["key"] == digest_of(record["identity"])[:8]
    words = runs(outputs, "tokenizer")[0]
    assert record["folders"] == {"shards": f"shards/{shards.name}", "tokenizer": f"tokenizer/{words.name}"}
    assert record["identity"]["parents"] == {
        "shards": json.loads((shards / "run.json").read_text(encoding="utf-8"))["digest"]
    }
    assert record["versions"]["torch"] and record["command"] and record["seconds"] > 0
    assert "logger" not in record["identity"]["settings"]
    metrics = read_metrics(finished.path / "metrics.jsonl")
    validated = [r for r in metrics if "val/loss" in r]
    manifest = json.loads((shards / "shards" / "manifest.json").read_text(encoding="utf-8"))
    vocab, h = 600, 16
    speeds = sorted(r["throughput/tokens_per_second"] for r in metrics if "train/loss" in r)
    assert record["results"] == {
        "parameters": vocab * h + 1024 * h + (12 * h * h + 13 * h) + 2 * h,
        "val/loss_before": validated[0]["val/loss"],
        "val/loss": validated[-1]["val/loss"],
        "val/bits_per_byte_before": validated[0]["val/bits_per_byte"],
        "val/bits_per_byte": validated[-1]["val/bits_per_byte"],
        "val/loss_best": min(r["val/loss"] for r in validated),
        "best_step": min(validated, key=lambda r: r["val/loss"])["step"],
        "tokens": metrics[-1]["tokens"],
        "tokens_per_second_median": speeds[len(speeds) // 2],
        "unigram_bits_per_byte": manifest["train"]["unigram_bits_per_byte"],
    }
    assert finished.objective == record["objective"] == validated[-1]["val/bits_per_byte"]


def test_transformers_load_the_model_that_was_validated(made: tuple[Path, Path, Run]) -> None:
    outputs, text, finished = made
    loaded = AutoModelForCausalLM.from_pretrained(finished.path / "model", local_files_only=True).eval()
    words = AutoTokenizer.from_pretrained(finished.path / "model", local_files_only=True)
    assert loaded.config.vocab_size == len(words)
    folder = runs(outputs, "shards")[0] / "shards"
    manifest = read_manifest(folder)
    rows = TokenRows({"": (folder, manifest)}, "held_out", sequence_length=64)
    assert loss_of(loaded, rows) == pytest.approx(finished.results["val/loss"], rel=rounding(600))
    texts = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    held_out = [text for text in texts if is_held_out(text, 0.1)]
    labels = sum(len(words(text, add_special_tokens=False)["input_ids"]) + 1 for text in held_out)  # and the end
    bits = finished.results["val/loss"] * labels / math.log(2)
    expected = bits / sum(len(text.encode()) for text in held_out)
    assert finished.results["val/bits_per_byte"] == pytest.approx(expected, rel=1e-9)


def loss_of(model: torch.nn.Module, rows: Rows) -> float:
    """Nats per label, one row after the other."""
    nats = labels = 0.0
    for row in range(len(rows)):
        batch = rows.__getitems__(MicroBatch(0, np.array([row]), 1))
        with torch.no_grad():
            output = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        scores = torch.log_softmax(output.logits[0].double(), -1)
        for place, label in enumerate(batch["labels"][0].tolist()):
            if label >= 0:
                nats -= float(scores[place, label])
                labels += 1
    return nats / labels


def test_the_same_command_again_reuses_every_run_and_another_model_its_tokenizer_and_shards(
    outputs: Path, made: tuple[Path, Path, Run], caplog: pytest.LogCaptureFixture
) -> None:
    before = files_of(outputs)
    again = pretrain(outputs, made[1], "name=base", "trainer.micro_batch_size=1", "logger.project=other")
    assert files_of(outputs) == before and again.results == made[2].results
    assert "trainer.micro_batch_size=1 is not applied" in caplog.text
    for stage in ("documents", "tokenizer", "shards", "pretrain"):
        assert f"reused {runs(outputs, stage)[0]}" in caplog.text
    other = pretrain(outputs, made[1], "model=llama_tiny", "name=base")
    assert other.path.name == f"base-{other.key}" != made[2].path.name
    new = files_of(outputs).items() - before.items()
    assert all(name.startswith(f"pretrain/{other.path.name}/") for name, _ in new)


def test_the_same_seed_gives_the_same_model_and_another_one_another(
    outputs: Path, made: tuple[Path, Path, Run]
) -> None:
    again = pretrain(outputs, made[1], "name=base", "reuse=never")
    assert (again.digest, again.results["val/loss"]) == (made[2].digest, made[2].results["val/loss"])
    assert pretrain(outputs, made[1], "name=base", "seed=1").digest != made[2].digest


def test_a_model_that_lets_documents_see_each_other_is_refused_before_it_is_trained(
    outputs: Path, made: tuple[Path, Path, Run]
) -> None:
    with pytest.raises(ConfigError, match=r"^model.architecture=biogpt: documents that share a row see each other"):
        pretrain(outputs, made[1], "model.architecture=biogpt")


def test_text_is_known_by_its_content_not_by_its_name(outputs: Path, made: tuple[Path, Path, Run]) -> None:
    folder = outputs.parent / "elsewhere"
    folder.mkdir()
    renamed = folder / "other-name.jsonl"
    shutil.copy(made[1], renamed)
    assert pretrain(outputs, renamed, "name=base").path == runs(outputs, "pretrain")[0]
    changed = write_text(folder / "text.jsonl", seed=1)
    assert pretrain(outputs, changed, "name=base").key != made[2].key
    assert [len(runs(outputs, stage)) for stage in ("tokenizer", "shards", "pretrain")] == [2, 2, 2]


def test_reuse_never_on_two_devices_trains_once_and_what_it_made_is_kept(
    outputs: Path, made: tuple[Path, Path, Run]
) -> None:
    words = ["data=text", f"data.path={made[1]}", f"outputs={outputs}", "name=base", *TINY]
    again = subprocess.run(
        [sys.executable, "train.py", *words, "trainer.devices=2", "trainer.precision=fp32", "reuse=never"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("pretrain starts in") == again.stderr.count("pretrain done in") == 1, again.stderr
    assert "reuse=never" not in again.stderr, again.stderr
    said = [line.partition(" ")[2] for line in again.stderr.splitlines()]  # without the time
    assert [line for line in said if said.count(line) > 1 or "GLOBAL_RANK" in line] == []
    kept = load(runs(outputs, "pretrain")[0])
    assert kept.is_done and kept.record["pid"] != made[2].record["pid"]
    assert kept.results["val/loss"] == pytest.approx(made[2].results["val/loss"], rel=1e-5)
    check_files(kept)


WSD = ["optimizer.schedule=wsd", "optimizer.warmup_steps=1", "optimizer.decay_share=0.5"]


def test_a_longer_run_goes_on_from_the_stable_phase_of_a_shorter_one_to_the_same_end(
    outputs: Path, made: tuple[Path, Path, Run], caplog: pytest.LogCaptureFixture
) -> None:
    settings = [*WSD, "trainer.checkpoint_every_steps=5", "trainer.validate_every_steps=3"]
    whole = pretrain(outputs, made[1], *settings, "trainer.max_steps=9", "name=whole", "reuse=never")
    shutil.move(whole.path, outputs.parent / "whole")
    short = pretrain(outputs, made[1], *settings, "trainer.max_steps=6", "name=short", "trainer.keep_checkpoints=1")
    kept = [path.name for path in sorted((short.path / "checkpoints").iterdir())]
    assert kept == ["step-00000003", "step-00000006"]  # the end of the stable phase, and of the run
    longer = pretrain(outputs, made[1], *settings, "trainer.max_steps=9", "name=longer")
    assert f"until step 3 this is {short.path}, whose checkpoint it goes on from" in caplog.text
    assert longer.digest == whole.digest
    assert without_times(longer.path) == without_times(outputs.parent / "whole")
    for name in ("samples.jsonl", "validation.jsonl"):
        assert read_metrics(longer.path / name) == read_metrics(outputs.parent / "whole" / name)
    caplog.clear()
    (longer.path / "run.json").write_text("{", encoding="utf-8")  # stops no other run
    pretrain(outputs, made[1], *settings, "trainer.max_steps=9", "optimizer.min_learning_rate_ratio=0")
    assert "whose checkpoint it goes on from" not in caplog.text  # it differs in more than its length


BF16 = "processor\t: 0\nflags\t\t: fpu avx512_bf16\n"


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in_on_a_machine_of_another_kind(
    outputs: Path,
    made: tuple[Path, Path, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = ["name=moved", "trainer.max_steps=4", "trainer.checkpoint_every_steps=2"]
    (tmp_path / "cpuinfo").write_text(BF16, encoding="ascii")

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power went"):
        patch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
        patch.setattr("llm.trainer.module.keep", die)
        pretrain(outputs, made[1], *settings)
    caplog.clear()
    moved = pretrain(outputs, made[1], *settings)  # on a CPU that does not have it
    [folder] = (outputs / "pretrain").glob("moved-*")
    assert moved.path == folder and moved.config["trainer"]["precision"] == "bf16"
    assert "going on from" in caplog.text
    assert pretrain(outputs, made[1], *settings) == moved


# Fine-tuning


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("conversations") / "chat.jsonl")


def finetune(outputs: Path, path: Path, *overrides: str) -> Run:
    return run("finetune", f"outputs={outputs}", *CHAT, f"data.path={path}", "base=base", *overrides)


def test_fine_tuning_leaves_an_adapter_and_the_base_as_it_was(
    outputs: Path, made: tuple[Path, Path, Run], conversations: Path
) -> None:
    base = runs(outputs, "pretrain")[0]
    files = files_of(base)
    finished = finetune(outputs, conversations, "lora.rank=2")
    assert files_of(base) == files
    assert {path.name for path in (finished.path / "adapter").iterdir()} >= {
        *("adapter_config.json", "adapter_model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert finished.path.name == f"base-conversations-{finished.key}"
    assert finished.record["folders"] == {"base": f"pretrain/{base.name}"}
    assert finished.record["identity"]["parents"]["base"] == made[2].digest
    h, rank = 16, 2
    sizes = [(h, 3 * h), (h, h), (h, 4 * h), (4 * h, h)]
    adapters = sum(rank * (a + b) for a, b in sizes)
    results = finished.results
    assert (results["trainable_parameters"], results["parameters"]) == (
        adapters,
        made[2].results["parameters"] + adapters,
    )
    assert results["train_records"] + results["held_out_records"] == 60
    validated = [r["val/loss"] for r in read_metrics(finished.path / "metrics.jsonl") if "val/loss" in r]
    assert (results["val/loss_before"], results["val/loss"]) == (validated[0], validated[-1])
    assert results["val/loss"] < results["val/loss_before"]
    assert finished.objective == results["val/loss"]
    config = json.loads((finished.path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base / "model")
    settings = compose("finetune", f"outputs={outputs}", *CHAT, f"data.path={conversations}", "base=base")
    held_out = [c for c in open_corpus(settings.data).records(held_out=True) if isinstance(c, Conversation)]
    special = read_special(base / "model")
    encoded, _ = encode_conversations(held_out, load_chat(base / "model"), sequence_length=64)
    rows = ConversationRows(encoded, pad_id=special.pad_id, sequence_length=64)
    before = loss_of(models.load(base / "model").eval(), rows)
    after = loss_of(models.load(base / "model", adapter=finished.path / "adapter").eval(), rows)
    expected = [results["val/loss_before"], results["val/loss"]]
    assert [before, after] == pytest.approx(expected, rel=rounding(600))  # the adapter is the one that was validated
    assert finetune(outputs, conversations, "lora.rank=2") == finished


def test_a_chat_template_is_trained_with_its_tokens_and_kept_beside_the_adapter(
    outputs: Path, conversations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, path = runs(outputs, "pretrain")[0], outputs.parent / "chat.jsonl"
    long = json.dumps({"question": "길게 말해 줘", "answer": "아주 " * 200}, ensure_ascii=False)
    path.write_text(conversations.read_text(encoding="utf-8") + long + "\n", encoding="utf-8")
    with caplog.at_level("INFO", logger="llm"):
        finished = finetune(outputs, path, "chat_template=chatml", "data.packing=best_fit", "name=chatml")
    assert "chat_template=chatml: 2 new tokens, whose embeddings are trained" in caplog.text
    assert "what is trained is in ⟦ ⟧" in caplog.text and "<|im_start|>assistant / ⟦" in caplog.text
    words, before = read_special(finished.path / "adapter"), read_special(base / "model")
    size = len(load_chat(base / "model"))
    assert (words.eos_id, words.bos_id) == (size + 1, before.bos_id)
    settings = json.loads((finished.path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert list(settings["trainable_token_indices"].values()) == [[size, size + 1]]
    assert set(finished.record["identity"]["parents"]) == {"base", "data", "chat_template"}
    ((reason, times),) = finished.record["notes"]["dropped_after_encoding"].items()
    assert times == 1 and reason.endswith(": longer than data.sequence_length=64 tokens")
    results = finished.results
    assert results["train_records"] + results["held_out_records"] == 60  # conversations, though rows have several
    assert f"{results['train_records']} conversations in " in caplog.text and "(data.packing=best_fit)" in caplog.text
    talker, settings = Talker(find_model(str(outputs), str(finished.path))), Sampling(max_new_tokens=4)
    asked = [{"role": "user", "content": "무엇을 샀나요?"}]
    ids, _ = talker.encode(asked, settings)
    assert talker.tokenizer.decode(ids).endswith("무엇을 샀나요?<|im_end|>\n<|im_start|>assistant\n")
    rows = talker.model.get_input_embeddings()(torch.tensor([size, size + 1]))
    assert not torch.equal(rows[0], rows[1])  # they began as one mean, and were trained
    assert "<|" not in "".join(talker.answer(asked, settings))


def test_rows_longer_than_the_positions_that_gpt2_learned_are_refused(outputs: Path, conversations: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data.sequence_length=65 is longer than 64, all that base-\w+ can read\. Set data.sequence_length=64 or",
    ):
        finetune(outputs, conversations, "data.sequence_length=65")
    assert not (outputs / "finetune").exists()
