"""The step of trainer=gpu as it is planned for an H100, held to the budgets of benchmarks/results/gpu_plan.json.

A change that makes it better or knowingly worse records what is found: python -m benchmarks.gpu_plan --update
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BUDGETS = json.loads((ROOT / "benchmarks" / "results" / "gpu_plan.json").read_text(encoding="utf-8"))
FAST = ("llama packed",)
MORE = 1.01  # of a budget: what another release of a library may add without a word

pytestmark = pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is planned now, by the names of the budgets; in a process of its own, as torch is already here."""
    which = [] if request.config.getoption("--storm") else ["--only", "fast"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    }
    command = [sys.executable, "-m", "benchmarks.gpu_plan", *which]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    plans: dict[str, Any] = {}
    for line in ran.stdout.splitlines():
        plans |= json.loads(line) if line.startswith('{"') else {}
    return plans


def names(config: pytest.Config) -> list[str]:
    return list(BUDGETS) if config.getoption("--storm") else list(FAST)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names(metafunc.config))


def test_a_step_is_planned_within_its_budget(name: str, found: dict[str, Any]) -> None:
    made, budget = found[name], BUDGETS[name]
    assert "error" not in made, made
    for figure in ("kernels", "gigabytes", "teraflops", "peak_megabytes"):
        assert made[figure] <= MORE * budget[figure], f"{figure}: {made[figure]}, and {budget[figure]} is the budget"


def test_no_batch_makes_a_graph_but_the_first_of_its_kind(name: str, found: dict[str, Any]) -> None:
    """Few documents, more of them, and one a row are the kinds; validation in between makes none."""
    assert found[name]["graphs"] == BUDGETS[name]["graphs"]


def test_the_host_waits_for_the_norm_of_the_gradients_alone(name: str, found: dict[str, Any]) -> None:
    assert found[name]["waits"] == BUDGETS[name]["waits"]


def test_the_dry_run_says_no_less_memory_than_the_plan(name: str, found: dict[str, Any]) -> None:
    """torch.compile computes anew some of what an uncompiled pass keeps, which the dry run does not know."""
    assert 0.7 <= found[name]["peak_megabytes"] / found[name]["dry_run_megabytes"] <= 1.02
