"""The sweeps of docs/wandb_sweeps, by wandb's own `sweep` and `agent`, against a server on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from korean import documents

from llm.config.compose import from_hydra
from llm.config.training import LoggerConfig
from llm.environment import agents_run_id
from llm.logger.view import arguments, describe, keep_description, kept_description
from llm.run.metrics import read_metrics
from llm.run.runs import Run, load
from tests.patience import PATIENCE
from tests.wandb_attempts import environment
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "docs" / "wandb_sweeps").glob("*.yaml"))
TINY = [
    *("data=text", "data.path=text.txt", "data.held_out_share=0.2", "data.sequence_length=64", "data.batch_size=4"),
    *("tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400", "model.num_heads=2", "model.hidden_size=16"),
    *("model.num_layers=1", "trainer.log_every_steps=1", "trainer.sample_tokens=2"),
]


def shipped(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docs" / "wandb_sweeps" / f"{name}.yaml").read_text(encoding="utf-8")))


def value_of(parameter: dict[str, Any]) -> Any:
    """One that the sweep may give."""
    return parameter["values"][0] if "values" in parameter else parameter["min"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_trial_of_a_shipped_sweep_composes(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    fixed = [word for word in sweep["command"] if "=" in word]
    given = [f"{key}={value_of(parameter)}" for key, parameter in sweep["parameters"].items()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = from_hydra(compose("config", overrides=[*fixed, *given]))
    assert config.logger.project == sweep["project"]
    numbers = [bound for each in sweep["parameters"].values() for key, bound in each.items() if key in ("min", "max")]
    assert all(isinstance(number, float) for number in numbers)  # 3e-4 without a point is text to YAML
    assert sweep["metric"] == {"name": "val/bits_per_byte", "goal": "minimize"}


def test_a_grid_and_a_search_that_stops_early_are_shipped() -> None:
    assert [path.stem for path in SHIPPED] == ["bayes", "grid"]
    assert (shipped("grid")["method"], shipped("bayes")["method"]) == ("grid", "bayes")
    assert shipped("bayes")["early_terminate"]["type"] == "hyperband"


# With wandb's own commands


@dataclass
class Place:
    """A folder to type commands in, and the server that they talk to."""

    server: WandbServer
    folder: Path

    def wandb(self, *words: str) -> str:
        """What a command of wandb said."""
        own = environment(self.server, self.folder) | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-m", "wandb", *words]
        done = subprocess.run(command, cwd=self.folder, env=own, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def sweep(self, parameters: dict[str, Any], *, steps: int) -> tuple[str, str]:
        """(the sweep's id, what its agent said), the grid as it is shipped, but for its parameters and a tiny model."""
        config = shipped("grid") | {"program": str(ROOT / "train.py"), "project": "theirs"}
        config["parameters"] = {key: {"values": values} for key, values in parameters.items()}
        config["command"] = [*config["command"][:-1], *TINY, f"trainer.max_steps={steps}", config["command"][-1]]
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self.wandb("sweep", "--project", "theirs", "sweep.yaml")
        sweep_id = f"sweep{len(self.server.sweeps) - 1}"
        return sweep_id, self.wandb("agent", f"me/theirs/{sweep_id}")

    def runs(self) -> list[Run]:
        return [load(path) for path in sorted(self.folder.glob("outputs/pretrain/*"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "text.txt").write_text("\n\n".join(documents(150)), encoding="utf-8")
    with WandbServer() as server:
        yield Place(server, folder)


def bits_per_byte(run: Run) -> list[float]:
    records = read_metrics(run.path / "metrics.jsonl")
    return [record["val/bits_per_byte"] for record in records if "val/bits_per_byte" in record]


def logged(server: WandbServer, run_id: str) -> list[float]:
    return [row["val/bits_per_byte"] for row in server.history(run_id) if "val/bits_per_byte" in row]


def test_an_agents_trials_are_runs_of_its_sweep_with_their_parameters_and_their_metric(place: Place) -> None:
    sweep_id, said = place.sweep({"model": ["gpt2_tiny"], "optimizer.learning_rate": [0.001, 0.003]}, steps=4)
    server, trials = place.server, place.server.sweeps[sweep_id]["trials"]
    assert len(trials) == 2 and sorted(server.runs) == sorted(trials), said
    by_rate = {run.config["optimizer"]["learning_rate"]: run for run in place.runs()}
    assert sorted(by_rate) == [0.001, 0.003]
    for run_id, point in trials.items():
        run, there, config = by_rate[point["optimizer.learning_rate"]], server.runs[run_id], server.config(run_id)
        assert server.exit_code(run_id) == 0
        assert (there["sweep"], there["groupName"], there["project"]) == (sweep_id, sweep_id, "theirs")
        assert there["displayName"] == run.path.name
        assert (config["model"], config["model.num_layers"]) == ("gpt2_tiny", 1)
        assert config["optimizer.learning_rate"] == config["optimizer"]["learning_rate"]
        assert config["optimizer.learning_rate"] == point["optimizer.learning_rate"]
        assert logged(server, run_id) == bits_per_byte(run) != []
        assert server.summary(run_id)["val/bits_per_byte"] == bits_per_byte(run)[-1]
    assert not server.unknown


def test_a_trial_of_a_run_that_is_finished_has_its_metric_all_the_same(place: Place) -> None:
    made = {run.path for run in place.runs()}
    sweep_id, said = place.sweep({"model": ["gpt2_tiny"], "optimizer.learning_rate": [0.003]}, steps=4)
    [(run_id, _)] = place.server.sweeps[sweep_id]["trials"].items()
    assert {run.path for run in place.runs()} == made
    assert f"the trial {run_id} of wandb's agent is this finished run: its metrics are logged anew" in said
    [run] = [run for run in place.runs() if run.config["optimizer"]["learning_rate"] == 0.003]
    rows = place.server.history(run_id)
    assert [row["step"] for row in rows] == [row["step"] for row in read_metrics(run.path / "metrics.jsonl")]
    assert logged(place.server, run_id) == bits_per_byte(run)
    assert place.server.summary(run_id)["val/bits_per_byte"] == bits_per_byte(run)[-1]
    assert (place.server.runs[run_id]["sweep"], place.server.exit_code(run_id)) == (sweep_id, 0)


def test_a_trial_that_is_stopped_early_saves_and_ends_well_and_the_agent_goes_on(place: Place) -> None:
    server = place.server
    first = f"sweep{len(server.sweeps)}run0"
    server.stopped_early = lambda run_id: run_id == first and len(server.history(run_id)) > 2
    sweep_id, said = place.sweep({"model": ["gpt2_tiny"], "trainer.max_steps": [100_000, 4]}, steps=4)
    stopped, other = server.sweeps[sweep_id]["trials"]
    assert (server.exit_code(stopped), server.exit_code(other)) == (0, 0)
    assert "stopped by SIGTERM" in said
    assert "Start the same command again to go on" in said
    [run] = [run for run in place.runs() if run.record["status"] != "done"]
    assert (run.record["status"], [*(run.path / "checkpoints").glob("step-*")] != []) == ("running", True)
    assert len(server.history(stopped)) == len(read_metrics(run.path / "metrics.jsonl"))


def test_an_agents_process_is_its_trial_and_nobody_elses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(tmp_path / "pretrain" / "first-0123abcd", {"stage": "pretrain"})
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text("seed: 1\nmodel: {name: a, num_layers: 2}\n", encoding="utf-8")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")  # alone it says nothing of a sweep
    assert (agents_run_id(), describe(LoggerConfig(), run)["id"]) == (None, "pretrain-first-0123abcd")
    parameters = {"wandb_version": 1, "model": {"desc": None, "value": "a"}, "seed": {"value": 1}}
    (tmp_path / "config.yaml").write_text(json.dumps(parameters), encoding="utf-8")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "rates")
    keep_description(run, describe(LoggerConfig(), run))
    monkeypatch.delenv("WANDB_SWEEP_ID")
    kept = kept_description(run)  # as llm.sync finds it, which is no trial
    assert kept
    said = arguments(run, kept)
    assert (said["id"], said["group"], said["tags"], said["config"]) == (
        "abc",
        "rates",
        ["model=a", "seed=1"],
        {"seed": 1, "model.name": "a", "model.num_layers": 2},
    )


def test_an_agents_command_that_is_a_multirun_is_refused_in_one_line(tmp_path: Path) -> None:
    own = os.environ | {"WANDB_SWEEP_ID": "rates", "WANDB_RUN_ID": "abc"}
    command = [sys.executable, str(ROOT / "train.py"), "-m", "seed=0,1"]
    ended = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: a trial of wandb agent is one run, and this is a multirun. Take -m (or sweep=...) out of the sweep's "
        "command.\n",
    )
    assert not [*tmp_path.iterdir()]
