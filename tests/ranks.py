"""Cases -> trainings, one after the other in the processes of one launch: a process that loads torch takes seconds."""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from safetensors.torch import save_file
from torch import nn

from llm import errors
from llm.config.data import Packing
from llm.config.training import Algorithm, Architecture, OptimizerConfig, Strategy
from llm.config.tuning import LoraConfig, Method
from llm.data.rows import TokenRows
from llm.model import add_lora
from llm.run import launch
from llm.trainer.fit import Fit, fit
from tests.test_data_rows import write_rows
from tests.test_micro_batch import short_of
from tests.test_trainer import LENGTH, VOCAB, model_of, run_interrupted, task, weights

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
CHANGES |= {"os.utime", "shutil.rmtree"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training, small and quick; what it leaves is in `folder`."""

    folder: str
    architecture: str = "gpt2"
    method: str | None = None  # of LoRA; None: every weight is trained
    pad_vocab_to_multiple_of: int | None = None
    packing: str | None = None  # None: random rows with unequal numbers of labels
    algorithm: str = "adamw"
    strategy: str = "auto"
    micro_batch_size: int = 1
    max_steps: int = 6
    stop_after: int | None = None  # steps of this launch, by a signal
    most_rows: int | None = None  # that the last rank has memory for, from the fifth step on

    def model(self) -> nn.Module:
        base = model_of(Architecture[self.architecture], pad_vocab_to_multiple_of=self.pad_vocab_to_multiple_of)
        if self.method is None:
            return base
        return add_lora(base, LoraConfig(method=Method[self.method], rank=2, alpha=4))

    def task(self, *, devices: int) -> Fit:
        slow = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, algorithm=Algorithm[self.algorithm])
        made = task(
            Path(self.folder),
            model=self.model(),
            max_steps=self.max_steps,
            batch_size=8,
            held_out=7,  # three batches of 3, 3 and 1 row: the ranks cannot have as many each
            optimizer=slow,
            micro_batch_size=self.micro_batch_size,
            devices=devices,
            strategy=Strategy[self.strategy],
        )
        return replace(made, train_rows=unequal_rows(Path(self.folder), self.packing)) if self.packing else made


def unequal_rows(folder: Path, packing: str) -> TokenRows:
    """Documents from one token to three rows long; each process writes shards of its own."""
    folder = folder / f"rows-{os.environ.get('RANK', '0')}"
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(3)
    documents = [draw.integers(2, VOCAB, size=size).tolist() for size in draw.integers(1, 3 * LENGTH, size=30)]
    return write_rows(folder, [documents], sequence_length=LENGTH, packing=Packing[packing])


def run_case(case: Case, *, devices: int = 1) -> None:
    """Train; the weights are left beside the run."""
    made = case.task(devices=devices)
    if case.most_rows and os.environ["RANK"] == str(devices - 1):
        short_of(made.model, most=case.most_rows, from_step=3)  # of 8 rows each, and this rank has half
    if case.stop_after:
        with pytest.MonkeyPatch.context() as patch:
            run_interrupted(made, case.stop_after, "signal", patch)
        return
    fit(made)
    if os.environ.get("RANK", "0") == "0":
        save_file(weights(made.model), Path(case.folder) / "weights.safetensors")


def run_on_ranks(cases: list[Case], folder: Path, *, devices: int = 2) -> None:
    """The cases in this many processes, in turn."""
    listed = folder / "cases.json"
    listed.write_text(json.dumps([asdict(case) for case in cases]), encoding="utf-8")
    script = folder / "train.py"
    root = str(Path(__file__).parents[1])
    script.write_text(
        f"import sys; sys.path.insert(0, {root!r})\nfrom tests.ranks import main\nmain({str(listed)!r}, {devices})\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "TRAIN", script)
        patch.setenv("OMP_NUM_THREADS", "1")
        told = folder / "told"
        told.mkdir(exist_ok=True)
        launch.launch_ranks([], devices=devices, folder=told)


def record_changes(under: Path, into: Path) -> None:
    """Have each change that this process makes in a folder be a line in another file, from now on."""
    lines = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in CHANGES:
            return
        paths = [os.fsdecode(each) for each in arguments if isinstance(each, str | bytes | os.PathLike)]
        if event == "os.mkdir" and os.path.isdir(paths[0]):
            return
        if any(path.startswith(f"{under}/") for path in paths):
            os.write(lines, f"{event} {paths}\n".encode())

    sys.addaudithook(look)


def main(listed: str, devices: int) -> None:
    """What each process does."""
    if (rank := os.environ["RANK"]) != "0":
        folder = Path(listed).parent
        record_changes(folder, folder.with_name(f"{folder.name}-changes-{rank}.txt"))
    sys.modules["llm.trainer.fit"].peak_flops = lambda *_: (1e9, "assumed")  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    _TrainingEpochLoop._broadcast_sigterm_tensor = _asked  # type: ignore[method-assign]
    with errors.one_line_errors(), launch.in_group():
        for case in json.loads(Path(listed).read_text(encoding="utf-8")):
            run_case(Case(**case), devices=devices)


def _asked(_loop: _TrainingEpochLoop) -> None:
    raise AssertionError("Lightning asked the ranks about SIGTERM, for which each micro-batch waits for the device")
