"""The one LightningModule: next-token loss, for pretraining and LoRA alike; they differ in the model and the rows."""

import math
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer

from llm import optimizer
from llm.config import OptimizerConfig
from llm.model import compiled, document_bounds, next_token_loss
from llm.optimizer import takes_found_inf
from llm.trainer.strategy import share_out, whole


class NextTokenModule(pl.LightningModule):
    """Trains the parameters of `model` that require gradients."""

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, *, max_steps: int, seed: int, compile: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        _ask_nothing_of_the_device(model)
        # not the model itself: validation and samples call it in shapes of their own, which need no graphs
        self._passes = compiled() if compile else None
        self.strict_loading = False  # a checkpoint holds what is trained; a frozen base comes from its own folder
        self.gradient_norm = torch.zeros(())  # of the last step that was not skipped, before clipping
        self.is_skipped = torch.zeros(())  # 1 where the last step was, its gradients not being finite, else 0
        self._config, self._max_steps, self._seed = config, max_steps, seed
        self._trained: list[nn.Parameter] = []  # kept, for a walk through the modules at each step takes its time

    def configure_model(self) -> None:
        """Share the model out where the strategy has the devices do so."""
        if self._device_mesh is not None:
            share_out(self.model, self._device_mesh["data_parallel"])

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Draw dropout from (seed, micro-batch, rank) alone: a resumed run draws what an uninterrupted one does."""
        seeds = np.random.SeedSequence([self._seed, batch_idx, self.global_rank])
        _seed(int(seeds.generate_state(1, np.uint64)[0]), self.device)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Find where documents begin while the batch is in the host's memory: later a GPU would be waited for."""
        return batch | {"document_bounds": document_bounds(batch["position_ids"])}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, torch.Tensor]:
        """This micro-batch's part of the step's mean loss over labels.

        Lightning divides by the micro-batches of a step and averages over ranks; both are undone, so that every label
        of the step weighs the same, however unevenly labels fall on micro-batches and ranks. A loss that is not finite
        gives gradients that are not, on every rank, whatever the model's own would be.
        """
        nats, loss = next_token_loss(self.model, batch, passes=self._passes)
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        finite = torch.where(nats.detach().isfinite(), 1.0, math.nan)
        return {"loss": loss * finite * (parts / batch["num_labels"]), "nats": nats.detach()}

    def configure_optimizers(self) -> dict[str, Any]:
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        adamw, schedule = optimizer.build(self.model, self._config, max_steps=self._max_steps)
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip to the config's norm and keep the norm for the metrics; Lightning's own hook does not return it.

        Where it is not finite, the step is left out: by the optimizer itself, so that no host has to wait for the
        device, or for want of gradients, without which any optimizer of torch leaves weights and state alone.
        """
        norm = whole(nn.utils.clip_grad_norm_(self._trained, self._config.gradient_clip_norm).detach())
        self.is_skipped = (~norm.isfinite()).to(torch.float32)
        self.gradient_norm = torch.where(self.is_skipped > 0, self.gradient_norm.to(norm), norm)
        while isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        if takes_found_inf(optimizer):
            optimizer.found_inf = self.is_skipped  # type: ignore[attr-defined]
        elif self.is_skipped:
            optimizer.zero_grad(set_to_none=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the micro-batches of the steps that are done as this launch cuts them: it may have other devices."""
        self.gradient_norm = torch.tensor(checkpoint["gradient_norm"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            counts.update(ready=done, started=done, processed=done, completed=done - 1)  # saved as the last one ended

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained, the buffers, and what the next record may repeat."""
        checkpoint["gradient_norm"] = float(self.gradient_norm)
        frozen = {
            name for name, parameter in self.named_parameters(remove_duplicate=False) if not parameter.requires_grad
        }
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}


def _seed(seed: int, device: torch.device) -> None:
    """torch.manual_seed for the CPU and one device alone.

    torch's own writes down the stack of its caller for each kind of device that is not there, 0.7 ms at each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def _ask_nothing_of_the_device(model: nn.Module) -> None:
    """Leave out a warning of transformers about padding, for which it reads input_ids from the device at each step."""
    for part in model.modules():
        if hasattr(part, "warn_if_padding_and_no_attention_mask"):
            part.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
