"""The stages one after the other, online: each is a run in W&B with its numbers, linked by artifacts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import wandb

from llm.logger.view import numbers
from llm.run.runs import Run
from tests.korean import documents
from tests.test_stages import run
from tests.tuned import quick_peak
from tests.wandb_attempts import use_server
from tests.wandb_server import WandbServer

__all__ = ["quick_peak"]

TOKENIZER = ["tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400"]
TINY = [
    *("data.sequence_length=64", "data.batch_size=4", "model.num_layers=1", "model.num_heads=2"),
    *("model.hidden_size=16", "trainer.max_steps=4", "trainer.log_every_steps=1", "trainer.sample_tokens=2"),
]
EVALUATION = ["evaluation.num_items=5", "evaluation.num_prompts=2", "evaluation.max_new_tokens=4"]


@dataclass
class Chain:
    """The runs that were made, by their stage, and where W&B has them."""

    server: WandbServer
    runs: dict[str, Run]
    text: list[str]  # the settings of the data
    outputs: str

    def artifact(self, stage: str) -> dict[str, Any]:
        name = run_id(self.runs[stage]).replace("+", "_")
        [found] = [each for each in self.server.artifacts.values() if each["artifactCollectionName"] == name]
        return found


def run_id(run: Run) -> str:
    return f"{run.stage}-{run.path.name}"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("chain")
    (folder / "text.txt").write_text("\n\n".join(documents(150)), encoding="utf-8")
    text = ["data=text", f"data.path={folder / 'text.txt'}", "data.held_out_share=0.2"]
    outputs = f"outputs={folder / 'outputs'}"
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        use_server(server, folder, patch)
        runs = {stage: run(stage, outputs, *text, *TOKENIZER) for stage in ("tokenizer", "shards")}
        runs["pretrain"] = run("pretrain", outputs, *text, *TOKENIZER, *TINY, "name=base")
        runs["evaluate"] = run("evaluate", outputs, "run=base", *EVALUATION)
        yield Chain(server, runs | {"documents": runs["shards"].parent("documents")}, text, outputs)
        wandb.teardown()


def test_each_stage_is_a_run_whose_artifact_the_next_one_uses(chain: Chain) -> None:
    server, made = chain.server, [run_id(run) for stage, run in chain.runs.items() if stage != "documents"]
    tokenizer, shards, base, evaluation = made
    assert [server.runs[each]["jobType"] for each in made] == ["tokenizer", "shards", "pretrain", "evaluate"]
    assert {each: server.exit_code(each) for each in server.runs} == dict.fromkeys(made, 0)
    assert chain.artifact("documents")["used_by"] == [tokenizer, shards]
    assert chain.artifact("tokenizer")["used_by"] == [shards, base]
    assert chain.artifact("shards")["used_by"] == [base, evaluation]
    assert chain.artifact("pretrain")["used_by"] == [evaluation]
    uploaded = [path for path in server.uploaded if path.startswith("/artifact/")]
    assert all(path.endswith(".table.json") for path in uploaded)  # W&B's tables; nothing of what was made
    manifests = [json.loads(body) for path, body in server.uploaded.items() if path.startswith("/manifest/")]
    references = {entry.get("ref") for manifest in manifests for entry in manifest["contents"].values()}
    assert (chain.runs["pretrain"].path / "model" / "model.safetensors").as_uri() in references
    assert not server.unknown


@pytest.mark.parametrize(
    ("stage", "known"),
    [
        ("tokenizer", {"vocab_size": 400, "exact_round_trip": 1.0}),
        ("shards", {"held_out/lost_bytes": 0, "vocab_size": 400}),
        ("evaluate", {}),
    ],
)
def test_what_a_stage_measured_is_its_summary_a_table_and_beside_its_artifact(
    stage: str, known: dict[str, float], chain: Chain
) -> None:
    run, uploaded = chain.runs[stage], chain.server.uploaded
    measured = numbers(run.results)
    assert known.items() <= measured.items()
    assert measured.items() <= chain.server.summary(run_id(run)).items()
    tables = [json.loads(body)["data"] for path, body in uploaded.items() if "/media/table/results_" in path]
    assert [[key, value] for key, value in measured.items()] in tables
    assert measured.items() <= json.loads(chain.artifact(stage)["metadata"]).items()


def test_a_models_summary_has_what_its_tokenizer_does_to_text(chain: Chain) -> None:
    summary, measured = chain.server.summary(run_id(chain.runs["pretrain"])), chain.runs["tokenizer"].results
    for name in ("vocab_size", "bytes_per_token", "tokens_per_eojeol", "exact_round_trip"):
        assert summary[f"tokenizer/{name}"] == measured[name]


def test_what_is_made_on_the_way_of_a_model_is_no_run_of_its_own_but_its_artifacts(chain: Chain) -> None:
    before = {*chain.server.runs}
    run("pretrain", chain.outputs, *chain.text, *TOKENIZER, *TINY, "name=other", "tokenizer.vocab_size=420")
    [new] = {*chain.server.runs} - before
    assert chain.server.runs[new]["jobType"] == "pretrain"
    used = [each for each in chain.server.artifacts.values() if each["used_by"] == [new]]
    assert sorted(each["artifactTypeName"] for each in used) == ["shards", "tokenizer"]
    [tokenizer] = [each for each in used if each["artifactTypeName"] == "tokenizer"]
    assert json.loads(tokenizer["metadata"])["vocab_size"] == 420


def test_numbers_are_flat_and_leave_out_what_is_no_number() -> None:
    results = {"a": 1, "b": None, "c": "가", "d": True, "e": {"f": 0.5, "g": [1]}, "lost_characters": {"가": 2}}
    assert numbers(results) == {"a": 1, "e/f": 0.5}
