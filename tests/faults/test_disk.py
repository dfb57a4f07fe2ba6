"""Disks that are full, read-only, or not where TMPDIR is, and limits of the process: one line, 74, and no loss."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.trainer.checkpoint import find_fault, newest_good
from tests.faults.harness import (
    Moment,
    Running,
    Workspaces,
    faults_of_checkpoints,
    is_told_in_one_line,
    kill_again_and_again,
    launch,
    leftovers,
    remains,
    run,
    run_folder,
    said,
    strike_fork,
)

Times = Callable[..., Any]
MEMORY_DISK = Path("/dev/shm")


def checkpoints_of(folder: Path) -> Path:
    return run_folder(folder, "gpt2") / "checkpoints"


def started(workspaces: Workspaces, folder: Path) -> Path:
    """A workspace whose run was killed when it had checkpoints of steps 3 and 6."""
    workspaces.fresh("gpt2", folder)
    assert strike_fork(launch("gpt2", folder), Moment("micro-batch", 15, 0.0)) == -signal.SIGKILL
    return folder


def assert_nothing_is_lost(folder: Path, workspaces: Workspaces) -> None:
    """The older checkpoints are good, and started again, now that the cause is gone, the run ends as ever."""
    assert faults_of_checkpoints(folder) == {}
    good = newest_good(checkpoints_of(folder))
    assert good is not None and find_fault(good) is None
    assert run("gpt2", folder) == 0, said(folder)[-1500:]
    assert leftovers(folder) == []
    assert remains(run_folder(folder, "gpt2")) == workspaces.remains_of("gpt2")


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
    assert run("gpt2", folder) == 0, said(folder)[-1500:]
    assert remains(run_folder(folder, "gpt2")) == workspaces.remains_of("gpt2")


# Another disk


@pytest.fixture
def memory_disk() -> Iterator[Path]:
    """A folder on a filesystem that is not TMPDIR's."""
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    if not MEMORY_DISK.is_dir() or MEMORY_DISK.stat().st_dev == temporary.stat().st_dev:
        pytest.skip(f"{MEMORY_DISK} is no filesystem of its own here")
    folder = MEMORY_DISK / f"faults-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_training_killed_on_another_disk_than_tmpdirs_ends_as_if_it_had_not_been(
    memory_disk: Path, workspaces: Workspaces, times: Times
) -> None:
    course = {"checkpoint": 6, "micro-batch": 6}
    kill_again_and_again("gpt2", workspaces, memory_disk, kills=times(few=1, storm=40), seed=7, course=course)


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


@pytest.mark.parametrize("part", ["tensors", "state"])
def test_a_disk_that_fills_up_during_a_save_costs_no_checkpoint(
    part: str, small_disk: Path, workspaces: Workspaces, times: Times
) -> None:
    draw = random.Random(31)
    for number in range(times(few=1, storm=10)):
        folder = started(workspaces, small_disk / str(number))
        tensors = (newest_good(checkpoints_of(folder)) or folder) / "tensors.safetensors"
        size = -(-tensors.stat().st_size // 4096) * 4096  # in whole blocks
        left = draw.randrange(4 * 4096, size, 4096) if part == "tensors" else size + draw.randrange(0, 3) * 4096
        running = Running(launch("gpt2", folder, waits_at="checkpoint"))
        assert running.reaches("checkpoint")
        filler = fill(small_disk, but=left)
        running.go_on()
        code = running.exit_code()
        assert is_told_in_one_line(folder, code), (left, code, said(folder)[-3000:])
        assert "No space left on device" in said(folder).splitlines()[-1]
        filler.unlink()
        assert_nothing_is_lost(folder, workspaces)
        shutil.rmtree(folder)


PAGE = 4096
SAVED = [
    ("tokenizer", "tokenizer saving", r"outputs/tokenizer/[^/]+/tokenizer\.json"),
    ("shards", "shard writing", r"outputs/shards/[^/]+/shards\.partial/(train|held_out)-00000\.(bin|documents\.npy)"),
    ("gpt2", "checkpoint", r"outputs/pretrain/[^/]+/checkpoints/step-00000003"),
    ("gpt2", "model saving", r"outputs/pretrain/[^/]+/model"),
    ("lora", "adapter saving", r"outputs/finetune/[^/]+/adapter"),
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
    assert run(command, folder) == 0, said(folder)[-1500:]
    assert leftovers(folder) == []
    assert remains(run_folder(folder, command)) == workspaces.remains_of(command)


# A folder that nothing can be written to


def set_read_only(folder: Path, *, to: bool) -> None:
    """Let nobody make or remove anything in a folder: root neither, whom permissions do not bind."""
    if os.geteuid():
        folder.chmod(0o555 if to else 0o755)
        return
    done = subprocess.run(["chattr", "+i" if to else "-i", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot make a folder read-only for root: {done.stderr.strip()}")


@pytest.mark.parametrize("what", ["checkpoints", "run"])
def test_a_folder_that_becomes_read_only_costs_no_checkpoint(what: str, workspaces: Workspaces, tmp_path: Path) -> None:
    folder = started(workspaces, tmp_path / "w")
    locked = checkpoints_of(folder) if what == "checkpoints" else run_folder(folder, "gpt2")
    running = Running(launch("gpt2", folder, waits_at="checkpoint"))
    assert running.reaches("checkpoint")
    set_read_only(locked, to=True)
    try:
        while True:
            running.go_on()
            if not running.reaches("checkpoint"):
                break
        code = running.exit_code()
    finally:
        set_read_only(locked, to=False)
    assert is_told_in_one_line(folder, code), (code, said(folder)[-3000:])
    assert_nothing_is_lost(folder, workspaces)


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


# Limits of the process

MUTE = {resource.RLIMIT_FSIZE: 1}  # the console is a file, too: there is nowhere left to say anything


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        ("open files", [{resource.RLIMIT_NOFILE: number} for number in range(3, 30)]),
        ("size of a file", [{resource.RLIMIT_FSIZE: size} for size in (50_000, 200_000)] + [MUTE]),
    ],
)
def test_a_limit_that_is_met_during_a_save_costs_no_checkpoint(
    kind: str, limits: list[dict[int, int]], workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    failed = 0
    for number, limit in enumerate(limits[: times(few=1, storm=len(limits))]):
        folder = started(workspaces, tmp_path / str(number))
        code = run("gpt2", folder, limits=limit)
        is_told = is_told_in_one_line(folder, code) or (limit == MUTE and code == 74)
        assert code == 0 or is_told, (limit, code, said(folder)[-3000:])
        failed += code != 0
        assert_nothing_is_lost(folder, workspaces)
        shutil.rmtree(folder)
    assert failed, f"no limit of the {kind} was met"
