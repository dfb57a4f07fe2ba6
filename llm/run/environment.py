"""What the environment says: which process of a launch this is, and what it keeps secret."""

import os
import re
from pathlib import Path

from llm.errors import ConfigError

# Names of credentials. Those that end in _token are, but for the tokens of a vocabulary: pad_token, mask_token, ...
SECRET_NAME = re.compile(
    r"(?i)(api|access|private|secret)_?key$|passw(or)?d$|secret$|credentials?$"
    r"|(^|[.+])token$|(?<!bos|cls|eos|pad|sep|unk|ask)_token$"
)

ANOTHER_LAUNCH = "TTUKTTAK_ANOTHER_LAUNCH"  # a file that a process of a launch makes to ask for one

# Keys by their shape: Hugging Face, OpenAI and the like, W&B (new and old), GitHub.
_KEY = re.compile(r"\b(hf_|sk-|wandb_v\d_|gh[oprsu]_|github_pat_)[\w-]{8,}|\b[0-9a-f]{40}\b")


def process_rank() -> int:
    """The global rank: set by torch.distributed.run, else by Slurm's srun, else 0."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def is_launched() -> bool:
    """Whether this process is one of a distributed launch, by launch_ranks, torch's launcher or Slurm's srun."""
    return "RANK" in os.environ or "SLURM_PROCID" in os.environ


def of_srun() -> bool:
    """Whether Slurm's srun started this process, and no launcher of torch's under it."""
    return "SLURM_PROCID" in os.environ and "RANK" not in os.environ


def launch_id() -> str | None:
    """What the processes of one distributed launch share, and another launch of the same run does not."""
    if os.environ.get("TORCHELASTIC_RUN_ID") == "none":  # torch's default, the same for every launch
        raise ConfigError("this launch has no id of its own. Add --standalone or --rdzv-id to torch.distributed.run.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"{os.environ['TORCHELASTIC_RUN_ID']}:{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if "SLURM_PROCID" in os.environ:
        return f"{os.environ.get('SLURM_JOB_ID')}:{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return None


def ask_for_another_launch() -> None:
    """Tell launch_ranks, if it started this process, to start all of them again once they have ended."""
    if path := os.environ.get(ANOTHER_LAUNCH):
        Path(path).touch()


def secrets() -> list[str]:
    """The values of environment variables that are named like credentials."""
    return [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]


def without_secrets(argument: str) -> str:
    """A command-line argument with *** in place of what looks like a credential, by its key or by its value."""
    key, equals, _ = argument.partition("=")
    if equals and SECRET_NAME.search(key):
        return f"{key}=***"
    for secret in secrets():
        argument = argument.replace(secret, "***")
    return _KEY.sub("***", argument)
