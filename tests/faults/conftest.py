"""The workspaces that the tests of faults share, and how many faults there are in the short form and the long."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.harness import Workspaces


@pytest.fixture(scope="session")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Workspaces:
    return Workspaces(tmp_path_factory.mktemp("workspaces"))


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Which of two is meant: a few, or with --storm many."""

    def choose(*, few: Any, storm: Any) -> Any:
        return storm if request.config.getoption("--storm") else few

    return choose
