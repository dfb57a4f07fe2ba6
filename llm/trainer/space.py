"""A model and how many checkpoints are kept -> whether the disk has room for them, before the first step."""

import shutil
from pathlib import Path

from torch import nn

from llm.config import TrainerConfig
from llm.errors import StorageError
from llm.trainer.checkpoint import PREFIX

STATES = 3  # of a parameter in a checkpoint: its value and AdamW's two moments


def require_space(checkpoints: Path, model: nn.Module, config: TrainerConfig, *, kept: int = 0) -> None:
    """Refuse to start what could not be saved; so many checkpoints are `kept` beside the newest and the best.

    Raises:
        StorageError: the disk has less free than the checkpoints still to come and the finished model take.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    number = config.keep_checkpoints + config.keep_best + kept + 1  # the new one is written before an old one goes
    to_come = max(1, number - len(list(checkpoints.glob(f"{PREFIX}*"))))
    needed = (to_come * STATES + 1) * trained
    free = shutil.disk_usage(checkpoints.parent).free
    if free < needed:
        raise StorageError(
            f"{checkpoints.parent}: {_gigabytes(free)} are free on the disk, but {to_come} checkpoints of "
            f"{_gigabytes(STATES * trained)} and the model take {_gigabytes(needed)}. Free some, lower "
            "trainer.keep_checkpoints, or set outputs to a folder on another disk."
        )


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"
