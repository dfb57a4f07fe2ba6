"""A search: its space is checked first, it goes on after any kill with the same trials, and stops what does badly."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import SuccessiveHalvingPruner
from sweeps import SCRIPT, find_stand_in

from llm.config.compose import run_command
from llm.config.stages import StageConfig
from llm.config.sweeping import Direction, HalvingConfig, PoolConfig, Sampler, SweeperConfig
from llm.errors import ConfigError, LaunchError
from llm.sweep import pool
from llm.sweep.driver import Driver
from llm.sweep.search import Search, check_objectives, check_space, is_promoted
from llm.sweep.shares import Shares
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
X = {"x": FloatDistribution(0.0, 1.0)}
N = {"n": CategoricalDistribution("123")}
LOSS = SweeperConfig(trials=4, sampler=Sampler.random, objectives=["val/loss"])
GRID = replace(LOSS, sampler=Sampler.grid, trials=99)
NINE = {"n": CategoricalDistribution("123456789")}
HALVING = replace(GRID, halving=HalvingConfig(first_step=1, factor=4))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "TRAIN", pool.TRAIN)
    monkeypatch.setattr("llm.sweep.driver.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("llm.sweep.driver.FOLLOW_SECONDS", 0.05)


def config_of(outputs: Path, overrides: list[str]) -> StageConfig:
    point = dict(word.split("=") for word in overrides)
    return StageConfig(stage="pretrain", outputs=str(outputs), name=f"{point.get('x')}-{point.get('n', 0)}")


def made_search(outputs: Path, settings: SweeperConfig, *, space=X | N, compose=None, cores=2) -> tuple[Search, Driver]:
    (outputs / "train.py").write_text(SCRIPT.format(outputs=str(outputs)), encoding="utf-8")
    pool.TRAIN = outputs / "train.py"
    compose = compose or (lambda overrides, number: config_of(outputs, overrides))
    made = Search(settings, space=space, fixed=[], compose=compose, folder=outputs / "sweeps" / "search")
    launcher = PoolConfig()
    shares = Shares(launcher, num_jobs=8, gpus=[], cores=cores, memory=10**12)
    return made, Driver(made, pool.Pool(launcher, shares), launcher.retries, find_stand_in)


def search(outputs: Path, settings: SweeperConfig, **given) -> optuna.Study:
    made, driver = made_search(outputs, settings, **given)
    driver.run()
    return made.study()


def states(study: optuna.Study) -> dict[str, str]:
    return {trial.params["n"]: trial.state.name for trial in study.trials}


def starts(outputs: Path) -> dict[str, int]:
    """How often each point's process has started."""
    files = {path.parent.name.split("-")[1]: path for path in outputs.glob("pretrain/*/starts.txt")}
    return {n: len(path.read_text().splitlines()) for n, path in files.items()}


def attempts(outputs: Path) -> list[list[str]]:
    """How each attempt at each job has ended."""
    records = [json.loads(path.read_text()) for path in sorted(outputs.glob("sweeps/search/jobs/*/job.json"))]
    return [[attempt["kind"] for attempt in record["attempts"]] for record in records]


def test_a_grid_tries_every_combination_once_and_again_tries_nothing(tmp_path):
    space = {"x": CategoricalDistribution(("0.5", "0.25"))} | N
    made, driver = made_search(tmp_path, GRID, space=space)
    assert (made.to_come(), made.best()) == (6, None)
    driver.run()
    tried = {(trial.params["x"], trial.params["n"]): trial.value for trial in made.study().trials}
    assert tried == {(x, n): float(x) + int(n) for x in ("0.5", "0.25") for n in "123"}
    assert (made.to_come(), made.best()) == (0, "val/loss 1.2500: x=0.25 n=1")
    assert len(search(tmp_path, GRID, space=space).trials) == 6
    assert attempts(tmp_path) == [["done"]] * 6


def test_more_trials_go_on_where_fewer_ended(tmp_path):
    first = search(tmp_path, replace(LOSS, trials=2)).trials
    more = search(tmp_path, LOSS).trials
    assert [trial.params for trial in more[:2]] == [trial.params for trial in first]
    assert len({trial.params["x"] for trial in more}) == 4  # the draws do not begin anew


def test_two_objectives_end_in_the_trials_that_none_beats(tmp_path):
    directions = [Direction.minimize, Direction.maximize]
    settings = replace(LOSS, objectives=["val/loss", "tokens"], directions=directions)
    made, driver = made_search(tmp_path, settings)
    driver.run()
    values = [trial.values for trial in made.study().trials]
    unbeaten = {
        number
        for number, (loss, tokens) in enumerate(values)
        if not any(a <= loss and b >= tokens and (a, b) != (loss, tokens) for a, b in values)
    }
    assert {trial.number for trial in made.best_trials()} == unbeaten
    said = json.loads((tmp_path / "sweeps" / "search" / "search.json").read_text())  # by which a comparison ranks
    assert said == {"objectives": ["val/loss", "tokens"], "directions": ["minimize", "maximize"]}


