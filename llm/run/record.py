"""run.json: who made a run, from what, when, with what result; read only where it is what was written."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm.config.stages import StageConfig
from llm.credentials import as_recorded_text, without_secrets
from llm.errors import DamagedError
from llm.run.files import digest_of, write_json

PACKAGES = ("torch", "pytorch-lightning", "transformers", "tokenizers", "peft", "wandb", "hydra-core")
STATUSES = ("running", "done", "failed")
OWN_DIGEST = "record_digest"  # of all else that run.json says
KEY_DIGITS = 8


def read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None if there is none.

    Raises:
        DamagedError: it cannot be read, or is not what was written.
    """
    path = folder / "run.json"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        record = json.loads(content)
        fault = _fault(record)
    except (ValueError, RecursionError) as error:
        fault = f"it cannot be read ({error})"
    if fault:
        raise DamagedError(f"{path}: {fault}. Put it back as it was, or remove the folder to make the run again.")
    return dict(record)


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write run.json with a digest of all that it says; gives what is then on the disk."""
    said = json.loads(json.dumps(record, allow_nan=False))
    said.pop(OWN_DIGEST, None)
    said[OWN_DIGEST] = digest_of(said)
    write_json(folder / "run.json", said)
    return dict(said)


def recorded_place(folder: Path, outputs: str | Path) -> str:
    """A folder as run.json names it: from the outputs folder if it lies in there, so that both can be moved."""
    absolute, root = folder.absolute(), Path(outputs).resolve()
    inside = next((path for path in absolute.parents if path.resolve() == root), None)
    return str(absolute.relative_to(inside) if inside else absolute)


def _fault(record: Any) -> str | None:
    """What shows that a record is not what was written; None if nothing does."""
    if not isinstance(record, dict) or not {"stage", "name", "key", "status"} <= record.keys():
        return "it does not say what run it is of"
    if record["status"] not in STATUSES:
        return f"its status is {record['status']!r}, which is none of {', '.join(STATUSES)}"
    if OWN_DIGEST in record and record[OWN_DIGEST] != digest_of({k: v for k, v in record.items() if k != OWN_DIGEST}):
        return f"what it says is not what was written, by its own {OWN_DIGEST}"
    if "identity" in record and record["key"] != key_of(record["identity"]):
        return f"its key {record['key']} is not that of its identity"
    return None


def key_of(identity: dict[str, Any]) -> str:
    """The first hex digits of the SHA-256 of what determines a run."""
    return digest_of(identity)[:KEY_DIGITS]


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) for each leaf in which two nested dicts differ; None where one lacks it."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new


def provenance() -> dict[str, Any]:
    """Commit, versions, command line, working directory, host, process and start time of what runs here."""
    return {
        "started_at": now(),
        "commit": commit(),
        "command": shlex.join(without_secrets(argument) for argument in sys.argv),
        "directory": os.getcwd(),  # that the paths of config.yaml are seen from
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
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
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except OSError:  # no git on this machine
        return None
    has_own = (root / ".git").exists()  # else it may lie in somebody's checkout
    return head.stdout.strip() + ("+" if changed.stdout else "") if has_own and not head.returncode else None
