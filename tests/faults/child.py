"""A launch -> train.py run to its end in this process, as the command line runs it, its moments told to the harness.

The harness loads this module in a server that is forked for each launch: torch, transformers and Lightning take seconds
to import, and a launch that is about to be killed takes one second in all.
"""

import hashlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytorch_lightning  # noqa: F401  # loaded for the launches, as are the stages below
import torch
from peft import PeftModel

import llm.export.card
import llm.model
import llm.stage.export
import llm.stage.finetune
import llm.stage.pretrain
import llm.stage.shards
import llm.stage.tokenizer
from llm.trainer.checkpoint import CheckpointFolders
from llm.trainer.module import NextTokenModule

TRAIN = Path(__file__).parents[2] / "train.py"

# What a fault can be aimed at: the name that the harness waits for -> the call that it is the beginning of.
MOMENTS: dict[str, tuple[Any, str]] = {
    "tokenizer training": (llm.stage.tokenizer, "train"),
    "tokenizer saving": (llm.stage.tokenizer, "save"),
    "shard writing": (llm.stage.shards, "write_shards"),
    "model building": (llm.model, "build"),
    "base loading": (llm.model, "load"),
    "micro-batch": (import_module("llm.trainer.module"), "next_token_loss"),
    "validation": (import_module("llm.trainer.module"), "evaluate"),
    "sampling": (llm.model, "generate"),
    "checkpoint": (CheckpointFolders, "save_checkpoint"),
    "model saving": (llm.model, "save"),
    "adapter saving": (PeftModel, "save_pretrained"),
    "card writing": (llm.export.card, "card"),  # the last of an export's files
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of a command."""

    overrides: list[str]
    folder: Path  # where it is typed: outputs/ lies here
    environment: dict[str, str] = field(default_factory=dict)
    pauses: dict[str, float] = field(default_factory=dict)  # moment -> seconds that it is made to last longer
    waits_at: str | None = None  # the moment at which it waits to be told to go on, each time
    console_name: str = "console.txt"
    keep_rows: bool = False  # write the digest of every row that is trained on to rows-<rank>.jsonl

    @property
    def console(self) -> Path:
        """What its processes say on stdout and stderr."""
        return self.folder / self.console_name


def main(launch: Launch, told: Connection) -> None:
    """What the forked process does; it ends with the exit code that the shell would see."""
    _say_to(launch.console)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where they run under nohup
    multiprocessing.set_start_method("fork", force=True)  # of data workers: what a command of its own has on Linux
    os.chdir(launch.folder)
    os.environ.update(launch.environment)
    import_module("llm.trainer.fit").peak_flops = lambda *_: (1e9, "assumed")  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    for moment, (owner, name) in MOMENTS.items():
        setattr(owner, name, _telling(moment, getattr(owner, name), launch, told))
    if launch.keep_rows:
        NextTokenModule.training_step = _keeping_rows(NextTokenModule.training_step)  # type: ignore[method-assign]
    sys.argv = [str(TRAIN), *launch.overrides]
    runpy.run_path(str(TRAIN), run_name="__main__")


def _say_to(console: Path) -> None:
    descriptor = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def _telling(moment: str, call: Callable[..., Any], launch: Launch, told: Connection) -> Callable[..., Any]:
    @wraps(call)
    def telling(*args: Any, **kwargs: Any) -> Any:
        told.send(moment)
        if moment == launch.waits_at:
            told.recv()
        time.sleep(launch.pauses.get(moment, 0.0))
        return call(*args, **kwargs)

    return telling


def _keeping_rows(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def keeping_rows(module: Any, batch: list[dict[str, Any]], batch_idx: int) -> Any:
        rows = [row for micro_batch in batch for row in micro_batch["input_ids"]]
        digests = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in rows]
        with open(f"rows-{module.global_rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": module.trainer.global_step, "rows": digests}) + "\n")
        return call(module, batch, batch_idx)

    return keeping_rows