def steps_of(outputs: Path) -> dict[str, list[int]]:
    """Point -> the steps in its run's metrics.jsonl, in their order."""
    files = {path.parent.name.split("-")[1]: path for path in outputs.glob("pretrain/*/metrics.jsonl")}
    return {n: [json.loads(line)["step"] for line in path.read_text().splitlines()] for n, path in files.items()}


@pytest.mark.parametrize(("order", "whole"), [("123456789", "1"), ("594172836", "541")])
def test_what_does_badly_at_a_rung_is_stopped_and_stays_so(tmp_path, monkeypatch, order, whole):
    monkeypatch.setenv("CURVE", "1")
    monkeypatch.setattr("llm.sweep.search.points_of_grid", lambda space: [{"n": n} for n in order])
    found = states(search(tmp_path, HALVING, space=NINE, cores=1))
    assert found == {n: "COMPLETE" if n in whole else "PRUNED" for n in order}  # each the best of those before it
    taken = steps_of(tmp_path)
    assert all(steps == list(range(1, len(steps) + 1)) for steps in taken.values())  # none twice, none left out
    assert all(len(taken[n]) == 9 if n in whole else len(taken[n]) < 5 for n in taken)
    assert states(search(tmp_path, HALVING, space=NINE, cores=1)) == found
    assert set(starts(tmp_path).values()) == {1}


@pytest.mark.parametrize("direction", Direction)
def test_the_rule_of_halving_is_that_of_optunas_pruner(direction):
    draw, at_rung = random.Random(5), []
    study = optuna.create_study(direction=direction.value, pruner=SuccessiveHalvingPruner(1, reduction_factor=3))
    for _ in range(40):
        trial, value = study.ask(), draw.choice([0.1, 0.2, 0.3, draw.random()])
        trial.report(value, 1)
        assert is_promoted(value, at_rung, 3, direction) is not trial.should_prune()
        at_rung.append(value)


def test_what_failed_is_tried_again_at_a_later_start(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "2")
    assert states(search(tmp_path, GRID, space=N)) == {"1": "COMPLETE", "2": "FAIL", "3": "COMPLETE"}
    monkeypatch.delenv("FAIL")
    assert states(search(tmp_path, GRID, space=N)) == dict.fromkeys("123", "COMPLETE")
    assert starts(tmp_path) == {"1": 1, "2": 2, "3": 1}


