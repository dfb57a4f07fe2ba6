"""Sweeps of train.py itself: every stage is swept, what fails fails alone, and errors come before the work."""

import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from korean import documents
from tuned import CHATS, write_lines

from llm.config.compose import as_recorded, run_command
from llm.config.stages import STAGES, StageConfig
from llm.errors import ConfigError
from llm.sweep.pool import preloaded

ROOT = Path(__file__).parents[1]
ON_TEXT = ["data=text", "data.path=text.txt", "data.held_out_share=0.2"]
TINY = [
    *(*ON_TEXT, "data.sequence_length=64", "data.batch_size=4"),
    *("tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400"),
    *("model.num_layers=1", "model.num_heads=2", "model.hidden_size=16"),
    *("trainer.max_steps=6", "trainer.log_every_steps=1", "trainer.sample_tokens=2", "logger=local"),
]


def multirun(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "train.py"), "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def records(folder: Path, stage: str = "pretrain") -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"outputs/{stage}/*/run.json"))]


def config_of(folder: Path, stage: str, record: dict) -> StageConfig:
    path = folder / "outputs" / stage / f"{record['name']}-{record['key']}" / "config.yaml"
    return as_recorded(STAGES[stage], yaml.safe_load(path.read_text(encoding="utf-8")), place=str(path))


def ledger(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/sweeps/*/jobs/*/job.json"))]


TWO_RUNS = "run=pretrain/tiny0*,pretrain/tiny1*"
# A sweep for all stages, each of which goes by the runs of the earlier ones
SWEEPS = {
    "documents,tokenizer,shards": [*ON_TEXT[:2], "data.held_out_share=0.2,0.3", "hydra.launcher.jobs=3"],
    "pretrain": [*TINY, "seed=0,1", "name=tiny${hydra:job.num}"],
    "finetune": [
        *("base=tiny0,tiny1", "data=conversations", "data.path=chats.jsonl"),
        *(word for word in TINY if word.startswith(("data.h", "data.s", "data.b", "trainer.", "logger"))),
    ],
    "evaluate": [TWO_RUNS, "evaluation.num_items=2", "evaluation.num_prompts=2", "logger=local"],
    "export": [TWO_RUNS],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of every stage, all of them made by sweeps."""
    made = tmp_path_factory.mktemp("stages")
    (made / "text.txt").write_text("\n\n".join(documents(150)), encoding="utf-8")
    write_lines(made / "chats.jsonl", CHATS)
    return made


@pytest.mark.parametrize("stages", SWEEPS)  # in the order in which they need each other
def test_every_stage_can_be_swept(folder, stages):
    ended = multirun(folder, f"stage={stages}", *SWEEPS[stages])
    assert ended.returncode == 0, ended.stderr
    for stage in stages.split(","):
        made = records(folder, stage)
        assert [run["status"] for run in made][:2] == ["done", "done"]
        known = import_module(f"llm.stage.{stage}").STAGE.result_names(config_of(folder, stage, made[0]))
        numbers = {key for key, value in made[0]["results"].items() if isinstance(value, int | float)}
        assert all(any(fnmatchcase(number, name) for name in known) for number in numbers)  # what a search may be for
        assert stage == "evaluate" or set(known) - {"morpheme_crossing_rate"} <= numbers
    if stages == "evaluate":
        shown = [line.strip("│").split("│") for line in ended.stdout.splitlines() if "│ val/bits_per_byte" in line]
        best_first = sorted(run["results"]["val/bits_per_byte"] for run in made)
        assert [[float(cell) for cell in cells[1:]] for cells in shown] == [[round(best, 4) for best in best_first]]
    assert ("One seed each" in ended.stdout) == (stages in ("pretrain", "finetune"))  # where a seed decides something
    if stages in ("finetune", "evaluate", "export"):
        assert all(f"{run['name']}-{run['key']}" in ended.stdout for run in made)


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_server_of_a_sweep_imports_for_a_stage_is_there(stage):
    assert f"llm.stage.{stage}" in preloaded(stage)
    assert all(find_spec(module) for module in preloaded(stage))  # the server itself would leave one out in silence


def test_a_job_that_fails_fails_alone_and_the_same_command_runs_it_alone_again_by_hydras_launcher_too(tmp_path):
    for seed, name in enumerate(("text.txt", "other.txt")):
        (tmp_path / name).write_text("\n\n".join(documents(20, seed=seed)), encoding="utf-8")
    words = ["stage=documents", "data=text", "data.path=text.txt,gone.txt,other.txt", "data.held_out_share=0.2"]
    ended = multirun(tmp_path, *words)
    assert ended.returncode == 3, ended.stderr
    assert [record["state"] for record in ledger(tmp_path)] == ["done", "failed", "done"]
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: data.path=gone.txt: config: ") and line.endswith("console.log)")
    assert ended.stdout.count("│ done") == 2  # ranked all the same
    again = multirun(tmp_path, *words)
    assert (again.returncode, again.stderr.count("reused "), again.stdout) == (3, 2, ended.stdout)
    assert [len(record["attempts"]) for record in ledger(tmp_path)] == [1, 2, 1]
    basic = multirun(tmp_path, *words, "hydra/launcher=basic")
    assert (basic.returncode, basic.stderr.count("reused "), basic.stdout) == (3, 2, ended.stdout)


def test_both_ranks_of_a_job_have_its_settings_and_one_folder(folder, tmp_path, request):
    rates = [round(1e-3 * n, 4) for n in range(1, 11 if request.config.getoption("--storm") else 3)]
    words = [f"outputs={tmp_path}", "trainer.devices=2", "hydra.launcher.jobs=2"]
    words += [f"optimizer.learning_rate={','.join(map(str, rates))}"]
    ended = multirun(folder, *TINY, *words, "hydra.sweeper.sampler=grid", f"hydra.sweeper.trials={len(rates)}")
    assert ended.returncode == 0, ended.stderr
    made = [json.loads(path.read_text()) for path in tmp_path.glob("pretrain/*/run.json")]
    assert sorted(r["identity"]["settings"]["optimizer"]["learning_rate"] for r in made) == rates
    assert {record["status"] for record in made} == {"done"}
    # A rank with other settings would look for a run of another key, and the two would wait for each other for ever.
    assert all(record["launch"] for record in made)
    jobs = [json.loads(path.read_text()) for path in tmp_path.glob("sweeps/*/jobs/*/job.json")]
    assert [len(job["attempts"]) for job in jobs] == [1] * len(rates)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra.launcher.jobs=0", "seed=0,1"], "hydra.launcher.jobs=0 is out of range. Set 1 or more, or null."),
        (["trainer=gpu", "seed=0,1"], "stage=pretrain asks for 1 GPUs, but a job can have 0 here. Set trainer.devices, "
                                      "trainer=cpu, or evaluation.accelerator=auto."),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_one_line_before_the_first_job(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "-m", *words])  # -m may stand anywhere
    monkeypatch.setattr("hydra._internal.utils.run_and_report", None)  # which run_command replaces
    with pytest.raises(ConfigError) as refused:
        run_command(lambda job: None)
    assert str(refused.value) == line
    assert list(tmp_path.iterdir()) == []
