"""A run on several devices: one process for each, started by torch's own launcher."""

import os
import subprocess
import sys
from pathlib import Path

from llm.errors import tracebacks_wanted

TRAIN = Path(__file__).parents[2] / "train.py"


def launch_ranks(overrides: list[str], *, devices: int) -> None:
    """Run train.py with the overrides of one job as `devices` processes, and wait for them.

    Lightning's own launcher would start the other ranks with this process's command line: in a multirun that is the
    whole sweep again.

    Raises:
        SystemExit: a process failed; it said why on the terminal.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    environment = dict(os.environ)
    if not tracebacks_wanted():
        environment.pop("HYDRA_FULL_ERROR", None)  # set by run_hydra for this process alone
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    status = subprocess.call([*command, str(TRAIN), *overrides, "hydra.mode=RUN"], env=environment)
    if status:
        raise SystemExit(status)


def needs_launch(devices: int) -> bool:
    """Whether a run on so many devices has yet to be given its processes."""
    return devices > 1 and not is_launched()


def is_launched() -> bool:
    """Whether this process is one of a distributed launch, by torch's launcher or Slurm's srun."""
    return "RANK" in os.environ or "SLURM_PROCID" in os.environ
