"""SIGKILL at random moments: what is started again ends as if nothing had been."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Workspaces, kill_again_and_again, strike_command

Times = Callable[..., Any]


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_training_that_is_killed_ends_as_if_it_had_not_been(
    model: str, workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kill_again_and_again(model, workspaces, tmp_path, kills=times(few=3, storm=90), seed=1)


def test_fine_tuning_that_is_killed_ends_as_if_it_had_not_been(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kill_again_and_again("lora", workspaces, tmp_path, kills=times(few=2, storm=50), seed=2)


@pytest.mark.parametrize("course", [{"checkpoint": 6}, {"model saving": 1}], ids=["checkpoint", "model"])
def test_saving_that_is_killed_leaves_all_or_nothing(
    course: dict[str, int], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kill_again_and_again("gpt2", workspaces, tmp_path, kills=times(few=2, storm=25), seed=3, course=course)


def test_tokenizer_training_that_is_killed_ends_as_if_it_had_not_been(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kills = times(few=2, storm=50)
    kill_again_and_again("tokenizer", workspaces, tmp_path, kills=kills, seed=4)


def test_training_killed_through_the_command_line_ends_as_if_it_had_not_been(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kill_again_and_again(
        "gpt2",
        workspaces,
        tmp_path,
        kills=times(few=1, storm=20),
        seed=5,
        course={"training": 1},
        within=0.5,  # about what it takes
        strike=strike_command,
    )
