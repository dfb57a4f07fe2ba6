"""run.json: who made a run, from what, when, with what result."""

import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm.run.environment import SECRET_NAME, secrets

PACKAGES = ("torch", "pytorch-lightning", "transformers", "tokenizers", "peft", "wandb", "hydra-core")


def provenance() -> dict[str, Any]:
    """Commit, versions, command line, host, process and start time of what runs here."""
    return {
        "started_at": now(),
        "commit": commit(),
        "command": shlex.join(without_secrets(argument) for argument in sys.argv),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


# Keys by their shape: Hugging Face, OpenAI and the like, W&B (new and old), GitHub.
_KEY = re.compile(r"\b(hf_|sk-|wandb_v\d_|gh[oprsu]_|github_pat_)[\w-]{8,}|\b[0-9a-f]{40}\b")


def without_secrets(argument: str) -> str:
    """A command-line argument with *** in place of what looks like a credential, by its key or by its value."""
    key, equals, _ = argument.partition("=")
    if equals and SECRET_NAME.search(key):
        return f"{key}=***"
    for secret in secrets():
        argument = argument.replace(secret, "***")
    return _KEY.sub("***", argument)


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
