"""stage=shards, and what pretraining makes of its shards, as the command line runs them."""

import json
from pathlib import Path

import pytest

from llm.data.corpus import is_held_out
from llm.data.shards import read_manifest
from llm.run.record import read_metrics
from llm.run.runs import Run
from tests.korean import sentences
from tests.test_stages import TINY, _quick_peak, run, runs, write_text

__all__ = ["_quick_peak"]  # a fixture that every test here takes too


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tokenizer and shards are made; tests add what they make of them."""
    folder = tmp_path_factory.mktemp("made")
    write_text(folder / "text.jsonl")
    shards(folder / "outputs")
    return folder / "outputs"


def shards(outputs: Path, *overrides: str) -> Run:
    settings = [setting for setting in TINY if setting.startswith(("tokenizer.", "data."))]
    text = outputs.with_name("text.jsonl")
    return run("shards", "data=text", f"data.path={text}", f"outputs={outputs}", *settings, *overrides)


def pretrain(outputs: Path, *overrides: str) -> Run:
    text = outputs.with_name("text.jsonl")
    return run("pretrain", "data=text", f"data.path={text}", f"outputs={outputs}", *TINY, *overrides)


def test_the_record_of_shards_is_their_manifest(outputs: Path) -> None:
    made = shards(outputs)
    manifest = read_manifest(made.path / "shards")
    assert made.results == json.loads((made.path / "run.json").read_text(encoding="utf-8"))["results"]
    assert made.results["train"]["documents"] == manifest.train.documents > 300
    left = {"config.yaml", "run.json", "log.txt", "shards", ".lock", ".wandb.json"}
    assert {path.name for path in made.path.iterdir()} == left


def test_workers_and_packing_make_no_other_shards(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = shards(outputs)
    again = shards(outputs, "data.num_workers=2", "data.packing=best_fit")
    assert (again.path, again.digest) == (first.path, first.digest)
    assert "data.num_workers=2 is not applied" in caplog.text


def test_each_packing_is_a_run_of_its_own_that_is_measured_by_the_same_rows(
    outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = {packing: pretrain(outputs, f"data.packing={packing}") for packing in ("concatenate", "best_fit", "padded")}
    assert len({run.key for run in made.values()}) == 3
    assert len(runs(outputs, "shards")) == 1
    before = {run.results["val/loss_before"] for run in made.values()}
    assert len(before) == 1  # of the same weights on the same rows
    assert len({run.results["val/loss"] for run in made.values()}) == 3
    for packing in made:
        assert f"(data.packing={packing})" in caplog.text
    tokens = {packing: read_metrics(run.path / "metrics.jsonl")[-1]["tokens"] for packing, run in made.items()}
    assert tokens["padded"] < tokens["best_fit"] <= 4 * 4 * 64


def test_near_copies_across_the_split_are_counted_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = [" ".join(sentences(12, seed=seed)) for seed in range(200)]
    other = [text.replace("다", "네", 1) for text in long]  # one syllable is another, and so is the side, now and then
    straddling = [a for a, b in zip(long, other, strict=True) if is_held_out(a, 0.1) != is_held_out(b, 0.1)]
    assert straddling
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in [*long, *other]]
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = shards(tmp_path / "outputs")
    leaks = made.record["notes"]["leaks"]
    held_out = made.results["held_out"]["documents"]
    assert leaks["documents"] == held_out and leaks["near_copies"] == len(straddling)
    assert (
        f"{len(straddling)} held-out documents are nearly in the training text: figures on them flatter" in caplog.text
    )
