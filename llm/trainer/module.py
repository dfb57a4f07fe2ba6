"""The one LightningModule: next-token loss, for pretraining and LoRA alike; they differ in the model and the rows."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from llm import optimizer
from llm.config import OptimizerConfig
from llm.model import next_token_nats


class NextTokenModule(pl.LightningModule):
    """Trains the parameters of `model` that require gradients."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, *, max_steps: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.strict_loading = False  # a checkpoint holds what is trained; a frozen base comes from its own folder
        self.gradient_norm: torch.Tensor | None = None  # of the last step, before clipping
        self._config, self._max_steps, self._seed = config, max_steps, seed

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Draw dropout from (seed, micro-batch, rank) alone: a resumed run draws what an uninterrupted one does."""
        seeds = np.random.SeedSequence([self._seed, batch_idx, self.global_rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, torch.Tensor]:
        """This micro-batch's part of the step's mean loss over labels.

        Lightning divides by the micro-batches of a step and averages over ranks; both are undone, so that every label
        of the step weighs the same, however unevenly labels fall on micro-batches and ranks.
        """
        nats = next_token_nats(self.model, batch)
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return {"loss": nats * (parts / batch["num_labels"]), "nats": nats.detach()}

    def configure_optimizers(self) -> dict[str, Any]:
        adamw, schedule = optimizer.build(self.model, self._config, max_steps=self._max_steps)
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip to the config's norm and keep the norm for the metrics; Lightning's own hook does not return it."""
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.gradient_norm = nn.utils.clip_grad_norm_(trainable, self._config.gradient_clip_norm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the micro-batches of the steps that are done as this launch cuts them: it may have other devices."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            counts.update(ready=done, started=done, processed=done, completed=done - 1)  # saved as the last one ended

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained, and the buffers."""
        frozen = {
            name for name, parameter in self.named_parameters(remove_duplicate=False) if not parameter.requires_grad
        }
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
