"""The rows of a step on one device -> how many of them go through the model at once: as many as its memory holds.

Where nobody set a size, a GPU is tried before the first step. Where memory runs out at a later step, the step is done
again from the weights it began with, on the same rows, in more and smaller parts: its loss is the same up to the order
of sums; dropout, which is drawn for each part, is another draw.
"""

import json
import traceback
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from llm.data import EvaluationBatches, TrainingBatches
from llm.errors import ShortOfMemoryError, StoppedError
from llm.run import ask_for_another_launch, log, write_json
from llm.trainer.memory import is_out_of_memory, release
from llm.trainer.module import NextTokenModule
from llm.trainer.saving import Saving
from llm.trainer.strategy import SharedOutStrategy

FILE = "micro_batch.json"  # in a run's folder: a size that was found or reduced, with which the run goes on
OF_THE_OPTIMIZER = 2  # values that it keeps of each parameter: AdamW's moments
RESERVE = 0.05  # of a GPU's memory: what comes and goes between steps, and what fragments


class MicroBatches(pl.Callback):
    """Finds the size where none is given, and takes a smaller one where memory runs out."""

    def __init__(
        self,
        folder: Path,
        batches: TrainingBatches,
        held_out: EvaluationBatches,
        *,
        asked: int | None,
        is_tried: bool,
        sequence_length: int,
        saving: Saving,
    ) -> None:
        self._folder, self._batches, self._held_out = folder, batches, held_out
        self._rows = batches.rows_per_step
        self._asked, self._is_tried, self._sequence_length = asked, is_tried, sequence_length
        self._saving = saving
        self._world_size = 1
        self._is_mid_step = False
        self.is_reduced = False  # memory ran out, and the next attempt will take fewer rows at once

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._world_size = trainer.world_size
        if not self._is_tried:
            return
        assert isinstance(pl_module, NextTokenModule)
        size = self._find(trainer, pl_module)
        log.info(
            "%d rows go through the model at once, of the %d of a step on a device (tried; "
            "trainer.micro_batch_size sets it)",
            size,
            self._rows,
        )
        self._batches.micro_batch_size = self._held_out.batch_size = size
        trainer.accumulate_grad_batches = self._batches.micro_batches_per_step
        if trainer.is_global_zero:
            keep_size(self._folder, rows=self._rows, asked=self._asked, size=size)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._is_mid_step = True

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._is_mid_step = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep a smaller size, and, on a device of its own, the state as the step began with it.

        Of several devices those that had memory enough fail as well, for want of an answer from the one that had not.
        """
        kept = kept_size(self._folder, rows=self._rows, asked=self._asked)
        size = self._batches.micro_batch_size
        if trainer.world_size > 1 and kept is not None and kept < size:
            self.is_reduced = True
        if not is_out_of_memory(exception) or not self._is_mid_step or (fewer := smaller(self._rows, size)) is None:
            return
        log.warning(
            "memory ran out in step %d with %d rows at once: from now on %d, in %d parts a step, whose rows and loss "
            "stay what they were",
            trainer.global_step + 1,
            size,
            fewer,
            self._rows // fewer,
        )
        keep_size(self._folder, rows=self._rows, asked=self._asked, size=fewer)
        self.is_reduced = True
        if trainer.world_size == 1:
            traceback.clear_frames(exception.__traceback__)  # they hold the activations
            pl_module.zero_grad(set_to_none=True)
            release(trainer.strategy.root_device)
            self._saving.save_as_it_is(trainer, pl_module)

    def explain(self, error: Exception) -> None:
        """Return where the same process can go on with fewer rows at once; else raise, and say why.

        Raises:
            StoppedError: several processes have to begin anew; launch_ranks does that by itself.
            ShortOfMemoryError: there is nothing left to reduce.
        """
        if self.is_reduced and self._world_size == 1:
            return
        if self.is_reduced:
            ask_for_another_launch()
            raise StoppedError(
                "a device ran out of memory; the next start takes fewer rows at once, and goes on from the last "
                "checkpoint. Start the same command again."
            ) from error
        if not is_out_of_memory(error):
            raise error
        if self._is_mid_step:
            raise short_of_memory(self._sequence_length) from error
        size = self._batches.micro_batch_size
        fewer = f"Set trainer.micro_batch_size below {size}, or choose" if size > 1 else "Choose"
        raise ShortOfMemoryError(
            f"the device ran out of memory outside the passes of a training step. {fewer} a smaller model."
        ) from error

    def _find(self, trainer: pl.Trainer, module: NextTokenModule) -> int:
        """The first of the sizes, from large to small, that every device has memory for."""
        device = trainer.strategy.root_device
        module.model.to(device)
        size: int | None = self._rows
        while size is not None and not self._fits(trainer, module, size, device):
            size = smaller(self._rows, size)
        everywhere = trainer.strategy.reduce(torch.tensor(size or 0, device=device), reduce_op="min")
        if isinstance(trainer.strategy, SharedOutStrategy):  # it takes less memory than what was tried
            module.model.cpu()
            return max(1, int(torch.as_tensor(everywhere)))
        if not (found := int(torch.as_tensor(everywhere))):
            raise short_of_memory(self._sequence_length)
        return found

    def _fits(self, trainer: pl.Trainer, module: NextTokenModule, size: int, device: torch.device) -> bool:
        """Forward and backward of rows without padding, beside what training will hold besides."""
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                beside = torch.empty(_bytes_beside(module, device), dtype=torch.uint8, device=device)
                batch = module.on_before_batch_transfer(_full_rows(size, self._sequence_length), 0)
                batch = trainer.strategy.batch_to_device(batch, device)
                with trainer.precision_plugin.train_step_context():
                    loss = module.training_step(batch, 0)["loss"]
                torch.autograd.backward(loss)
                del beside
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            return False
        finally:
            module.zero_grad(set_to_none=True)
            release(device)


def smaller(rows: int, size: int) -> int | None:
    """The largest divisor of `rows` that is at most half of `size`; None if there is none."""
    return max((part for part in range(1, size // 2 + 1) if rows % part == 0), default=None)


def kept_size(folder: Path, *, rows: int, asked: int | None) -> int | None:
    """The size that a run goes on with, where it shares its steps out as it did."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return int(kept["size"]) if (kept["rows"], kept["asked"]) == (rows, asked) else None


def keep_size(folder: Path, *, rows: int, asked: int | None, size: int) -> None:
    write_json(folder / FILE, {"rows": rows, "asked": asked, "size": size})


def short_of_memory(sequence_length: int) -> ShortOfMemoryError:
    return ShortOfMemoryError(
        f"the device's memory does not hold one row of data.sequence_length={sequence_length}. Lower it, choose a "
        "smaller model, or share the model out over more devices with trainer.strategy=fsdp."
    )


def _bytes_beside(module: NextTokenModule, device: torch.device) -> int:
    state = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad) * OF_THE_OPTIMIZER
    if device.type != "cuda":
        return state
    return state + int(RESERVE * torch.cuda.get_device_properties(device).total_memory)


def _full_rows(size: int, sequence_length: int) -> dict[str, Any]:
    ids = torch.zeros(size, sequence_length, dtype=torch.int64)  # (rows, seq)
    positions = torch.arange(sequence_length).expand(size, -1)
    return {"input_ids": ids, "labels": ids, "position_ids": positions, "num_labels": size * sequence_length}
