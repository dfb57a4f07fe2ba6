"""The only place where environment variables are read: which process of a launch this is."""

import os


def process_rank() -> int:
    """The global rank: set by torch.distributed.run, else by Slurm's srun, else 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def launch_id() -> str | None:
    """What the processes of one distributed launch share, and another launch of the same run does not."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"{os.environ['TORCHELASTIC_RUN_ID']}:{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if "SLURM_PROCID" in os.environ:
        return f"{os.environ.get('SLURM_JOB_ID')}:{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return None
