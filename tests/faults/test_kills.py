"""Processes that are killed, started twice, or whose checkpoint loses a bit: the run ends as if nothing had been."""

import random
import re
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm.trainer.checkpoint import find_fault
from tests.faults.harness import (
    Moment,
    Running,
    Workspaces,
    assert_ends_the_same,
    kill_again_and_again,
    launch,
    leftovers,
    remains,
    run,
    run_folder,
    said,
    strike_command,
    strike_fork,
)

Times = Callable[..., Any]
KILLS = {"gpt2": 60, "llama": 30, "lora": 40, "adapt": 30, "tokenizer": 30}  # command -> the kills of a storm
LLAMA = pytest.param("llama", marks=pytest.mark.slow)  # at other weights, what gpt2 shows


@pytest.mark.parametrize("command", [LLAMA if command == "llama" else command for command in KILLS])
def test_what_is_killed_ends_as_if_it_had_not_been(
    command: str, workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kill_again_and_again(command, workspaces, tmp_path, kills=times(few=1, storm=KILLS[command]), seed=1)


@pytest.mark.parametrize("course", [{"checkpoint": 6}, {"model saving": 1}], ids=["checkpoint", "model"])
def test_saving_that_is_killed_leaves_all_or_nothing(
    course: dict[str, int], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kill_again_and_again("gpt2", workspaces, tmp_path, kills=times(few=1, storm=60), seed=3, course=course)


def test_training_killed_through_the_command_line_ends_as_if_it_had_not_been(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    kills, course = times(few=1, storm=10), {"training": 1}
    seconds = 0.5  # about what it takes
    kill_again_and_again(
        "gpt2", workspaces, tmp_path, kills=kills, seed=5, course=course, within=seconds, strike=strike_command
    )


def test_of_two_starts_at_once_exactly_one_makes_the_run_and_the_other_says_who_does(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    for number in range(times(few=1, storm=20)):
        folder = workspaces.fresh("gpt2", tmp_path / str(number))
        # Made to last longer than the moment for which a start waits before it takes the run for owned
        command = replace(launch("gpt2", folder), pauses={"model building": 1.5})
        both = [replace(command, console_name=f"{name}.txt") for name in ("one", "other")]
        running = [Running(start) for start in both]
        pids = [each.pid for each in running]
        codes, told = [each.exit_code() for each in running], [start.console.read_text() for start in both]
        ended = sorted(zip(codes, told, pids, strict=True))
        (won, _, winner), (lost, said_by_loser, _) = ended
        assert (won, lost) == (0, 2), ended
        (line,) = [line for line in said_by_loser.splitlines() if line.startswith("error: ")]
        assert re.search(rf"is being made by .*\b{winner}\b.*{re.escape(socket.gethostname())}", line), line
        assert leftovers(folder) == []
        assert remains(run_folder(folder, "gpt2")) == workspaces.remains_of("gpt2")
        shutil.rmtree(folder)


def flip(checkpoint: Path, draw: random.Random) -> tuple[str, int]:
    """Flip one bit of a checkpoint, each file as likely as another; the file's name and the bit's place in it."""
    file = draw.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return file.name, bit


def test_a_flipped_bit_anywhere_in_the_newest_checkpoint_is_found_and_the_one_before_is_taken(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    draw, interrupted = random.Random(21), workspaces.fresh("gpt2", tmp_path / "interrupted")
    assert strike_fork(launch("gpt2", interrupted), Moment("micro-batch", 15, 0.0)) == -signal.SIGKILL
    newest = run_folder(interrupted, "gpt2") / "checkpoints" / "step-00000006"
    for number in range(times(few=10, storm=200)):
        copy = shutil.copytree(newest, tmp_path / str(number) / newest.name)
        flipped = flip(copy, draw)
        assert find_fault(newest) is None and find_fault(copy) is not None, flipped
    for number in range(times(few=1, storm=15)):
        folder = shutil.copytree(interrupted, tmp_path / f"run-{number}")
        damaged = run_folder(folder, "gpt2") / "checkpoints" / newest.name
        flipped = flip(damaged, draw)
        assert run("gpt2", folder) == 0, (flipped, said(folder)[-1500:])
        shutil.rmtree(damaged.with_name(f"bad-{damaged.name}"))  # which is kept
        assert_ends_the_same("gpt2", folder, workspaces)
        assert f"checkpoint {damaged.name} is damaged" in said(folder), flipped
        assert f"going on from {damaged.with_name('step-00000003').relative_to(folder)}" in said(folder), flipped
