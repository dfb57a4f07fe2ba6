"""One bit flipped in the newest checkpoint: found, set aside, and the run goes on from the one before."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.trainer.checkpoint import find_fault, newest_good
from tests.faults.harness import Moment, Workspaces, launch, remains, run, run_folder, said, strike_fork

Times = Callable[..., Any]


@pytest.fixture(scope="module")
def interrupted(workspaces: Workspaces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run was killed after step 7, with checkpoints of steps 3 and 6."""
    folder = workspaces.fresh("gpt2", tmp_path_factory.mktemp("interrupted") / "w")
    assert strike_fork(launch("gpt2", folder), Moment("micro-batch", 15, 0.0)) == -signal.SIGKILL
    return folder


def newest(folder: Path) -> Path:
    return sorted((run_folder(folder, "gpt2") / "checkpoints").glob("step-*"))[-1]


def flip(checkpoint: Path, draw: random.Random) -> tuple[str, int]:
    """Flip one bit of a checkpoint, each file as likely as another; the file's name and the bit's place in it."""
    file = draw.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return file.name, bit


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(interrupted: Path, tmp_path: Path, times: Times) -> None:
    draw = random.Random(21)
    for number in range(times(few=10, storm=200)):
        copy = tmp_path / str(number) / "step-00000006"
        shutil.copytree(newest(interrupted), copy)
        before = shutil.copytree(newest(interrupted).with_name("step-00000003"), copy.with_name("step-00000003"))
        assert find_fault(copy) is None
        flipped = flip(copy, draw)
        assert find_fault(copy) is not None, flipped
        assert newest_good(copy.parent) == before, flipped
        assert sorted(path.name for path in copy.parent.iterdir()) == ["bad-step-00000006", "step-00000003"], flipped


def test_a_run_whose_newest_checkpoint_has_a_flipped_bit_ends_as_if_it_had_none(
    interrupted: Path, workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    draw = random.Random(22)
    for number in range(times(few=1, storm=20)):
        folder = shutil.copytree(interrupted, tmp_path / str(number))
        damaged = newest(folder)
        flipped = flip(damaged, draw)
        assert run("gpt2", folder) == 0, (flipped, said(folder)[-1500:])
        assert f"checkpoint {damaged.name} is damaged" in said(folder), flipped
        assert f"going on from {damaged.with_name('step-00000003').relative_to(folder)}" in said(folder), flipped
        assert remains(run_folder(folder, "gpt2")) == workspaces.remains_of("gpt2"), flipped
