"""What dry_run=true says, against runs and models that are made; and that it makes nothing."""

import json
import math
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from optuna.distributions import IntDistribution

from hydra_plugins.ttukttak.sweeper import show_dry_run
from llm import model as models
from llm.config.compose import from_hydra
from llm.config.sweeping import PoolConfig, SweeperConfig
from llm.config.training import Architecture, ModelConfig, OptimizerConfig, Precision
from llm.config.tuning import LoraConfig
from llm.data.corpus import open_corpus
from llm.dry_run.memory import Memory, rehearse
from llm.dry_run.survey import memory_of, survey
from llm.dry_run.table import show
from llm.run.record import write_record
from llm.stage import run_stage
from llm.sweep.driver import run_search
from llm.tokenizer.folder import Special
from tests.korean import documents

ROOT = Path(__file__).parents[1]
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=0, tokens=())
SMALL = [
    *("tokenizer.initial_alphabet=none", "tokenizer.vocab_size=600", "data=text", "data.held_out_share=0.1"),
    *("data.sequence_length=64", "data.batch_size=4"),
]
MODEL = ["model.num_layers=1", "model.num_heads=2", "model.hidden_size=16", "logger=local", "trainer.max_steps=10"]
VOCAB, ROWS, LENGTH = 512, 2, 32


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [json.dumps({"text": document}, ensure_ascii=False) for document in documents(60)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def config(stage: str, text: Path, outputs: Path, *overrides: str) -> Any:
    given = [f"stage={stage}", *SMALL, f"data.path={text}", f"outputs={outputs}", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return from_hydra(compose("config", overrides=given))


def pretrain(text: Path, outputs: Path, *overrides: str) -> Any:
    return config("pretrain", text, outputs, "dry_run=true", *MODEL, *overrides)


@pytest.fixture(scope="module")
def with_shards(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(outputs with a tokenizer and shards, what the shards' run says of them)."""
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    run = run_stage(config("shards", text, outputs))
    return outputs, run.results


def meta_model(architecture: Architecture = Architecture.gpt2, *, lora: bool = False, **shape: Any) -> Any:
    made = ModelConfig(architecture=architecture, num_layers=2, num_heads=2, hidden_size=32, **shape)
    with torch.device("meta"):
        model: Any = models.build(made, vocab_size=VOCAB, special=SPECIAL)
        return models.add_lora(model, LoraConfig(rank=2)) if lora else model


def memory(model: Any, **changes: Any) -> Memory:
    usual = {"precision": Precision.fp32, "rows": ROWS, "sequence_length": LENGTH, "accumulation": 1}
    return rehearse(model, OptimizerConfig(), **usual | changes)


# What is there, and what would be made


def test_nothing_is_written(text: Path, tmp_path: Path) -> None:
    for stage in ("tokenizer", "shards"):
        survey(config(stage, text, tmp_path / "outputs", "dry_run=true"))
    job = survey(pretrain(text, tmp_path / "outputs", "data.sequence_length=33", "data.batch_tokens=165"))
    assert job.made == ["documents", "tokenizer", "shards", "pretrain"] and not job.reused
    assert job.takes.tokens == 10 * 165
    assert {name for name, _ in job.disk} == {"documents", "shards", "checkpoints", "model"}
    assert any(re.fullmatch(r"Tokens are estimated: 0\.0 MB .*all of it read.*a guess from .*", n) for n in job.notes)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("caps", [{"weight": 1, "max_bytes": 1000}, {"max_tokens": 200}], ids=str)
def test_the_text_of_a_mixture_is_that_of_its_parts_up_to_their_caps(
    caps: dict[str, int], text: Path, tmp_path: Path
) -> None:
    of_text = {"use": "text", "path": str(text)}
    parts: dict[str, dict[str, Any]] = {"whole": {**of_text}, "part": of_text | caps}
    if "weight" in caps:
        parts["whole"]["weight"] = 3
    typed = re.sub(r'"(\w+)":', r"\1:", json.dumps(parts))  # Hydra takes no quotes around a key
    mixture = [f"data.parts={typed}", "data.path=null", *MODEL]
    job = survey(config("pretrain", text, tmp_path, "dry_run=true", "data.source=mixture", *mixture))
    records = open_corpus(config("shards", text, tmp_path).data).records(held_out=False)
    whole = sum(len(record.text.encode()) for record in records)
    per_token = max(2.0, 4.5 + math.log2(600 / 4096))
    part = min(whole, caps.get("max_bytes", whole), caps.get("max_tokens", whole) * per_token)
    tokens = (job.takes.tokens or 0) / (job.takes.epochs or 0)
    assert tokens == pytest.approx((whole + part) / per_token, rel=0.01)  # a cap in tokens is in whole bytes


def test_finished_shards_are_reused_and_their_tokens_counted(
    text: Path, with_shards: tuple[Path, dict[str, Any]]
) -> None:
    outputs, results = with_shards
    before = sorted(outputs.rglob("*"))
    job = survey(pretrain(text, outputs))
    assert job.made == ["pretrain"] and len(job.reused) == 3
    assert job.takes.tokens == 10 * 4 * 64
    assert job.takes.epochs == pytest.approx(10 * 4 * 64 / results["train"]["tokens"], rel=1e-12)
    assert not any("estimated" in note for note in job.notes)
    assert survey(pretrain(text, outputs, "trainer.max_tokens=5120")).takes.steps == 20
    shards = survey(config("shards", text, outputs, "dry_run=true"))
    assert not shards.made and shards.notes == [f"{shards.folder} is finished: it would be reused as it is."]
    assert sorted(outputs.rglob("*")) == before


def test_an_unfinished_run_goes_on_from_its_checkpoint(
    text: Path, with_shards: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = survey(pretrain(text, with_shards[0]))
    outputs = with_shards[0].parent / "unfinished"
    shutil.copytree(with_shards[0], outputs)
    folder = outputs / "pretrain" / Path(whole.folder).name
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    record = {"stage": "pretrain", "name": "x", "key": folder.name.rpartition("-")[2], "status": "running"}
    write_record(folder, record)
    job = survey(pretrain(text, outputs))
    assert job.steps_done == 4 and f"{folder} would go on from step 4." in job.notes
    assert whole.takes.flops is not None and job.takes.flops == pytest.approx(0.6 * whole.takes.flops, rel=1e-12)


# Tables


def test_several_jobs_have_a_row_each_and_totals_and_one_is_told_in_detail(
    text: Path, with_shards: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [["optimizer.learning_rate=1e-3", "seed=1"], ["optimizer.learning_rate=3e-4", "seed=1"]]
    show_dry_run([pretrain(text, with_shards[0], *job) for job in jobs], jobs)
    said = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert [line[0] for line in lines] == ["optimizer.learning_rate=1e-3", "optimizer.learning_rate=3e-4", "all"]
    header = next(line for line in said.splitlines() if "parameters" in line)
    place = [cell.strip() for cell in header.split("┃")[1:-1]].index("steps")
    assert [line[place] for line in lines] == ["10", "10", "20"]
    show([pretrain(text, with_shards[0])])
    said = capsys.readouterr().out
    assert all(word in said for word in ("parameters", "optimizer", "logits", "checkpoints", "4 rows of"))


# The model and the step


def test_a_training_for_gpus_that_are_elsewhere_is_looked_at_and_has_no_time(
    text: Path, with_shards: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpus = ["trainer=gpu", "trainer.devices=2", "trainer.num_nodes=2"]
    job = survey(pretrain(text, with_shards[0], *gpus))
    assert job.takes.steps == 10 and job.takes.memory and job.takes.memory.total > 0 and job.takes.seconds is None
    assert job.notes[0].startswith("Not on this machine: trainer.num_nodes=2, but this is one process")
    assert "No time is said: there is no GPU here to tell it from." in job.notes
    one = survey(pretrain(text, with_shards[0], "trainer.accelerator=gpu"))
    assert one.notes[0].startswith("Not on this machine: trainer.accelerator=gpu with trainer.devices=1, but")
    assert one.takes.memory and one.takes.memory.heap == one.takes.memory.libraries == 0


def test_memory_is_told_without_the_text_and_under_fsdp_by_the_share_of_a_device(
    text: Path, with_shards: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("llm.dry_run.training"), "_resident_bytes", lambda: 10**8)
    two = ["trainer.devices=2", "trainer.accelerator=cpu"]
    ddp, fsdp = (survey(pretrain(text, with_shards[0], *two, f"trainer.strategy={s}")).takes for s in ("ddp", "fsdp"))
    assert ddp.memory and fsdp.memory and fsdp.disk == ddp.disk
    for held in ("weights", "gradients", "optimizer"):
        assert getattr(fsdp.memory, held) == getattr(ddp.memory, held) // 2
    assert ddp.memory.libraries > 10**8  # of the process: its memory is a CPU's
    assert memory_of(pretrain(text / "gone", with_shards[0], *two, "trainer.strategy=ddp")) == ddp.memory.total


def test_a_search_is_told_by_its_first_point(
    text: Path, with_shards: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(with_shards[0], outputs)
    before = sorted(outputs.rglob("*"))
    run_search(
        SweeperConfig(trials=3),
        PoolConfig(),
        space={"trainer.max_steps": IntDistribution(7, 9)},
        fixed=[],
        compose=lambda overrides, number: pretrain(text, outputs, *overrides),
        choice=None,
    )
    shown = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert dict([cell.strip() for cell in cells] for cells in shown)["steps"] == "7"
    assert sorted(outputs.rglob("*")) == before


def test_memory_that_stays_is_four_bytes_for_each_parameter_and_moment() -> None:
    model = meta_model()
    parameters = [p.numel() for p in model.parameters()]
    held = memory(model)
    assert held.weights == 4 * sum(parameters)
    assert held.optimizer == 2 * 4 * sum(parameters) + 4 * len(parameters)  # two moments, and each one's step
    assert held.logits % (4 * ROWS * LENGTH * VOCAB) == 0 < held.logits
    assert memory(meta_model(), accumulation=2).gradients == 4 * sum(parameters)
    model = meta_model(lora=True)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    held = memory(model)
    assert held.optimizer == 2 * 4 * sum(trained) + 4 * len(trained)
    assert held.gradients <= 4 * sum(trained) < held.weights / 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux keeps the mark of a process's peak")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's memory is measured in its place")
def test_the_estimate_is_within_15_percent_of_what_a_process_took() -> None:
    from benchmarks.memory import compare, growth

    case = {"model": "llama_tiny", "micro_rows": 2, "length": 256, "vocab_size": 8192, "precision": "fp32"}
    expected, measured = compare(case)
    assert expected["total"] == pytest.approx(measured["total"], rel=0.15)
    assert growth(expected) == pytest.approx(growth(measured), rel=0.15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize(("model", "precision"), [("gpt2_10m", "fp32"), ("llama_125m", "bf16")])
def test_the_estimate_is_within_15_percent_of_what_a_gpu_took(model: str, precision: str) -> None:
    from benchmarks.memory import compare

    case = {"model": model, "micro_rows": 8, "length": 512, "vocab_size": 8192, "precision": precision}
    expected, measured = compare(case)
    assert expected["total"] == pytest.approx(measured["total"], rel=0.15)
