"""trainer.compile -> the certainty, before any training, that torch.compile has a compiler and a model for it."""

import os
import shutil
from importlib.util import find_spec
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from llm.config import Accelerator, TrainerConfig
from llm.errors import ConfigError
from llm.model import compiled, document_bounds, next_token_loss

COMPILERS = ("g++", "clang++")  # torch looks for these, and for $CXX
DOCUMENTS = (3, 5)  # tokens of the two in the row that is traced
REASON_LENGTH = 200  # characters, of pages


def require_compiler(config: TrainerConfig) -> None:
    """Refuse trainer.compile where it would fail at the first step.

    Raises:
        ConfigError: there is no C++ compiler, or, for a GPU, no triton.
    """
    if not config.compile:
        return
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name):
        raise ConfigError(
            "trainer.compile=true needs a C++ compiler, but there is no g++ or clang++. Install one, set the "
            "environment variable CXX to one, or set trainer.compile=false."
        )
    if config.accelerator is Accelerator.gpu and find_spec("triton") is None:
        raise ConfigError(
            "trainer.compile=true needs the package triton on a GPU, but it is not installed. Install torch with CUDA, "
            "or set trainer.compile=false."
        )


def require_one_graph(model: Any) -> None:
    """Trace the loss that training takes, and compile nothing: seconds, where the first step would take a minute.

    Raises:
        ConfigError: it does not make one graph.
    """
    positions = torch.cat([torch.arange(size) for size in DOCUMENTS])[None]
    bounds, device = document_bounds(positions), next(model.parameters()).device
    ids = torch.zeros_like(positions, device=device)
    assert bounds is not None  # there are two documents
    row = {"input_ids": ids, "labels": ids, "position_ids": positions.to(device), "document_bounds": bounds.to(device)}
    was_training = model.training
    torch.compiler.reset()
    try:
        next_token_loss(model.train(), row, passes=compiled(backend="eager"))
    except TorchDynamoException as error:
        raise _refusal(error) from error
    finally:
        model.train(was_training)
        torch.compiler.reset()  # the shapes seen here must not make those of the training symbolic


def refuse_what_does_not_compile(error: Exception) -> None:
    """Say in one line what torch.compile says in pages, where it is what failed in the course of a training.

    Raises:
        ConfigError: it is.
    """
    if isinstance(error, TorchDynamoException):
        raise _refusal(error) from error


def _refusal(error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:REASON_LENGTH].removesuffix(".")
    return ConfigError(f"trainer.compile=true: torch.compile fails at this model: {reason}. Set trainer.compile=false.")
