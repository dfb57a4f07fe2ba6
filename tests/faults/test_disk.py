"""Disks that are full or cannot be written to, and outputs that go: one line, 74, and no loss."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import (
    Running,
    Workspaces,
    assert_ends_the_same,
    is_told_in_one_line,
    launch,
    leftovers,
    run,
    run_folder,
    said,
)

Times = Callable[..., Any]
PAGE = 4096


# Outputs that go


def test_outputs_that_are_deleted_midway_end_the_run_in_one_line_and_the_next_start_makes_all_of_it(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    folder = workspaces.fresh("gpt2", tmp_path / "w")
    running, name = Running(launch("gpt2", folder, waits_at="micro-batch")), ""
    for number in range(13):
        assert running.reaches("micro-batch"), said(folder)[-1500:]
        if number == 12:
            name = run_folder(folder, "gpt2").name
            shutil.rmtree(folder / "outputs")
        running.go_on()
    while running.reaches("micro-batch"):
        running.go_on()
    assert is_told_in_one_line(folder, running.exit_code()), said(folder)[-1500:]
    assert f"error: outputs/pretrain/{name} was removed or moved while this process was at it. " in said(folder)
    assert not (folder / "outputs").exists()
    assert_ends_the_same("gpt2", folder, workspaces)


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "faults", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small filesystem: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, *, but: int) -> Path:
    """A file that takes all of the disk but so many bytes."""
    filler = disk / "filler"
    size = shutil.disk_usage(disk).free - but
    filler.write_bytes(b"\0" * size)
    return filler


SAVED = [
    ("tokenizer", "tokenizer saving", r"outputs/tokenizer/[^/]+/tokenizer\.json"),
    ("shards", "shard writing", r"outputs/shards/[^/]+/shards/(train|held_out)-00000\.(bin|documents\.npy|json)"),
    ("gpt2", "checkpoint", r"outputs/pretrain/[^/]+/checkpoints/step-00000003"),
]


@pytest.mark.parametrize(("command", "moment", "file"), SAVED, ids=[moment for _, moment, _ in SAVED])
def test_a_full_disk_names_the_file_and_what_it_takes_and_the_same_command_goes_on(
    command: str, moment: str, file: str, small_disk: Path, workspaces: Workspaces
) -> None:
    folder = workspaces.fresh(command, small_disk / "w")
    running = Running(launch(command, folder, waits_at=moment))
    assert running.reaches(moment)
    filler = fill(small_disk, but=2 * PAGE)
    running.go_on()
    code = running.exit_code()
    line = said(folder).splitlines()[-1]
    assert is_told_in_one_line(folder, code), (code, said(folder)[-3000:])
    assert re.match(rf"error: {file}: No space left on device: it takes .* free\. Make room on that disk; ", line), line
    assert leftovers(folder) == []
    filler.unlink()
    assert_ends_the_same(command, folder, workspaces)


# A folder that nothing can be written to


def set_read_only(folder: Path, *, to: bool) -> None:
    """Let nobody make or remove anything in a folder: root neither, whom permissions do not bind."""
    if os.geteuid():
        folder.chmod(0o555 if to else 0o755)
        return
    done = subprocess.run(["chattr", "+i" if to else "-i", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot make a folder read-only for root: {done.stderr.strip()}")


def test_a_run_that_cannot_begin_for_its_folder_is_read_only_says_so(workspaces: Workspaces, tmp_path: Path) -> None:
    folder = workspaces.fresh("gpt2", tmp_path / "w")
    (folder / "outputs" / "pretrain").mkdir()
    set_read_only(folder / "outputs" / "pretrain", to=True)
    try:
        code = run("gpt2", folder)
    finally:
        set_read_only(folder / "outputs" / "pretrain", to=False)
    assert is_told_in_one_line(folder, code), (code, said(folder)[-3000:])
    assert run("gpt2", folder) == 0
