"""A search: its space is checked first, it goes on after any kill with the same trials, and stops what does badly."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from sweeps import SCRIPT, FinderOfStandIns

from llm.config.stages import StageConfig
from llm.config.sweeping import HalvingConfig, PoolConfig, Sampler, SweeperConfig
from llm.errors import ConfigError, LaunchError
from llm.sweep import process
from llm.sweep.board import Board
from llm.sweep.driver import Driver
from llm.sweep.pool import Pool
from llm.sweep.search import Search, carry_out
from llm.sweep.shares import Shares
from llm.sweep.space import Dimension, check_space, points_of_grid
from llm.sweep.study import best_trials, check_objectives, open_study, points, table
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
X = Dimension(key="x", low=0.0, high=1.0)
N = Dimension(key="n", choices=("1", "2", "3"))
POOL = PoolConfig()

# The stand-in's run is worth what its point says, and may write the curve of a training while it lasts.
WORTH = """
point = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
x, n, seed = float(point.get("x", 0)), int(point.get("n", 0)), int(point.get("seed", 0))
name = f"{point.get('x')}-{n}-{seed}"
"""
# Nine steps, from the one after the last that an earlier attempt has written.
CURVE = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
metrics = run / "metrics.jsonl"
seen = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(seen + 1, 10):
    time.sleep(0.15)
    with metrics.open("a") as file:
        file.write(json.dumps({"step": step, "val/loss": n + 1 / step}) + "\\n")
"""
FAILURE = """
if os.environ.get("FAIL") == str(n):
    tell("failed", "RuntimeError: a bug")
    sys.exit(1)
"""


def script(outputs: Path) -> str:
    text = SCRIPT.format(outputs=str(outputs))
    text = text.replace('do, _, name = sys.argv[1].partition("=")', "").replace("job = Path(", WORTH + "job = Path(", 1)
    curve = FAILURE + "if os.environ.get('CURVE'):" + CURVE.replace("\n", "\n    ") + "\ntime.sleep(0.2)\n"
    begin, end = text.index('if do == "hold"'), text.index("time.sleep(float(do)")
    text = re.sub(r"time\.sleep\(float\(do\).*\n", "", text[:begin] + curve + text[end:])
    results = 'keep(results=RESULTS.get(str(n)) or {"val/loss": n + x + 0.25 * seed, "tokens": x})'
    results = f"RESULTS = eval(os.environ.get('RESULTS', '{{}}'))\n{results}"
    return text.replace("keep(objective=float(len(name)))", results)


def config_of(outputs: Path, overrides: list[str]) -> StageConfig:
    point = dict(word.split("=") for word in overrides)
    name = f"{point.get('x')}-{point.get('n', 0)}-{point.get('seed', 0)}"
    return StageConfig(stage="pretrain", outputs=str(outputs), name=name)


def made_search(
    outputs: Path, settings: SweeperConfig, *, space=(X, N), compose=None, cores: int = 2, launcher=POOL
) -> tuple[Search, Driver]:
    (outputs / "train.py").write_text(script(outputs), encoding="utf-8")
    process.TRAIN = outputs / "train.py"
    board = Board()
    made = Search(
        settings,
        space=space,
        fixed=[],
        compose=compose or (lambda overrides, number: config_of(outputs, overrides)),
        folder=outputs / "sweeps" / "search",
        max_attempts=launcher.max_attempts,
        board=board,
    )
    shares = Shares(launcher, num_jobs=8, gpus=[], cores=cores, memory=10**12)
    return made, Driver(made, Pool(launcher, shares), launcher, board, FinderOfStandIns())


def search(outputs: Path, settings: SweeperConfig, **given) -> optuna.Study:
    return carry_out(*made_search(outputs, settings, **given))


@pytest.fixture(autouse=True)
def _train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TRAIN", process.TRAIN)


LOSS = SweeperConfig(trials=4, sampler=Sampler.random, objectives=["val/loss"])


