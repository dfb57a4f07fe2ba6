"""A setting, a stage and a data preset of one's own: each is one file, and the ordinary command runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.korean import documents

ROOT = Path(__file__).parents[1]
STAGE = """
from dataclasses import dataclass

from llm.config.data import DataConfig
from llm.config.stages import StageConfig, TokenizerStage
from llm.config.tokenizer import TokenizerConfig
from llm.config.fields import HOW, check_settings, setting
from llm.config.stages import stage
from llm.run.files import digest_of, write_text
from llm.run.making import Outcome, Plan
from llm.run.runs import Run
from llm.stage import Stage, step_of
from llm.stage.estimate import Estimate


@stage("toy")
@dataclass(kw_only=True, slots=True)
class ToyStage(StageConfig):
    tokenizer: TokenizerConfig
    data: DataConfig
    times: int = setting(1, at_least=1)
    colour: str = setting("red", HOW)


def parents(config):
    shared = {"outputs": config.outputs, "tokenizer": config.tokenizer, "data": config.data}
    return {"tokenizer": step_of(TokenizerStage(stage="tokenizer", **shared))}


def plan(config, parents):
    def work(run: Run) -> Outcome:
        number = config.times * parents["tokenizer"].results["vocab_size"]
        write_text(run.path / "number.txt", str(number))
        return Outcome(results={"number": number}, digest=digest_of(number), objective=number)

    trained = parents["tokenizer"]
    made_of = {"tokenizer": trained.digest}
    return Plan(config=config, default_name="toy", format_version=1, parents=made_of, work=work)


def estimate(config, parents):
    return Estimate(tokens=config.times, notes=["a toy is cheap"])


STAGE = Stage(parents=parents, plan=plan, estimate=estimate, result_names=lambda config: ["number"])
"""
CHOICE = """# @package _global_
defaults:
  - /schema_toy
  - /tokenizer: byte_bpe
  - /data: mine
  - _self_

stage: toy
"""
COMMAND = """
import runpy, sys
import llm.stage
llm.stage.__path__.append(sys.argv[1])
import llm.stage.toy
sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module with a stage and its settings, the stage's choice, and a data preset with its text."""
    made = tmp_path_factory.mktemp("toy")
    for group in ("stage", "data"):
        (made / "conf" / group).mkdir(parents=True)
    (made / "toy.py").write_text(STAGE, encoding="utf-8")
    (made / "conf" / "stage" / "toy.yaml").write_text(CHOICE, encoding="utf-8")
    preset = f"name: mine\nkind: text\npath: {made}/text.jsonl\nheld_out_share: 0.1\n"
    (made / "conf" / "data" / "mine.yaml").write_text(preset, encoding="utf-8")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents(60)]
    (made / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return made


def train(folder: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    given = ["stage=toy", "tokenizer.vocab_size=300", f"outputs={folder}/outputs", *overrides]
    return subprocess.run(
        [sys.executable, "-c", COMMAND, str(folder), "--config-dir", str(folder / "conf"), *given],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def runs(folder: Path) -> list[dict[str, object]]:
    """What each run of the stage says of itself, the earliest first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("outputs/toy/*/run.json")]
    return sorted(found, key=lambda record: str(record["results"]))


def test_a_new_stage_is_looked_at_made_with_what_it_is_made_from_and_found_again(folder: Path) -> None:
    looked = train(folder, "times=2", "dry_run=true")
    assert looked.returncode == 0, looked.stderr
    assert "tokenizer, toy" in looked.stdout and "a toy is cheap" in looked.stdout
    assert not (folder / "outputs").exists()

    made = train(folder, "times=2")
    assert made.returncode == 0, made.stderr
    assert [run["results"] for run in runs(folder)] == [{"number": 600}]
    assert len(list(folder.glob("outputs/tokenizer/byte_bpe-300-mine-*"))) == 1

    again = train(folder, "times=2", "colour=blue")  # which is about how
    assert "reused" in again.stderr and "colour=blue is not applied (it was red)" in again.stderr

    other = train(folder, "times=3")
    assert "a new run, for it differs from the nearest of that name in times=3 (was 2)" in other.stderr
    assert [run["results"] for run in runs(folder)] == [{"number": 600}, {"number": 900}]


def test_a_new_setting_is_checked_before_any_work(folder: Path) -> None:
    refused = train(folder, "times=0")
    assert refused.returncode == 2 and "error: times=0 is out of range. Set 1 or more." in refused.stderr
