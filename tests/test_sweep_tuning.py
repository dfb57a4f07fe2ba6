"""Values that trials choose for the jobs of a grid: which trials there are, what they decide, a sweep end to end."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm.config.compose import run_command
from llm.config.sweeping import SweeperConfig, TuningConfig, trial_overrides
from llm.errors import ConfigError
from llm.run.launch import Result
from llm.run.runs import Run
from llm.sweep.jobs import Job
from llm.sweep.tuning import Choices, Trial, arm_of, best_choices, trials_of
from tests.korean import documents
from tests.test_config import config_of
from tests.test_sweep_train import ON_TEXT, TINY, ledger, multirun, records

JOBS = [["tokenizer=a", "seed=1"], ["tokenizer=a", "seed=2"], ["tokenizer=b", "seed=1"]]


def test_every_choice_is_tried_once_for_the_jobs_that_differ_in_their_seed_alone() -> None:
    short = ["seed=9", "trainer.max_steps=3"]
    choices: Choices = {arm_of(job): [["x=1"], ["x=2"]] for job in JOBS}
    assert [trial.overrides for trial in trials_of(choices, dict.fromkeys(choices, short))] == [
        [f"tokenizer={name}", f"x={value}", *short] for name in "ab" for value in (1, 2)
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["trainer.max_steps=10"], "trainer.max_steps=3"),
        (["trainer.max_steps=1"], "trainer.max_steps=1"),
        (["trainer.max_bytes=1000"], "trainer.max_bytes=330"),
        (["trainer.max_flops=1e9"], "trainer.max_flops=330000000.0"),
    ],
)
def test_a_trial_has_its_share_of_the_budget(given: list[str], said: str) -> None:
    assert trial_overrides(config_of(*given), TuningConfig(seed=7), share=0.33) == ["seed=7", said]


def test_what_cannot_be_tuned_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.tuning is of trainings, and stage=documents is none"):
        trial_overrides(config_of("stage=documents"), TuningConfig(), share=0.5)
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.tuning is of a grid, and hydra.sweeper.trials=3 makes this"):
        SweeperConfig(trials=3, tuning=TuningConfig(params={"seed": "1,2"})).check()
    for rungs in ([], [0.5, 0.25], [0.0, 1.0], [0.5, 2.0]):
        with pytest.raises(ConfigError, match=r"^hydra.sweeper.tuning.rungs=.* are no shares that rise to 1 at most"):
            SweeperConfig(tuning=TuningConfig(rungs=rungs)).check()


def ended(objective: float | None) -> Job:
    run = None if objective is None else Run(Path(), {"objective": objective})
    job = Job(number=0, overrides=[], config=SimpleNamespace(), label="", folder=Path("job"))  # type: ignore[arg-type]
    job.run, job.state = run, "done" if run else "failed"
    job.result = None if run else Result("diverged", "val/loss is nan")
    return job


def tried(arm: str, *values: Any) -> list[Trial]:
    return [Trial((f"tokenizer={arm}",), [f"x={value}"], []) for value in values]


def test_the_better_half_goes_on_and_of_the_last_trials_the_best(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="llm")
    trials = [*tried("a", 1, 2, 3), *tried("b", 1, 2, 3)]
    jobs = [*map(ended, (1.5, 1.25, 1.75, 1.5, None, 1.25))]
    assert best_choices(trials, jobs, is_last=False) == (
        {("tokenizer=a",): [["x=2"], ["x=1"]], ("tokenizer=b",): [["x=3"], ["x=1"]]},
        {},
    )
    assert caplog.messages[0] == "tokenizer=a: x=2 and x=1 did best (x=1: 1.5000, x=2: 1.2500, x=3: 1.7500)"
    best, _ = best_choices(trials, jobs, is_last=True)
    assert best == {("tokenizer=a",): [["x=2"]], ("tokenizer=b",): [["x=3"]]}


def test_where_all_trials_failed_there_is_no_choice_and_why() -> None:
    jobs = [ended(float("nan")), ended(1.5), ended(None)]
    choices, lost = best_choices([*tried("a", 1, 2), *tried("b", 1)], jobs, is_last=True)
    assert (choices, list(lost)) == ({("tokenizer=a",): [["x=2"]]}, [("tokenizer=b",)])
    said = str(lost["tokenizer=b",])
    assert said.startswith("no trial of it came to its end with a finite loss, the first: diverged: val/loss is nan")


SWEEP = """# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params: {tokenizer: "byte_bpe,blog", seed: 1}
    tuning: {rungs: [0.5], params: {optimizer.learning_rate: "1e-3,1e-2"}}
"""


def test_tokenizers_are_tuned_trained_and_ranked_and_nothing_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(documents(100)), encoding="utf-8")
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(SWEEP, encoding="utf-8")
    words = ["--config-dir=conf", *(word for word in TINY if not word.startswith("trainer.max_steps"))]
    words += ["sweep=mine", "trainer.max_bytes=6000", "trainer.validate_every_steps=2"]
    said = multirun(tmp_path, *words)
    assert said.returncode == 0, said.stderr
    made = [(record["name"], record["identity"]["settings"], record["results"]) for record in records(tmp_path)]
    assert len(made) == 2 * (2 + 1)  # rates, and a seed
    for name in {name for name, *_ in made}:
        trials = [(results, its) for other, its, results in made if other == name and its["seed"] == 1000]
        [(full, rate)] = [
            (its["trainer"]["max_steps"], its["optimizer"]["learning_rate"])
            for other, its, _ in made
            if other == name and its["seed"] == 1
        ]
        assert {its["optimizer"]["learning_rate"] for _, its in trials} == {1e-3, 1e-2}
        assert [its["trainer"]["max_steps"] for _, its in trials] == pytest.approx([full / 2] * 2, abs=1)
        best = min(trials, key=lambda trial: float(trial[0]["val/bits_per_byte"]))
        assert rate == best[1]["optimizer"]["learning_rate"]
    [sweep] = (tmp_path / "outputs" / "sweeps").glob("mine-*")
    assert "At equal bytes of text" in said.stdout and "At equal FLOPs" in said.stdout
    assert "## At equal FLOPs" in (sweep / "compare.md").read_text() and (sweep / "compare.html").is_file()
    rows = list(csv.DictReader((sweep / "compare.csv").read_text().splitlines()))
    assert sorted(row["tokenizer"] for row in rows) == ["blog", "blog", "byte_bpe", "byte_bpe"]  # trials are not in it
    again = multirun(tmp_path, *words)
    assert again.returncode == 0 and again.stdout == said.stdout
    assert [len(job["attempts"]) for job in ledger(tmp_path)] == [1] * 6


def test_a_key_that_is_typed_takes_the_place_of_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(documents(30)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hydra._internal.utils.run_and_report", None)  # which run_command replaces
    shown = []
    words = ["sweep=korean_tokenizers", "tokenizer=byte_bpe", "dry_run=true", *ON_TEXT]
    for typed in ([], ["optimizer.learning_rate=1e-3"]):
        monkeypatch.setattr(sys, "argv", ["train.py", *words, *typed])
        run_command(lambda job: None)
        shown.append(capsys.readouterr().out)
    assert [each.count("seed=1000") for each in shown] == [3, 0]
    assert [each.count("seed=2") for each in shown] == [1, 1]