def test_a_grid_tries_every_combination_once_and_again_tries_nothing(tmp_path):
    settings = replace(LOSS, sampler=Sampler.grid, trials=99)
    space = (Dimension(key="x", choices=("0.5", "0.25")), N)
    study = search(tmp_path, settings, space=space)
    tried = {(trial.params["x"], trial.params["n"]): trial.value for trial in study.trials}
    assert tried == {(x, n): float(x) + int(n) for x in ("0.5", "0.25") for n in "123"}
    assert study.best_value == 1.25
    again = search(tmp_path, settings, space=space)
    assert len(again.trials) == 6
    assert {len(path.read_text().splitlines()) for path in tmp_path.glob("pretrain/*/starts.txt")} == {1}


def test_more_trials_go_on_where_fewer_ended(tmp_path):
    first = search(tmp_path, LOSS).trials
    more = search(tmp_path, replace(LOSS, trials=6)).trials
    assert [trial.params for trial in more[:4]] == [trial.params for trial in first]
    assert len({trial.params["x"] for trial in more}) == 6  # the draws do not begin anew


def test_a_trial_whose_driver_died_as_it_chose_is_taken_up(tmp_path):
    one, driver = made_search(tmp_path, LOSS)
    one.study.ask()  # and died before it had chosen
    trials = carry_out(one, driver).trials
    assert len(trials) == 4 and all(len(trial.params) == 2 for trial in trials)


def test_the_result_of_a_point_is_the_mean_over_its_seeds(tmp_path):
    study = search(tmp_path, replace(LOSS, trials=2, seeds=3))
    assert len(list(tmp_path.glob("pretrain/*"))) == 6
    for trial in study.trials:
        assert trial.value == pytest.approx(int(trial.params["n"]) + trial.params["x"] + 0.25, abs=1e-12)


def test_two_objectives_end_in_the_trials_that_none_beats(tmp_path):
    settings = replace(LOSS, objectives=["val/loss", "tokens"], directions=["minimize", "maximize"])
    study = search(tmp_path, settings)
    values = [trial.values for trial in study.trials]
    unbeaten = {
        number
        for number, (loss, tokens) in enumerate(values)
        if not any(a <= loss and b >= tokens and (a, b) != (loss, tokens) for a, b in values)
    }
    assert {trial.number for trial in best_trials(study)} == unbeaten
    said = json.loads((tmp_path / "sweeps" / "search" / "search.json").read_text())  # by which a comparison ranks
    assert said == {"objectives": ["val/loss", "tokens"], "directions": ["minimize", "maximize"]}


def test_the_best_so_far_is_by_what_is_searched_for_and_its_direction(tmp_path):
    settings = replace(LOSS, sampler=Sampler.grid, trials=3, objectives=["val/loss"], directions=["maximize"])
    made, driver = made_search(tmp_path, settings, space=(N,))
    assert (made.to_come(), made.best()) == (3, None)
    driver.run()
    assert (made.to_come(), made.best()) == (0, "val/loss 3.0000: n=3")


def training(*parts: str) -> SimpleNamespace:
    return SimpleNamespace(stage="pretrain", trainer=None, data=SimpleNamespace(parts=dict.fromkeys(parts)))


def test_an_objective_can_be_of_a_part_of_a_mixture():
    check_objectives(replace(HALVING, objectives=["val/loss/law"]), training("law", "books"))


NINE = Dimension(key="n", choices=tuple("123456789"))
HALVING = replace(LOSS, trials=9, sampler=Sampler.grid, halving=HalvingConfig(first_step=1, factor=4))


def steps_of(outputs: Path) -> dict[str, list[int]]:
    """Point -> the steps in its run's metrics.jsonl, in their order."""
    files = {path.parent.name.split("-")[1]: path for path in outputs.glob("pretrain/*/metrics.jsonl")}
    return {n: [json.loads(line)["step"] for line in path.read_text().splitlines()] for n, path in files.items()}


