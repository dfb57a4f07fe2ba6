"""SIGKILL at random moments: what is started again ends as if nothing had been."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Workspaces, kill_again_and_again, strike_command

Times = Callable[..., Any]
KILLS = {  # command -> the kills of the short form, and of a storm
    "gpt2": (2, 60),
    "llama": (1, 30),
    "lora": (2, 40),
    "tokenizer": (2, 30),
}


@pytest.mark.parametrize("command", KILLS)
def test_what_is_killed_ends_as_if_it_had_not_been(
    command: str, workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    few, storm = KILLS[command]
    kill_again_and_again(command, workspaces, tmp_path, kills=times(few=few, storm=storm), seed=1)


@pytest.mark.parametrize("course", [{"checkpoint": 6}, {"model saving": 1}], ids=["checkpoint", "model"])
def test_saving_that_is_killed_leaves_all_or_nothing(
    course: dict[str, int], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kill_again_and_again("gpt2", workspaces, tmp_path, kills=times(few=2, storm=20), seed=3, course=course)


def test_training_killed_through_the_command_line_ends_as_if_it_had_not_been(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kills, course = times(few=1, storm=10), {"training": 1}
    seconds = 0.5  # about what it takes
    kill_again_and_again(
        "gpt2", workspaces, tmp_path, kills=kills, seed=5, course=course, within=seconds, strike=strike_command
    )
