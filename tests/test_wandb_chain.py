"""From text to an evaluated adapter in W&B: train.py's own stages, online against a server on loopback."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from korean import documents

from llm.logger.view import numbers
from llm.run.runs import Run, load
from tests.patience import PATIENCE
from tests.wandb_attempts import environment
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[1]
TEXT = ["data=text", "data.path=text.txt", "data.held_out_share=0.2"]
TOKENIZER = ["tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400"]
TINY = [
    *("data.sequence_length=64", "data.batch_size=4", "model.num_layers=1", "model.num_heads=2"),
    *("model.hidden_size=16", "trainer.max_steps=4", "trainer.log_every_steps=1", "trainer.sample_tokens=2"),
]
EVALUATION = ["evaluation.num_items=5", "evaluation.num_prompts=2", "evaluation.max_new_tokens=4"]
COMMANDS = [
    ["stage=tokenizer", *TEXT, *TOKENIZER],
    ["stage=shards", *TEXT, *TOKENIZER],
    [*TEXT, *TOKENIZER, *TINY, "name=base"],
    ["stage=evaluate", "run=base", *EVALUATION],
]


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(server: WandbServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands were typed, one after the other."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "text.txt").write_text("\n\n".join(documents(150)), encoding="utf-8")
    own = environment(server, folder) | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for words in COMMANDS:
        command = [sys.executable, str(ROOT / "train.py"), *words]
        done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
    return folder


def made(folder: Path, stage: str) -> Run:
    [path] = folder.glob(f"outputs/{stage}/*")
    return load(path)


def run_id(run: Run) -> str:
    return f"{run.stage}-{run.path.name}"


def tables(server: WandbServer) -> list[list[list[Any]]]:
    """The rows of each table of results."""
    return [json.loads(body)["data"] for path, body in server.uploaded.items() if "/media/table/results_" in path]


def artifact(server: WandbServer, run: Run) -> dict[str, Any]:
    [found] = [
        each for each in server.artifacts.values() if each["artifactCollectionName"] == run_id(run).replace("+", "_")
    ]
    return found


def test_each_stage_is_a_run_whose_artifact_the_next_one_uses(server: WandbServer, folder: Path) -> None:
    tokenizer, shards, base, evaluation = (
        made(folder, stage) for stage in ("tokenizer", "shards", "pretrain", "evaluate")
    )
    assert {server.runs[run_id(run)]["jobType"] for run in (tokenizer, shards, base, evaluation)} == {
        *("tokenizer", "shards", "pretrain", "evaluate")
    }
    assert artifact(server, made(folder, "documents"))["used_by"] == [run_id(tokenizer), run_id(shards)]
    assert artifact(server, tokenizer)["used_by"] == [run_id(shards), run_id(base)]
    assert artifact(server, shards)["used_by"] == [run_id(base), run_id(evaluation)]
    assert artifact(server, base)["used_by"] == [run_id(evaluation)]
    kinds = {each["artifactCollectionName"]: each["artifactTypeName"] for each in server.artifacts.values()}
    of_runs = [kind for kind in kinds.values() if kind != "run_table"]
    assert of_runs == ["documents", "tokenizer", "shards", "pretrain", "evaluate"]
    uploaded = [path for path in server.uploaded if path.startswith("/artifact/")]
    assert all(path.endswith(".table.json") for path in uploaded)  # W&B's tables; nothing of what was made
    assert {server.exit_code(each) for each in server.runs} == {0}
    assert not server.unknown


@pytest.mark.parametrize(
    ("stage", "known"),
    [
        ("tokenizer", {"vocab_size": 400, "exact_round_trip": 1.0}),
        ("shards", {"held_out/lost_bytes": 0, "vocab_size": 400}),
    ],
)
def test_what_a_stage_measured_is_its_summary_a_table_and_beside_its_artifact(
    stage: str, known: dict[str, float], server: WandbServer, folder: Path
) -> None:
    run = made(folder, stage)
    measured = numbers(run.results)
    assert known.items() <= measured.items()
    assert measured.items() <= server.summary(run_id(run)).items()
    assert [[key, value] for key, value in measured.items()] in tables(server)
    assert measured.items() <= json.loads(artifact(server, run)["metadata"]).items()


def test_a_models_summary_has_what_its_tokenizer_does_to_text(server: WandbServer, folder: Path) -> None:
    summary, measured = server.summary(run_id(made(folder, "pretrain"))), made(folder, "tokenizer").results
    for name in ("vocab_size", "bytes_per_token", "tokens_per_eojeol", "exact_round_trip"):
        assert summary[f"tokenizer/{name}"] == measured[name]


def test_the_numbers_of_an_evaluation_are_its_summary_and_a_table(server: WandbServer, folder: Path) -> None:
    run = made(folder, "evaluate")
    results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
    summary = server.summary(run_id(run))
    assert summary["val/bits_per_byte"] == results["val/bits_per_byte"]
    assert summary["probe/word_order"] == results["probe/word_order"]
    assert summary["writing/tokens_mean"] == results["writing/tokens_mean"]
    assert run.results.items() <= summary.items()
    assert [[name, value] for name, value in run.results.items()] in tables(server)


def test_what_is_made_on_the_way_of_a_model_is_no_run_of_its_own_but_its_artifacts(
    server: WandbServer, folder: Path
) -> None:
    runs, own = {*server.runs}, environment(server, folder) | {"OMP_NUM_THREADS": "1"}
    words = [*TEXT, *TOKENIZER, *TINY, "name=other", "tokenizer.vocab_size=420"]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [new] = {*server.runs} - runs
    assert server.runs[new]["jobType"] == "pretrain"
    used = [each for each in server.artifacts.values() if each["used_by"] == [new]]
    assert sorted(each["artifactTypeName"] for each in used) == ["shards", "tokenizer"]
    [tokenizer] = [each for each in used if each["artifactTypeName"] == "tokenizer"]
    assert json.loads(tokenizer["metadata"])["vocab_size"] == 420


def test_numbers_are_flat_and_leave_out_what_is_no_number() -> None:
    results = {"a": 1, "b": None, "c": "가", "d": True, "e": {"f": 0.5, "g": [1]}, "lost_characters": {"가": 2}}
    assert numbers(results) == {"a": 1, "e/f": 0.5}
