"""One bit flipped in the newest checkpoint: found, set aside, and the run goes on from the one before."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.trainer.checkpoint import find_fault
from tests.faults.harness import Moment, Workspaces, assert_ends_the_same, launch, run, run_folder, said, strike_fork


def flip(checkpoint: Path, draw: random.Random) -> tuple[str, int]:
    """Flip one bit of a checkpoint, each file as likely as another; the file's name and the bit's place in it."""
    file = draw.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return file.name, bit


def test_a_flipped_bit_anywhere_in_the_newest_checkpoint_is_found_and_the_one_before_is_taken(
    workspaces: Workspaces, tmp_path: Path, times: Callable[..., Any]
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