def test_results_and_values_that_cannot_be_fail_their_trials_and_no_other(tmp_path, monkeypatch, caplog):
    def compose(overrides: list[str], number: int) -> StageConfig:
        if "n=4" in overrides:
            raise ConfigError("n=4 does not go with x")
        return config_of(tmp_path, overrides)

    monkeypatch.setenv("RESULTS", '{"2": {"val/loss": NaN}, "3": {"tokens": 1}}')
    space = {"n": CategoricalDistribution("12345")}
    found = search(tmp_path, GRID, space=space, compose=compose)
    assert states(found) == dict(zip("12345", ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"], strict=True))
    run, key = tmp_path / "pretrain" / "None", "hydra.sweeper.objectives=val/loss"
    assert f"trial 1: n=2: {key} of {run}-2 is nan. It has val/loss." in caplog.text
    assert f"trial 2: n=3: {key} of {run}-3 is None. It has tokens." in caplog.text
    assert "trial 3: n=4: n=4 does not go with x" in caplog.text
    assert attempts(tmp_path) == [["done"], ["done"], ["done"], ["config"], ["done"]]  # none was killed


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_sweep_search import HALVING, LOSS, N, NINE, X, replace, search
from llm.sweep import driver
if __name__ == "__main__":
    driver.LOOK_SECONDS = driver.FOLLOW_SECONDS = 0.05
    search(Path({folder!r}), {settings}, space={space})
"""


def driver_program(tmp_path: Path, settings: str, space: str) -> Path:
    program = tmp_path / "driver.py"
    names = {"root": str(ROOT), "tests": str(ROOT / "tests"), "folder": str(tmp_path)}
    program.write_text(PROGRAM.format(**names, settings=settings, space=space))
    return program


def test_two_drivers_share_a_search_and_begin_no_more_points_than_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MEET", "3")
    program = driver_program(tmp_path, "replace(LOSS, trials=7)", "X | N")
    command = [sys.executable, str(program)]
    drivers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [driver.communicate(timeout=PATIENCE)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    study = made_search(tmp_path, LOSS)[0].study()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 7
    assert attempts(tmp_path) == [["done"]] * 7
    records = [json.loads(path.read_text()) for path in tmp_path.glob("sweeps/search/jobs/*/job.json")]
    assert len({record["attempts"][0]["driver"] for record in records}) == 2


def test_a_search_that_is_killed_again_and_again_takes_each_step_once(tmp_path, request, monkeypatch):
    monkeypatch.setenv("CURVE", "1")
    program = driver_program(tmp_path, "HALVING", "NINE")
    for number in range(20 if request.config.getoption("--storm") else 2):
        driver = subprocess.Popen([sys.executable, str(program)], stderr=subprocess.DEVNULL)
        time.sleep(2.5 + 0.37 * (number % 7))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = states(made_search(tmp_path, HALVING, space=NINE)[0].study())
    assert len(found) == 9 and found["1"] == "COMPLETE"
    assert set(found.values()) == {"COMPLETE", "PRUNED"}
    assert all(steps == list(range(1, len(steps) + 1)) for steps in steps_of(tmp_path).values())
    assert all("done" not in kinds[:-1] for kinds in attempts(tmp_path))  # nothing is begun after the end


def training(*parts: str) -> SimpleNamespace:
    return SimpleNamespace(
        stage="pretrain",
        trainer=None,
        model=SimpleNamespace(trainable=None),
        data=SimpleNamespace(parts=dict.fromkeys(parts)),
    )


def test_a_search_without_a_finished_trial_says_so(tmp_path):
    with pytest.raises(LaunchError, match="no trial came to its end; the log of each says why"):
        made_search(tmp_path, LOSS)[0].best_trials()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: SweeperConfig(halving=HalvingConfig(first_step=1)).check(),
            "hydra.sweeper.halving is of a search. Set hydra.sweeper.trials, too",
        ),
        (
            lambda: SweeperConfig(trials=1, objectives=["a", "b"]).check(),
            "objectives has 2 names, and hydra.sweeper.directions 1. Give each objective its direction",
        ),
        (
            lambda: replace(HALVING, objectives=["a", "b"], directions=[Direction.minimize] * 2).check(),
            "hydra.sweeper.halving goes by one objective, but hydra.sweeper.objectives has 2. Give one",
        ),
        (
            lambda: check_objectives(replace(LOSS, objectives=["score"]), SimpleNamespace(stage="shards")),
            "hydra.sweeper.objectives=score is no result of stage=shards. It has vocab_size, bos_id, eos_id.",
        ),
        (
            lambda: check_objectives(replace(HALVING, objectives=["val/loss_best"]), training()),
            "objectives=val/loss_best is not measured as a run goes, which hydra.sweeper.halving goes by. Choose val/",
        ),
        (
            lambda: check_space(
                LOSS, {"name": CategoricalDistribution(["hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"])}, [], None
            ),
            "name holds what looks like a credential, and a search writes its choices down as they are",
        ),
    ],
)
def test_a_search_that_cannot_be_is_one_line(make, line):
    check_objectives(replace(HALVING, objectives=["val/loss/law"]), training("law", "books"))  # this one can be
    with pytest.raises(ConfigError, match=line):
        make()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra.sweeper.trials=2", "seed=0"], "hydra.sweeper.trials is set, but no key is swept. Give one: "
                                               "key=interval(1e-4,1e-2)."),
        (["seed=interval(1,9)"], "seed=interval(1,9) has no end of values. Set hydra.sweeper.trials, or list some."),
        (["seed=1,2", "seed=3"], "seed is swept, and given a second time. Give it once."),
        (["hydra.sweeper.trials=2", "optimizer.learning_rate=interval(0.2,0.1)"], "optimizer.learning_rate=interval("
         "0.2,0.1) is no interval: `low <= high` must hold, but got (low=0.2, high=0.1)."),
        (["hydra.sweeper.trials=2", "hydra.sweeper.sampler=grid", "optimizer.learning_rate=interval(0.1,0.2)"],
         "hydra.sweeper.sampler=grid cannot try all of optimizer.learning_rate. List its values, or choose tpe."),
        (["hydra.sweeper.trials=2", "hydra/launcher=basic", "seed=1,2"],
         "a search needs hydra/launcher=pool or slurm. Leave the launcher out."),
        (["hydra/sweeper=basic", "seed=1,2"],
         "hydra/launcher=pool and slurm take the jobs of hydra/sweeper=checked, which looks at each of them first. "
         "Leave hydra/sweeper out, or choose hydra/launcher=basic."),
        (["hydra.sweeper.trials=2", "seed=1,2", "hydra.sweeper.objectives=[val/bits_per_bite]"],
         "hydra.sweeper.objectives=val/bits_per_bite is no result of stage=pretrain. Did you mean val/bits_per_byte?"),
        (["hydra.sweeper.trials=2", "model.num_heads=4,7"], "model.hidden_size=160 does not divide by model."
                                                           "num_heads=7. Set model.num_heads to a divisor of 160."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_command_that_cannot_be_is_one_line_with_nothing_written(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words])
    monkeypatch.setattr("hydra._internal.utils.run_and_report", None)  # which run_command replaces
    with pytest.raises(ConfigError) as refused:
        run_command(lambda job: None)
    assert str(refused.value) == line
    assert not list(tmp_path.glob("outputs"))
