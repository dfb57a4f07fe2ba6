"""What the environment says: which process of a launch this is, who started it, and what the user wishes."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

JOB_FOLDER = "TTUKTTAK_JOB"  # where a process tells who started it which run it is at, and what became of it
ANOTHER_LAUNCH = "again"  # a file in it: launch_ranks is to start all of them again
COMMAND = "TTUKTTAK_COMMAND"  # which job of a sweep this is a start of, the same for each of them


def variables() -> dict[str, str]:
    """All of it, for a process that is started with it."""
    return dict(os.environ)


def process_rank() -> int:
    """The global rank: set by torch.distributed.run, else by Slurm's srun where it starts several, else 0."""
    return int(os.environ.get("RANK", os.environ["SLURM_PROCID"] if _is_one_of_srun() else "0"))


def local_rank() -> int:
    """The rank among the processes of this node, and so the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0") if _is_one_of_srun() else "0"))


def is_launched() -> bool:
    """Whether this process is one of a distributed launch, by launch_ranks, torch's launcher or Slurm's srun."""
    return "RANK" in os.environ or _is_one_of_srun()


def of_srun() -> bool:
    """Whether Slurm's srun started this process among others, and no launcher of torch's under it."""
    return _is_one_of_srun() and "RANK" not in os.environ


def launch_size() -> int | None:
    """The processes of the launch that this one is of, as far as its launcher says; None of a process by itself."""
    if "RANK" not in os.environ and _is_one_of_srun():
        return int(os.environ["SLURM_STEP_NUM_TASKS"])
    size = os.environ.get("WORLD_SIZE")
    return int(size) if size is not None and is_launched() else None


def launch_id() -> str | None:
    """What the processes of one distributed launch share, and another launch of the same run does not."""
    if os.environ.get("TORCHELASTIC_RUN_ID", "none") != "none":  # torch's default, the same for every launch
        return f"{os.environ['TORCHELASTIC_RUN_ID']}:{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if _is_one_of_srun():
        step = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ['SLURM_STEP_ID']}"
        return f"{step}:{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return None


def command_id() -> str | None:
    """What all the starts of one command share: a sweep's of a job, Slurm's of one that it requeues, a launcher's."""
    of_slurm = f"slurm {os.environ['SLURM_JOB_ID']}" if is_on_slurm() else None
    return os.environ.get(COMMAND) or of_slurm or os.environ.get("TORCHELASTIC_RUN_ID")


def may_go_on() -> bool:
    """Whether there may have been a start of this command before this one."""
    restarts = (os.environ.get(name) or "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return COMMAND in os.environ or any(int(times) for times in restarts)


def is_on_slurm() -> bool:
    """Whether Slurm manages this process: its SIGTERM comes again and again, and a SIGKILL when its patience ends."""
    return "SLURM_JOB_ID" in os.environ


def _is_one_of_srun() -> bool:
    """Whether srun started this process and others.

    A batch script has a SLURM_PROCID too, and the SLURM_NTASKS of what it may start, but no SLURM_STEP_ID.
    """
    return "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def job_folder() -> Path | None:
    """Where this process tells the sweep or the launch_ranks that started it how that goes; None if neither did."""
    return Path(folder) if (folder := os.environ.get(JOB_FOLDER)) else None


def ask_for_another_launch() -> None:
    """Tell launch_ranks, if it started this process, to start all of them again once they have ended."""
    if (folder := job_folder()) and not of_srun():
        (folder / ANOTHER_LAUNCH).touch()


def slurm_job_id() -> str:
    """The Slurm job that this process is in: of an element of an array too, which has a number of its own."""
    return os.environ["SLURM_JOB_ID"]


def complete_srun(loopback: str) -> None:
    """Have Lightning find what srun leaves out: tasks a node, and on a single node its address.

    It refuses srun --ntasks without --ntasks-per-node.
    """
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    per_node = int(os.environ["SLURM_STEP_NUM_TASKS"]) // nodes
    set_defaults({"SLURM_NTASKS_PER_NODE": str(per_node)} | ({"MASTER_ADDR": loopback} if nodes == 1 else {}))


def slurm_array_id() -> str:
    """That element by its array: 12_3."""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def slurm_node() -> str:
    """The name of this machine, as Slurm knows it."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


def agents_sweep() -> str | None:
    """The sweep of W&B that this process is one trial of: `wandb agent` started it."""
    return os.environ.get("WANDB_SWEEP_ID") or None


def agents_run_id() -> str | None:
    """By which that sweep finds the trial's metric."""
    return os.environ.get("WANDB_RUN_ID") if agents_sweep() else None


def agents_parameters() -> Path | None:
    """The file that has the trial's parameters."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    return Path(path) if path else None


def tracebacks_wanted() -> bool:
    """Whether the user asked for tracebacks, as Hydra lets them: HYDRA_FULL_ERROR=1."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def visible_gpus() -> str | None:
    """The GPUs that processes started here may use, as CUDA reads them; None: all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def set_variables(variables: Mapping[str, str], *, only: bool = False) -> None:
    """Have libraries, and processes that are started here, find these; `only` takes all others away."""
    if only:
        os.environ.clear()
    os.environ.update(variables)


def set_defaults(variables: Mapping[str, str]) -> None:
    """Have libraries find these, unless the user says otherwise."""
    set_variables({**variables, **os.environ})


@contextmanager
def with_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """The same while the block runs."""
    before = dict(os.environ)
    set_variables(variables)
    try:
        yield
    finally:
        set_variables(before, only=True)
