"""Sweeps of train.py itself: what fails fails alone, ranks share their settings, and errors come before the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from korean import documents

ROOT = Path(__file__).parents[1]
TINY = [
    *("data=text", "data.held_out_share=0.2", "data.sequence_length=64", "data.batch_size=4"),
    *("tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400"),
    *("model.num_layers=1", "model.num_heads=2", "model.hidden_size=16"),
    *("trainer.max_steps=6", "trainer.log_every_steps=1", "trainer.sample_tokens=2", "logger=local"),
]


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    if not (folder / "text.txt").exists():
        (folder / "text.txt").write_text("\n\n".join(documents(150)), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "train.py"), "-m", *TINY, "data.path=text.txt", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


def records(folder: Path, stage: str = "pretrain") -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"outputs/{stage}/*/run.json"))]


def ledger(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/sweeps/*/jobs/*/job.json"))]


def test_a_job_without_memory_fails_alone_and_the_same_command_runs_it_alone_again(tmp_path):
    words = ["model.intermediate_size=16,900000000000,32"]
    ended = sweep(tmp_path, *words)
    assert ended.returncode == 3, ended.stderr
    assert [(record["state"], record["attempts"][-1]["kind"]) for record in ledger(tmp_path)] == [
        ("done", "done"),
        ("failed", "out_of_memory"),
        ("done", "done"),
    ]
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: model.intermediate_size=900000000000: out_of_memory: ")
    assert "console.log)" in line
    assert ended.stdout.count("│ char_bpe") == 2  # ranked all the same
    assert len(records(tmp_path, "tokenizer")) == len(records(tmp_path, "shards")) == 1
    again = sweep(tmp_path, *words)
    assert again.returncode == 3
    assert [len(record["attempts"]) for record in ledger(tmp_path)] == [1, 2, 1]
    assert again.stderr.count("reused ") == 2


@pytest.mark.parametrize("form", ["grid", "search"])
def test_both_ranks_of_a_job_have_its_settings_and_one_folder(tmp_path, request, form):
    rates = [round(1e-3 * n, 4) for n in range(1, 11 if request.config.getoption("--storm") else 3)]
    words = ["trainer.devices=2", f"optimizer.learning_rate={','.join(map(str, rates))}", "hydra.launcher.jobs=2"]
    searching = ["hydra.sweeper.sampler=grid", f"hydra.sweeper.trials={len(rates)}"] if form == "search" else []
    ended = sweep(tmp_path, *words, *searching)
    assert ended.returncode == 0, ended.stderr
    made = records(tmp_path)
    assert sorted(r["identity"]["settings"]["optimizer"]["learning_rate"] for r in made) == rates
    assert {record["status"] for record in made} == {"done"}
    # A rank with other settings would look for a run of another key, and the two would wait for each other for ever.
    assert all(record["launch"] for record in made)
    assert [len(job["attempts"]) for job in ledger(tmp_path)] == [1] * len(rates)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra.launcher.jobs=0", "seed=0,1"], "hydra.launcher.jobs=0 is too small. Set it to 1 or more."),
        (["trainer=gpu", "seed=0,1"], "trainer.devices=1, but a job can have 0 GPUs here. Choose fewer devices, or "
                                      "trainer=cpu."),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_one_line_before_the_first_job(tmp_path, words, line):
    ended = sweep(tmp_path, *words)
    assert (ended.returncode, ended.stderr) == (2, f"error: {line}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
