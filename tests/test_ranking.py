"""Budgets, and the ranking of runs over tokenizers: equal bytes for each, seeds averaged, lossy ones marked."""

import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_config import config_of

from llm.compare.command import main
from llm.compare.entries import Entry
from llm.compare.ranking import estimate, rank
from llm.compare.show import print_ranked, print_ranking
from llm.config.stages import PretrainStage
from llm.errors import ConfigError
from llm.run.runs import Run
from llm.stage.pretrain import steps_within_budget
from tests.korean import documents, save_preset
from tests.test_stages import run
from tests.tuned import quick_peak

__all__ = ["quick_peak"]

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
    *("tokenizer.vocab_size=400", "model.num_layers=1", "model.num_heads=2", "model.hidden_size=16", "data=text"),
    *("data.held_out_share=0.1", "data.sequence_length=64", "data.batch_size=4", "trainer.max_bytes=6000"),
    *("trainer.log_every_steps=1", "trainer.sample_prompts=[]", "logger=local"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two seeds of a model under each of two tokenizers."""
    folder = tmp_path_factory.mktemp("ranking")
    (folder / "text.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    given = [*TINY, f"data.path={folder / 'text.txt'}", f"outputs={folder / 'outputs'}"]
    return [run("pretrain", *given, f"tokenizer={n}", f"seed={seed}") for n in ("byte_bpe", "blog") for seed in (0, 1)]


def test_tokenizers_are_ranked_with_their_seeds_averaged_and_what_they_did_to_the_text(
    made: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain/*", "--outputs", str(made[0].path.parents[1])])
    lines = [line for line in capsys.readouterr().out.split("└")[0].splitlines() if line[:1] in "│┃"]
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    found = {key: values for key, *values in cells}
    values = {
        name: [run.results["val/bits_per_byte"] for run in made if run.config["tokenizer"]["name"] == name]
        for name in ("byte_bpe", "blog")
    }
    ranked = sorted(values, key=lambda name: statistics.fmean(values[name]))
    assert found["tokenizer.name"] == ranked
    assert found["seeds"] == ["2", "2"]
    assert found["val/bits_per_byte"] == [str(estimate(values[name])) for name in ranked]
    lost = dict(zip(ranked, found["lost_bytes_share"], strict=True))
    assert lost["byte_bpe"] == "0" and float(lost["blog"].split()[0]) > 0
    # what was asked for, to half a step
    assert [float(each.split()[0]) for each in found["megabytes_of_text"]] == pytest.approx([0.006] * 2, abs=0.0006)


def test_every_run_of_a_budget_is_fed_the_same_bytes(made: list[Run]) -> None:
    for of in made:
        train = of.parent("shards").results["train"]
        step = 4 * 64 * train["raw_bytes"] / train["tokens"]
        assert of.config["trainer"]["max_steps"] == round(6000 / step)
        assert abs(of.config["trainer"]["max_steps"] * step - 6000) <= step / 2
    assert len({of.config["trainer"]["max_steps"] for of in made}) == 2


def test_rows_of_so_many_bytes_hold_the_same_text_under_every_tokenizer(made: list[Run]) -> None:
    words = [word for word in TINY if not word.startswith("data.sequence_length")]
    words += [f"data.path={made[0].path.parents[2] / 'text.txt'}", f"outputs={made[0].path.parents[1]}"]
    for name in ("byte_bpe", "blog"):
        found = run("pretrain", *words, f"tokenizer={name}", "data.sequence_bytes=200")
        train, length = found.parent("shards").results["train"], found.config["data"]["sequence_length"]
        assert length % 8 == 0 and abs(200 * train["tokens"] / train["raw_bytes"] - length) <= 4
        typed = run("pretrain", *words, f"tokenizer={name}", f"data.sequence_length={length}", "reuse=require")
        assert typed.path == found.path  # what is computed is what the key has


def test_one_seed_is_said_to_decide_little(made: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    print_ranked([Entry(run) for run in made if run.config["seed"] == 0])
    assert "One seed each: a small difference can be chance. Sweep seed=0,1,2, too." in capsys.readouterr().out


def test_a_command_to_copy_is_one_line_in_a_narrow_terminal(made: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    for each in made:
        monkeypatch.setitem(each.record, "command", f"train.py tokenizer=blog data.path={'far/' * 10}text.txt")
    console = Console(width=40, force_terminal=True, file=io.StringIO(), highlight=False)
    ranking = rank([Entry(run) for run in made])
    print_ranking(ranking, console)
    command = ranking.choices[0].best.command
    assert command.startswith("python train.py tokenizer=blog") and command in console.file.getvalue()  # type: ignore[attr-defined]
