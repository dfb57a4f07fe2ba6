"""Budgets, and the ranking of a sweep over tokenizers: equal bytes for each, seeds averaged, lossy ones marked."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_config import config_of

from llm.compare.command import main
from llm.compare.entries import Entry
from llm.compare.ranking import estimate
from llm.compare.show import print_ranked
from llm.config.stages import PretrainStage
from llm.errors import ConfigError
from llm.run.record import write_record
from llm.run.runs import Run, load
from llm.stage.pretrain import steps_within_budget
from tests.korean import documents, save_preset

ROOT = Path(__file__).parents[1]
SHARDS = {"vocab_size": 1000, "train": {"raw_bytes": 5_000_000, "tokens": 1_000_000}}


def config(*overrides: str) -> PretrainStage:
    made: PretrainStage = config_of("data.batch_size=4", "data.sequence_length=256", *overrides)
    return made


def shards(folder: Path = Path("nowhere"), **changes: Any) -> Run:
    record = {"stage": "shards", "results": SHARDS | changes, "folders": {"tokenizer": str(folder)}}
    return Run(folder, record)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("trainer.max_steps=7", 7),
        ("trainer.max_bytes=5120000", 1000),  # a step has 4 x 256 tokens of 5 bytes
        ("trainer.max_bytes=7700", 2),  # 1.504 steps
        ("trainer.max_tokens=10240", 10),
    ],
)
def test_a_budget_in_steps_is_worked_out_by_hand(budget: str, steps: int) -> None:
    assert steps_within_budget(config(budget), shards()) == steps


def test_a_budget_in_flops_pays_for_the_model_that_is_trained(tmp_path: Path) -> None:
    save_preset("byte_bpe", tmp_path, vocab_size=300)
    (tmp_path / "run.json").write_text(
        json.dumps({"stage": "tokenizer", "name": "x", "key": "0", "status": "done"}), encoding="utf-8"
    )
    shape = ["model=gpt2_tiny", "model.num_layers=2", "model.hidden_size=16", "model.num_heads=2"]
    # A block of GPT-2 with hidden size h: 12 h^2 weights, 13 h biases and norms; then 2 h, and V x h embeddings.
    weights = 2 * (12 * 16**2 + 13 * 16) + 2 * 16 + 1000 * 16
    step = 4 * 256 * (6 * weights + 12 * 2 * 16 * 256)
    assert steps_within_budget(config(*shape, f"trainer.max_flops={3 * step}"), shards(tmp_path)) == 3


def test_a_budget_that_pays_for_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"trainer.max_bytes=100 does not pay for a step, which takes 5120. Raise it,"
    ):
        steps_within_budget(config("trainer.max_bytes=100"), shards())


TINY = [
    "tokenizer=byte_bpe,blog",
    "tokenizer.vocab_size=400",
    "seed=0,1",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.hidden_size=16",
    "data=text",
    "data.held_out_share=0.1",
    "data.sequence_length=64",
    "data.batch_size=4",
    "trainer.max_bytes=6000",
    "trainer.log_every_steps=1",
    "trainer.sample_tokens=4",
    "logger=local",
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """(the outputs, the command of the sweep, what it printed)."""
    folder = tmp_path_factory.mktemp("ranking")
    (folder / "text.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    given = ["-m", *TINY, f"data.path={folder / 'text.txt'}", f"outputs={folder / 'outputs'}"]
    return folder / "outputs", given, sweep(given).stdout


def sweep(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def rows(printed: str) -> dict[str, list[str]]:
    """The printed ranking: key -> its value in each choice, the best first; how long it took aside."""
    lines = [line for line in printed.split("└")[0].splitlines() if line[:1] in "│┃"]
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    return {key: values for key, *values in cells if "second" not in key}


def runs(outputs: Path) -> list[Run]:
    return [load(path.parent) for path in sorted(outputs.glob("pretrain/*/run.json"))]


def test_a_sweep_ends_in_one_ranked_table_with_its_seeds_averaged(swept: tuple[Path, list[str], str]) -> None:
    outputs, _, printed = swept
    made = runs(outputs)
    assert len(made) == 4
    values = {
        name: [run.results["val/bits_per_byte"] for run in made if run.config["tokenizer"]["name"] == name]
        for name in ("byte_bpe", "blog")
    }
    ranked = sorted(values, key=lambda name: statistics.fmean(values[name]))
    found = rows(printed)
    assert found["tokenizer"] == ranked
    assert found["seeds"] == ["2", "2"]
    assert found["val/bits_per_byte"] == [str(estimate(values[name])) for name in ranked]
    lost = dict(zip(ranked, found["lost_bytes_share"], strict=True))
    assert lost["byte_bpe"] == "0" and float(lost["blog"].split()[0]) > 0
    # what was asked for, to half a step
    assert [float(each.split()[0]) for each in found["megabytes_of_text"]] == pytest.approx([0.006] * 2, abs=0.0006)


def test_every_job_is_fed_the_same_bytes(swept: tuple[Path, list[str], str]) -> None:
    for run in runs(swept[0]):
        train = run.parent("shards").results["train"]
        step = 4 * 64 * train["raw_bytes"] / train["tokens"]
        assert run.config["trainer"]["max_steps"] == round(6000 / step)
        assert abs(run.config["trainer"]["max_steps"] * step - 6000) <= step / 2
    assert len({run.config["trainer"]["max_steps"] for run in runs(swept[0])}) == 2


def test_a_sweep_started_again_does_what_is_left_and_ranks_all(swept: tuple[Path, list[str], str]) -> None:
    outputs, given, printed = swept
    lost = runs(outputs)[0].path
    record = json.loads((lost / "run.json").read_text(encoding="utf-8"))
    write_record(lost, record | {"status": "running"})
    again = sweep(given)
    assert rows(again.stdout) == rows(printed)
    consoles = "".join(path.read_text() for path in outputs.glob("sweeps/*/jobs/*/console.log"))
    assert consoles.count("pretrain goes on in") == 1
    assert again.stderr.count("reused " + str(outputs / "pretrain")) == 3


def test_the_tool_prints_the_same_ranking(
    swept: tuple[Path, list[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain/*", "--outputs", str(swept[0])])
    ours, printed = rows(capsys.readouterr().out), rows(swept[2])
    assert ours.pop("tokenizer.name") == printed.pop("tokenizer")  # of runs it is not known what was typed
    assert ours.pop("trainer.max_steps")  # nor that the budget decided this
    assert ours == printed


def test_one_seed_is_said_to_decide_little(
    swept: tuple[Path, list[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    print_ranked([Entry(run) for run in runs(swept[0]) if run.config["seed"] == 0])
    assert "One seed each: a small difference can be chance. Sweep seed=0,1,2, too." in capsys.readouterr().out
