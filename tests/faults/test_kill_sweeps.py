"""SIGKILL of a sweep's driver at random moments: started again, every job's run ends as if nothing had been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.child import TRAIN
from tests.faults.harness import COMMANDS, Workspaces, faults_of_checkpoints, leftovers, remains
from tests.patience import PATIENCE

START_SECONDS = 5.0  # about what a driver takes until its first job is under way
KEY = "optimizer.learning_rate"
POOL = ["hydra.launcher.jobs=2", "hydra.launcher.threads=1"]
GRID = [f"{KEY}=0.01,0.02", *POOL]
FORMS = {"grid": GRID, "search": [*GRID, "hydra.sweeper.trials=2", "hydra.sweeper.sampler=grid"]}


def drive(form: str, folder: Path) -> "subprocess.Popen[bytes]":
    """A driver of the sweep in a folder; what it says is added to driver.log there."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    fixed = [setting for setting in COMMANDS["gpt2"] if not setting.startswith(f"{KEY}=")]
    command = [sys.executable, str(TRAIN), "-m", *fixed, *FORMS[form]]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def remains_of_jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """Run's folder -> what is left there; the runs are those of all jobs, and no others."""
    return {path.name: remains(path) for path in sorted((folder / "outputs" / "pretrain").iterdir())}


def jobs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/sweeps/*/jobs/*/job.json"))]


@pytest.fixture(scope="module")
def whole(workspaces: Workspaces, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """(what the jobs leave where nothing comes between, the seconds that it took)."""
    folder = workspaces.fresh("gpt2", tmp_path_factory.mktemp("whole") / "whole")
    begun = time.monotonic()
    assert drive("grid", folder).wait(PATIENCE) == 0, (folder / "driver.log").read_text()
    return remains_of_jobs(folder), time.monotonic() - begun


@pytest.mark.parametrize("form", ["grid", pytest.param("search", marks=pytest.mark.slow)])
def test_a_sweep_whose_driver_is_killed_ends_as_if_it_had_not_been(
    form: str,
    whole: tuple[dict[str, Any], float],
    workspaces: Workspaces,
    tmp_path: Path,
    times: Callable[..., Any],
) -> None:
    expected, took = whole
    assert len(expected) == 2
    draw, kills, number = random.Random(11), times(few=1, storm=20), 0
    while kills:
        number += 1
        workspace = workspaces.fresh("gpt2", tmp_path / str(number))
        code = -signal.SIGKILL
        while code and kills:
            driver = drive(form, workspace)
            try:
                code = driver.wait(START_SECONDS + draw.uniform(0, max(took - START_SECONDS, 1)))
            except subprocess.TimeoutExpired:
                driver.kill()
                code = driver.wait()
                kills -= 1
            said = (workspace / "driver.log").read_text()
            assert code in (0, -signal.SIGKILL), said
            assert faults_of_checkpoints(workspace) == {}, said
        assert code == 0 or drive(form, workspace).wait(PATIENCE) == 0, (workspace / "driver.log").read_text()
        assert leftovers(workspace) == []
        assert remains_of_jobs(workspace) == expected
        for job in jobs(workspace):  # none is done twice; a driver that was killed may not have seen the end
            kinds = [attempt["kind"] for attempt in job["attempts"]]
            assert job["state"] == "done"
            assert kinds.count("done") <= 1 and "done" not in kinds[:-1]
