"""The workspaces that the tests of faults share, and how many faults there are in the short form and the long."""

import os
from collections.abc import Callable

import pytest

from tests.faults.harness import Workspaces

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the launches: they are tiny, and many


@pytest.fixture(scope="session")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Workspaces:
    return Workspaces(tmp_path_factory.mktemp("workspaces"))


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[..., int]:
    """Which of two numbers is meant: a few, or with --storm many."""

    def choose(*, few: int, storm: int) -> int:
        return storm if request.config.getoption("--storm") else few

    return choose
