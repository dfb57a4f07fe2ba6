"""run.json: who made a run, from what, when, with what result."""

import os
import platform
import shlex
import socket
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm.config.stages import StageConfig
from llm.credentials import as_recorded_text, without_secrets

PACKAGES = ("torch", "pytorch-lightning", "transformers", "tokenizers", "peft", "wandb", "hydra-core")


def provenance() -> dict[str, Any]:
    """Commit, versions, command line, working directory, host, process and start time of what runs here."""
    return {
        "started_at": now(),
        "commit": commit(),
        "command": shlex.join(without_secrets(argument) for argument in sys.argv),
        "directory": os.getcwd(),  # that the paths of config.yaml are seen from
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def recorded_config(config: StageConfig) -> dict[str, Any]:
    """A config as config.yaml has it: enums by their names, and for a credential what stands for it."""
    return {key: _recorded(value) for key, value in asdict(config).items()}


def _recorded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _recorded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_recorded(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return as_recorded_text(value) if isinstance(value, str) else value


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """The commit of this source tree, with `+` where files differ from it; None outside a git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "") if head.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
