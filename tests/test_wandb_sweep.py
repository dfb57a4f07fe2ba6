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

from llm.config.compose import from_hydra, run_command
from llm.config.training import LoggerConfig
from llm.environment import agents_run_id
from llm.errors import ConfigError
from llm.logger.view import arguments, describe, keep_description, kept_description
from llm.run.record import read_metrics
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

    def sweep(self, parameters: dict[str, Any]) -> tuple[str, str]:
        """(the sweep's id, what its agent said), the grid as it is shipped, but for its parameters and a tiny model."""
        config = shipped("grid") | {"program": str(ROOT / "train.py"), "project": "theirs"}
        config["parameters"] = {key: {"values": values} for key, values in parameters.items()}
        config["command"] = [*config["command"][:-1], *TINY, config["command"][-1]]
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


def logged(server: WandbServer, run_id: str) -> list[float]:
    return [row["val/bits_per_byte"] for row in server.history(run_id) if "val/bits_per_byte" in row]


def test_an_agents_trials_are_runs_of_its_sweep_be_they_stopped_early_new_or_found(place: Place) -> None:
    """Three trials: one that the server has the agent stop, a whole one, and that one's point again."""
    server, first = place.server, "sweep0run0"
    server.stopped_early = lambda run_id: run_id == first and len(server.history(run_id)) > 2
    sweep_id, said = place.sweep({"model": ["gpt2_tiny"], "trainer.max_steps": [100_000, 4, 4]})
    trials = server.sweeps[sweep_id]["trials"]
    assert len(trials) == 3 and sorted(server.runs) == sorted(trials), said
    stopped, whole, found = trials
    assert {server.exit_code(run_id) for run_id in trials} == {0}
    assert {server.runs[run_id]["sweep"] for run_id in trials} == {sweep_id}
    runs = {run.is_done: run for run in place.runs()}
    assert len(place.runs()) == len(runs) == 2

    assert "stopped by SIGTERM" in said and "Start the same command again to go on" in said
    assert runs[False].record["status"] == "running" and [*(runs[False].path / "checkpoints").glob("step-*")]
    assert len(server.history(stopped)) == len(read_metrics(runs[False].path / "metrics.jsonl"))

    there, config = server.runs[whole], server.config(whole)
    assert (there["groupName"], there["project"], there["displayName"]) == (sweep_id, "theirs", runs[True].path.name)
    assert (config["model"], config["model.num_layers"]) == ("gpt2_tiny", 1)
    assert config["trainer.max_steps"] == config["trainer"]["max_steps"] == trials[whole]["trainer.max_steps"] == 4

    assert f"the trial {found} of wandb's agent is this finished run: its metrics are logged anew" in said
    records = read_metrics(runs[True].path / "metrics.jsonl")
    measured = [record["val/bits_per_byte"] for record in records if "val/bits_per_byte" in record]
    for run_id in (whole, found):
        assert logged(server, run_id) == measured != []
        assert server.summary(run_id)["val/bits_per_byte"] == measured[-1]
    assert [row["step"] for row in server.history(found)] == [record["step"] for record in records]
    assert not server.unknown


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


def test_an_agents_command_that_is_a_multirun_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "rates")
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1"])
    monkeypatch.setattr("hydra._internal.utils.run_and_report", None)  # which run_command replaces
    with pytest.raises(ConfigError) as refused:
        run_command(lambda job: None)
    assert str(refused.value) == (
        "a trial of wandb agent is one run, and this is a multirun. Take -m (or sweep=...) out of the sweep's command."
    )
    assert not [*tmp_path.iterdir()]
