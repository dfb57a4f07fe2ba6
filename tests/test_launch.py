"""A run on several devices: signals and exit codes get through, and no process is left."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm.errors import LaunchError, StoppedError
from llm.run import launch
from tests.patience import PATIENCE

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path({folder!r}), int(os.environ["RANK"])
(folder / f"rank-{{rank}}").write_text(f"{{os.getpid()}} {{sys.argv[1:]}} " + " ".join(
    os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")))
{body}
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Have `body` run in place of train.py, in each rank."""

    def set_up(body: str) -> Path:
        (tmp_path / "told").mkdir()
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.format(folder=str(tmp_path), body=body), encoding="utf-8")
        monkeypatch.setattr(launch, "TRAIN", script)
        return tmp_path

    return set_up


def pids(folder: Path) -> list[int]:
    """Of the ranks that have said theirs: a file that is being written is empty."""
    said = [path.read_text().split() for path in sorted(folder.glob("rank-*"))]
    return [int(words[0]) for words in said if words]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_rank_gets_the_job_and_its_place_again_where_one_asks_for_it(ranks):
    folder = ranks(
        """
with open(folder / f"started-{rank}", "a") as file:
    file.write("once ")
again = folder / "again"
if rank == 1 and not again.exists():
    again.touch()
    Path(os.environ["TTUKTTAK_JOB"], "again").touch()
    sys.exit(75)
"""
    )
    launch.launch_ranks(["name=가"], devices=3, folder=folder / "told")
    said = [path.read_text().split() for path in sorted(folder.glob("rank-*"))]
    assert [words[1:3] for words in said] == [["['name=가',", "'hydra.mode=RUN']"]] * 3
    assert [words[3:6] for words in said] == [[str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({words[6] for words in said}) == 1  # one launch
    assert [(folder / f"started-{rank}").read_text() for rank in range(3)] == ["once once "] * 3


def test_the_exit_code_of_the_first_that_fails_gets_through_and_no_other_is_left(ranks, monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.2)
    folder = ranks("sys.exit(74) if rank == 1 else time.sleep(600)")
    with pytest.raises(LaunchError, match="rank 1 ended first, with exit code 74; it says why above") as caught:
        launch.launch_ranks([], devices=2, folder=folder / "told")
    assert caught.value.exit_code == 74
    assert not any(map(is_alive, pids(folder)))  # the other one waited for a rank that is gone


def test_the_others_are_given_time_to_end(ranks):
    folder = ranks('sys.exit(75) if rank == 1 else time.sleep(1); (folder / "saved").touch()')
    with pytest.raises(StoppedError, match=r"rank 1 was stopped. Start the same command again to go on"):
        launch.launch_ranks([], devices=2, folder=folder / "told")
    assert (folder / "saved").exists()


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 was killed by SIGKILL, perhaps for want of memory"),
        ("sys.exit(65)", "rank 1 ended first, with exit code 65"),
    ],
)
def test_of_two_that_ended_the_one_is_named_that_the_other_could_not_do_without(ranks, monkeypatch, ends, said):
    folder = ranks(f"while not (folder / 'go').exists(): time.sleep(0.01)\n{ends} if rank == 1 else sys.exit(1)")
    pause = time.sleep

    def until_both_have_ended(seconds: float) -> None:
        """Between the first look and the second."""
        (folder / "go").touch()
        while len(pids(folder)) < 2 or any(map(is_alive, pids(folder))):
            pause(0.01)

    monkeypatch.setattr(time, "sleep", until_both_have_ended)
    with pytest.raises(LaunchError, match=said):
        launch.launch_ranks([], devices=2, folder=folder / "told")


@pytest.mark.parametrize(
    "said",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [::1]:1: Connection reset by peer.",
        "NCCL communicator was aborted: remote process exited or there was a network err",
    ],
)
def test_a_process_that_loses_another_says_so_in_one_line(said, monkeypatch):
    with pytest.raises(RuntimeError, match=r"gloo|NCCL"), launch.in_group():
        raise RuntimeError(said)  # of a process by itself it is another matter
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(LaunchError, match="rank 1: another process of this launch ended") as caught, launch.in_group():
        raise RuntimeError(said)
    assert caught.value.exit_code == 1
    with pytest.raises(RuntimeError, match="mine"), launch.in_group():
        raise RuntimeError("mine")


PARENT = """
import sys
from pathlib import Path
from llm.errors import one_line_errors
from llm.run import launch
launch.TRAIN = Path(sys.argv[1])
with one_line_errors():
    launch.launch_ranks([], devices=2, folder=Path(sys.argv[1]).with_name("told"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_is_passed_on_and_no_rank_outlives_its_parent(ranks, number):
    handler = f"signal.signal({int(number)}, lambda *_: sys.exit(75))\n" if number != signal.SIGKILL else ""
    folder = ranks(f"{handler}(folder / f'ready-{{rank}}').touch()\nwhile True: time.sleep(0.05)")
    root, train = str(Path(__file__).parents[1]), str(folder / "train.py")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, train], cwd=root, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(folder.glob("ready-*"))) == 2)
    left = pids(folder)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=PATIENCE)
    if number == signal.SIGKILL:
        wait_for(lambda: not any(map(is_alive, left)))
    else:
        assert parent.returncode == 75 and "was stopped. Start the same command again to go on." in said
        assert not any(map(is_alive, left))


def test_a_process_of_a_launch_starts_no_other(monkeypatch):
    assert launch.needs_launch(2) and not launch.needs_launch(1)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert launch.needs_launch(2)  # a batch script, whose tasks srun has yet to start
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert not launch.needs_launch(2)
