"""What the benchmarks share: configs, models, a training by fit(), the memory of a process, and the printed table."""

import argparse
import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.table import Table

from llm.config.compose import composed, from_hydra
from llm.config.data import DataConfig, DataKind
from llm.config.training import Accelerator, ModelConfig, OptimizerConfig, Precision, ResidualPrecision, TrainerConfig
from llm.data.rows import Rows
from llm.logger.live import RunLogger
from llm.model import build
from llm.run.console import log, output_console
from llm.tokenizer.folder import Special
from llm.trainer.fit import Fit, fit

ROOT = Path(__file__).parents[1]
NEVER = 10**9  # steps


def options(about: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the module's docstring."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The first column says what a row is of; the others are numbers."""
    table = Table(title=title or None, highlight=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    output_console().print(table)


def config_of(*overrides: str) -> Any:
    """What `python train.py` makes of them."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return from_hydra(compose("config", overrides=list(overrides)))


def build_model(name: str, vocab_size: int) -> Any:
    """A choice of conf/model with random weights."""
    config = ModelConfig(**composed([f"model={name}"])["model"])
    return build(config, vocab_size=vocab_size, special=Special(bos_id=0, eos_id=0, pad_id=1, tokens=()))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_by_fit(
    model: Any,
    rows: tuple[Rows, Rows],  # to train on, to validate on
    *,
    sequence_length: int,
    batch_size: int,
    steps: int,
    optimizer: OptimizerConfig,
    precision: Precision,
    micro_batch_size: int | None = None,  # None: of one forward pass for each step
    compile: bool = False,
    config: Any = None,  # of the model; None: its own
    seed: int = 0,
    on: torch.device | None = None,
) -> None:
    """fit(), as a stage calls it: loader, recorder, validation at both ends, a checkpoint at the last."""
    accelerator = Accelerator.gpu if (on or device()).type == "cuda" else Accelerator.cpu
    with tempfile.TemporaryDirectory() as scratch:
        fit(
            Fit(
                model=model,
                train_rows=rows[0],
                held_out_rows=rows[1],
                data=DataConfig(
                    name="x", kind=DataKind.text, path="x", sequence_length=sequence_length, batch_size=batch_size
                ),
                optimizer=optimizer,
                trainer=TrainerConfig(
                    max_steps=steps,
                    precision=precision,
                    residual_precision=ResidualPrecision.bf16 if accelerator is Accelerator.gpu else None,
                    compile=compile,
                    accelerator=accelerator,
                    micro_batch_size=micro_batch_size or batch_size,
                    validate_every_steps=NEVER,
                    checkpoint_every_steps=NEVER,
                ),
                seed=seed,
                folder=Path(scratch),
                logger=RunLogger(),
                sample=list,
                label="benchmark",
            )
        )


def asked_of_trainer(scratch: str, *, steps: int, batch_size: int, precision: Precision) -> dict[str, Any]:
    """What TrainingArguments and what is derived from it are told: the contest's own settings, and to write nothing."""
    return {
        "output_dir": scratch,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "bf16": precision is Precision.bf16,
        "use_cpu": device().type == "cpu",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def be_quiet() -> None:
    from transformers.utils.logging import set_verbosity_error

    warnings.filterwarnings("ignore")
    set_verbosity_error()
    log.setLevel(logging.ERROR)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives that is called in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def begin_peak() -> int:
    """Have the kernel's mark of the peak begin again, after what torch and Lightning need whatever the model is.

    getrusage would not do: its peak is inherited from the process that starts this one.
    """
    torch.ones(512, 512).matmul(torch.ones(512, 512))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status_bytes("VmRSS")


def status_bytes(key: str) -> int:
    """A size that Linux says of this process: VmRSS, what it has in RAM; VmHWM, the most of that since the mark."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
