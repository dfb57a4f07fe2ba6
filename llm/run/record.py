"""What a run says of itself: run.json, of who made it, from what, when, with what result; and metrics.jsonl, its truth.

run.json is read only where it is what was written; metrics.jsonl is followed line by line while it grows.
"""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm.config.stages import StageConfig
from llm.credentials import as_recorded_text, without_secrets
from llm.errors import DamagedError
from llm.run.files import digest_of, naming, write_json

Record = dict[str, Any]  # a line of metrics.jsonl: step, tokens, seconds, and what was measured
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
VALIDATION = "validation.jsonl"  # what a run of text was fed and what held-out text then cost, by blocks of documents
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


# metrics.jsonl


class MetricsLog:
    """The metrics of one run, appended line by line, so that another process can follow them."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        """Go on after the first `size` bytes; what an interrupted run wrote past its checkpoint is cut off.

        Raises:
            DamagedError: the file is shorter than that.
        """
        self._path, self._file = path, path.open("a+b")
        there = self._file.seek(0, os.SEEK_END)
        if there < size:
            self._file.close()
            raise DamagedError(f"{path} has {there} bytes, but the checkpoint counts on {size}. Run with reuse=never.")
        self._file.truncate(size)
        self._file.seek(size)

    def append(self, record: Record) -> None:
        """Write one line.

        Raises:
            DamagedError: the run's folder was removed, or another one has its name: nothing that is written would stay.
        """
        self._require_place()
        with naming(self._path):
            self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            self._file.flush()

    @property
    def size(self) -> int:
        """Bytes that are on the disk: what a checkpoint keeps, to go on from there."""
        self._require_place()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _require_place(self) -> None:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                return
        raise DamagedError(
            f"{self._path.parent} was removed or moved while this process was at it. Start the same command again to "
            "make the run anew, or where it is now to go on."
        )

    def close(self) -> None:
        with naming(self._path):
            self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """Every whole record; a last line that is still being written is left out. Empty if there is no file.

    Raises:
        DamagedError: a line before the last is no JSON.
    """
    records: list[Record] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # not splitlines: text may hold U+2028
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise DamagedError(f"{path}:{number}: this is no JSON. Run with reuse=never to make it again.") from None
    return records


def history(records: list[Record], metric: str) -> list[tuple[int, float]]:
    """(step, value) of each record that has the metric."""
    return [(record["step"], record[metric]) for record in records if metric in record]
