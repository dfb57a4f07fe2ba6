"""trainer.compile -> the certainty that torch.compile has a compiler, and one line where it does not take a model."""

import shutil
from importlib.util import find_spec

from torch._dynamo.exc import TorchDynamoException

from llm.config.training import Accelerator, TrainerConfig
from llm.environment import cxx_compiler
from llm.errors import ConfigError

COMPILERS = ("g++", "clang++")  # torch looks for these, and for $CXX
REASON_LENGTH = 200  # characters, of pages


def require_compiler(config: TrainerConfig) -> None:
    """Refuse trainer.compile where it would fail at the first step.

    Raises:
        ConfigError: there is no C++ compiler, or, for a GPU, no triton.
    """
    if not config.compile:
        return
    if not any(shutil.which(name) for name in (cxx_compiler(), *COMPILERS) if name):
        raise ConfigError(
            "trainer.compile=true needs a C++ compiler, but there is no g++ or clang++. Install one, set the "
            "environment variable CXX to one, or set trainer.compile=false."
        )
    if config.accelerator is Accelerator.gpu and find_spec("triton") is None:
        raise ConfigError(
            "trainer.compile=true needs the package triton on a GPU, but it is not installed. Install torch with CUDA, "
            "or set trainer.compile=false."
        )


def refuse_what_does_not_compile(error: Exception) -> None:
    """Say in one line what torch.compile says in pages, where it is what failed in the course of a training.

    Raises:
        ConfigError: it is.
    """
    if isinstance(error, TorchDynamoException):
        reason = " ".join(str(error).split())[:REASON_LENGTH].removesuffix(".")
        raise ConfigError(
            f"trainer.compile=true: torch.compile fails at this model: {reason}. Set trainer.compile=false."
        ) from error