@pytest.mark.parametrize(("order", "whole"), [("123456789", "1"), ("594172836", "541")])
def test_what_does_badly_at_a_rung_is_stopped_and_stays_so(tmp_path, monkeypatch, order, whole):
    monkeypatch.setenv("CURVE", "1")
    monkeypatch.setattr("llm.sweep.driver.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("llm.sweep.study.points_of_grid", lambda space: [{"n": n} for n in order])
    study = search(tmp_path, HALVING, space=(NINE,), cores=1)
    states = {trial.params["n"]: trial.state.name for trial in study.trials}
    assert {n for n, state in states.items() if state == "COMPLETE"} == set(whole)  # each the best of those before it
    assert set(states.values()) == {"COMPLETE", "PRUNED"} and len(states) == 9
    taken = steps_of(tmp_path)
    assert all(steps == list(range(1, len(steps) + 1)) for steps in taken.values())  # none twice, none left out
    assert all(len(taken[n]) == 9 if n in whole else len(taken[n]) < 5 for n in taken)
    shown = list(table(study, HALVING).columns[0]._cells)
    assert shown[0] == str(order.index("1"))
    assert sorted(map(int, shown)) == list(range(9))  # each point once
    again = search(tmp_path, HALVING, space=(NINE,), cores=1)
    assert len(again.trials) == len(study.trials)


def test_what_failed_is_tried_again_at_a_later_start_as_often_as_it_may_be(tmp_path, monkeypatch, capsys):
    settings = replace(LOSS, sampler=Sampler.grid, trials=3)
    monkeypatch.setenv("FAIL", "2")
    first = search(tmp_path, settings, space=(N,))
    assert {t.params["n"]: t.state.name for t in first.trials} == {"1": "COMPLETE", "2": "FAIL", "3": "COMPLETE"}
    search(tmp_path, settings, space=(N,), launcher=PoolConfig(max_attempts=1))
    assert "has failed 1 times; hydra.launcher.max_attempts=1. Raise it" in capsys.readouterr().err
    monkeypatch.delenv("FAIL")
    study = search(tmp_path, settings, space=(N,))
    assert {n: trial.state.name for n, trial in points(study).items()} == dict.fromkeys(range(3), "COMPLETE")
    starts = {path.parent.name.split("-")[1]: path.read_text() for path in tmp_path.glob("pretrain/*/starts.txt")}
    assert {n: len(text.splitlines()) for n, text in starts.items()} == {"1": 1, "2": 2, "3": 1}


@pytest.mark.parametrize(
    ("of_two", "line"),
    [
        ('{"val/loss": float("nan")}', "val/loss of {run} is nan."),
        ('{"tokens": 1}', "hydra.sweeper.objectives=val/loss is no result of {run}. It has tokens."),
    ],
)
def test_a_result_that_is_none_fails_its_trial_and_no_other(tmp_path, monkeypatch, capsys, of_two, line):
    monkeypatch.setenv("RESULTS", f'{{"2": {of_two}}}')
    settings = replace(LOSS, sampler=Sampler.grid, trials=3)
    study = search(tmp_path, settings, space=(N,))
    assert {t.params["n"]: t.state.name for t in study.trials} == {"1": "COMPLETE", "2": "FAIL", "3": "COMPLETE"}
    assert f"n=2: {line.format(run=tmp_path / 'pretrain' / 'None-2-0')}" in capsys.readouterr().err
    kinds = [json.loads(path.read_text())["attempts"] for path in tmp_path.glob("sweeps/search/jobs/*/job.json")]
    assert [[attempt["kind"] for attempt in attempts] for attempts in kinds] == [["done"]] * 3  # none was killed


def test_the_first_failure_ends_a_search_that_is_to_fail_fast(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    settings = replace(LOSS, sampler=Sampler.grid, trials=3)
    with pytest.raises(LaunchError, match=r"fail_fast: trial \d: n=1: failed: RuntimeError: a bug") as e:
        search(tmp_path, settings, space=(N,), cores=1, launcher=PoolConfig(fail_fast=True))
    assert e.value.exit_code == 3


def test_values_that_cannot_go_together_fail_alone(tmp_path):
    def compose(overrides: list[str], number: int) -> StageConfig:
        if "n=2" in overrides:
            raise ConfigError("n=2 does not go with x")
        return config_of(tmp_path, overrides)

    settings = replace(LOSS, sampler=Sampler.grid, trials=3)
    study = search(tmp_path, settings, space=(Dimension(key="x", choices=("0.5",)), N), compose=compose)
    assert {trial.params["n"]: trial.state.name for trial in study.trials} == {
        "1": "COMPLETE",
        "2": "FAIL",
        "3": "COMPLETE",
    }


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_sweep_search import HALVING, LOSS, N, NINE, X, replace, search
if __name__ == "__main__":
    search(Path({folder!r}), {settings}, space={space})
"""


def driver_program(tmp_path: Path, settings: str, space: str) -> Path:
    program = tmp_path / "driver.py"
    names = {"root": str(ROOT), "tests": str(ROOT / "tests"), "folder": str(tmp_path)}
    program.write_text(PROGRAM.format(**names, settings=settings, space=space))
    return program


def test_two_drivers_share_a_search_and_begin_no_more_points_than_are_asked_for(tmp_path):
    program = driver_program(tmp_path, "replace(LOSS, trials=7)", "(X, N)")
    command = [sys.executable, str(program)]
    drivers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [driver.communicate(timeout=PATIENCE)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    study = open_study(replace(LOSS, trials=7), (X, N), [], tmp_path / "sweeps" / "search")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 7
    records = [json.loads(path.read_text()) for path in tmp_path.glob("sweeps/search/jobs/*/job.json")]
    assert [[attempt["kind"] for attempt in record["attempts"]] for record in records] == [["done"]] * 7
    assert len({record["attempts"][0]["driver"] for record in records}) == 2


def kill_again_and_again(tmp_path: Path, settings: str, space: str, *, times: int) -> None:
    program = driver_program(tmp_path, settings, space)
    for number in range(times):
        driver = subprocess.Popen([sys.executable, str(program)], stderr=subprocess.DEVNULL)
        time.sleep(2.5 + 0.37 * (number % 7))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_a_search_that_is_killed_again_and_again_ends_with_its_trials_each_once(tmp_path, request):
    times = 20 if request.config.getoption("--storm") else 2
    kill_again_and_again(tmp_path, "replace(LOSS, trials=8)", "(X, N)", times=times)
    study = open_study(replace(LOSS, trials=8), (X, N), [], tmp_path / "sweeps" / "search")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 8
    assert [trial.value for trial in study.trials] == [t.params["x"] + int(t.params["n"]) for t in study.trials]
    assert len(list(tmp_path.glob("pretrain/*"))) == 8  # no other point was begun
    records = [json.loads(path.read_text()) for path in tmp_path.glob("sweeps/search/jobs/*/job.json")]
    assert [record["state"] for record in records] == ["done"] * 8
    for record in records:  # nothing is begun after the end, which a driver that was killed may not have seen
        kinds = [attempt["kind"] for attempt in record["attempts"]]
        assert kinds.count("done") <= 1 and "done" not in kinds[:-1]


def test_a_search_with_halving_that_is_killed_again_and_again_takes_each_step_once(tmp_path, request, monkeypatch):
    monkeypatch.setenv("CURVE", "1")
    kill_again_and_again(tmp_path, "HALVING", "(NINE,)", times=20 if request.config.getoption("--storm") else 2)
    study = open_study(HALVING, (NINE,), [], tmp_path / "sweeps" / "search")
    states = {trial.params["n"]: trial.state.name for trial in points(study).values()}
    assert len(states) == 9 and states["1"] == "COMPLETE"
    assert set(states.values()) == {"COMPLETE", "PRUNED"}
    assert all(steps == list(range(1, len(steps) + 1)) for steps in steps_of(tmp_path).values())


def test_a_study_of_another_search_is_refused(tmp_path):
    open_study(LOSS, (X,), [], tmp_path)
    with pytest.raises(ConfigError, match=r"study.journal is of another search. Move it away to begin this one"):
        open_study(LOSS, (N,), [], tmp_path)


def test_a_search_without_a_finished_trial_says_so():
    with pytest.raises(LaunchError, match="no trial came to its end; the log of each says why"):
        best_trials(optuna.create_study())


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Dimension(key="x", low=2, high=1), r"x=interval\(2,1\) is empty. Give the lower end first"),
        (lambda: Dimension(key="x", low=0, high=1, log=True), r"x=interval\(0,1\) has no logarithm at its lower end"),
        (lambda: Dimension(key="x", choices=("1", "1")), "x=1,1 holds a value twice. Give each once"),
        (lambda: points_of_grid([X]), "hydra.sweeper.sampler=grid cannot try all of x. List its values, or choose tpe"),
        (lambda: check_space([], [], lambda *_: None), "hydra.sweeper.trials is set, but no key is swept"),
        (lambda: SweeperConfig(trials=0).check(), "hydra.sweeper.trials=0 is out of range. Set 1 or more"),
        (lambda: SweeperConfig(seeds=2).check(), "hydra.sweeper.seeds and hydra.sweeper.halving are of a search. Set"),
        (
            lambda: SweeperConfig(trials=1, objectives=["a", "b"]).check(),
            "objectives has 2 names, and hydra.sweeper.directions 1. Give each objective its direction",
        ),
        (lambda: SweeperConfig(directions=["down"]).check(), "directions=down is no direction. Choose minimize or max"),
        (
            lambda: SweeperConfig(trials=1, seeds=2, halving=HalvingConfig(first_step=1)).check(),
            "halving compares one curve of each point, but hydra.sweeper.seeds gives several",
        ),
        (
            lambda: check_objectives(replace(LOSS, objectives=["val/loss/law"]), training()),
            "hydra.sweeper.objectives=val/loss/law is no result of stage=pretrain. Did you mean val/loss?",
        ),
        (
            lambda: check_objectives(replace(LOSS, objectives=["score"]), SimpleNamespace(stage="shards")),
            "hydra.sweeper.objectives=score is no result of stage=shards. It has vocab_size, bos_id, eos_id.",
        ),
        (
            lambda: check_objectives(LOSS, StageConfig(stage="tokenizer")),
            "hydra.sweeper.objectives=val/loss is no result of stage=tokenizer. ",
        ),
        (
            lambda: check_objectives(replace(HALVING, objectives=["val/loss_best"]), training()),
            "objectives=val/loss_best is not measured as a run goes, which hydra.sweeper.halving goes by. Choose val/",
        ),
    ],
)
def test_a_search_that_cannot_be_is_one_line(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra.sweeper.trials=2", "seed=0"], "hydra.sweeper.trials is set, but no key is swept. Give one: "
                                               "key=interval(1e-4,1e-2)."),
        (["seed=interval(1,9)"], "seed=interval(1,9) has no end of values. Set hydra.sweeper.trials, or list some."),
        (["seed=1,2", "seed=3"], "seed is swept, and given a second time. Give it once."),
        (["hydra.sweeper.trials=2", "hydra.sweeper.seeds=2", "seed=1,2"],
         "seed is given, and hydra.sweeper.seeds sets it too. Leave one of them out."),
        (["hydra.sweeper.trials=2", "hydra/launcher=basic", "seed=1,2"],
         "a search needs hydra/launcher=pool or slurm. Leave the launcher out."),
        (["hydra.sweeper.trials=2", "seed=1,2", "hydra.sweeper.objectives=[val/bits_per_bite]"],
         "hydra.sweeper.objectives=val/bits_per_bite is no result of stage=pretrain. Did you mean val/bits_per_byte?"),
        (["hydra.sweeper.trials=2", "model.num_heads=4,7"], "model.hidden_size=160 does not divide by model."
                                                           "num_heads=7. Set model.num_heads to a divisor of 160."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_command_that_cannot_be_is_one_line_with_nothing_written(tmp_path, words, line):
    command = [sys.executable, str(ROOT / "train.py"), "-m", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_sweeper_that_checks_nothing_is_refused_in_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/sweeper=basic", "seed=1,2"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        "error: hydra/launcher=pool takes the jobs of hydra/sweeper=checked, which looks at each of them first. Leave "
        "hydra/sweeper out, or choose hydra/launcher=basic.\n"
    )
    assert not (tmp_path / "outputs").exists()
