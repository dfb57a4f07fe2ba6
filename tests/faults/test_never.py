"""reuse=never acts once for a command: a requeue of it goes on, and what it was to replace is not lost before that."""

import shutil
import signal
from pathlib import Path

from tests.faults.harness import Moment, Workspaces, launch, leftovers, remains, run_folder, said, strike_fork

ON_SLURM = {"SLURM_JOB_ID": "7"}


def finished(workspaces: Workspaces, folder: Path) -> Path:
    """A copy of a workspace in which the command was run to its end."""
    return Path(shutil.copytree(workspaces.after("gpt2"), folder))


def test_a_requeue_with_reuse_never_goes_on_from_its_checkpoint(workspaces: Workspaces, tmp_path: Path) -> None:
    folder = finished(workspaces, tmp_path / "w")
    first = launch("gpt2", folder, "reuse=never", environment=ON_SLURM)
    assert strike_fork(first, Moment("micro-batch", 21, 0.0)) == -signal.SIGKILL
    assert not (run_folder(folder, "gpt2") / "model").exists(), said(folder)
    requeued = launch("gpt2", folder, "reuse=never", environment=ON_SLURM | {"SLURM_RESTART_COUNT": "1"})
    assert strike_fork(requeued, Moment("model saving", 2, 0.0)) == 0, said(folder)[-1500:]  # there is no second one
    assert said(folder).count("going on from outputs/pretrain/") == 1, said(folder)[-3000:]
    assert remains(run_folder(folder, "gpt2")) == workspaces.remains_of("gpt2")


def test_a_kill_before_the_first_checkpoint_leaves_what_reuse_never_was_to_replace(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    folder = finished(workspaces, tmp_path / "w")
    killed = launch("gpt2", folder, "reuse=never")
    assert strike_fork(killed, Moment("micro-batch", 2, 0.0)) == -signal.SIGKILL
    assert strike_fork(launch("gpt2", folder), Moment("micro-batch", 1, 0.0)) == 0, said(folder)[-1500:]
    assert f"reused {run_folder(folder, 'gpt2').relative_to(folder)} (made" in said(folder), said(folder)[-1500:]
    assert (remains(run_folder(folder, "gpt2")), leftovers(folder)) == (workspaces.remains_of("gpt2"), [])
