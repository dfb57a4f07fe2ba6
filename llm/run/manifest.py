"""What a finished run left -> the size and SHA-256 of each file, kept in run.json; and whether they still are so."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.errors import DamagedError
from llm.run.earlier import EARLIER
from llm.run.files import sha256_of
from llm.run.metrics import METRICS, Record, read_metrics
from llm.run.owner import LOCK, OWNER
from llm.run.runs import Run

WANDB_NOTE = ".wandb.json"  # what W&B was told of the run, which changes where a later start goes on with it
LEFT_OUT = ("run.json", "log.txt", LOCK, OWNER, EARLIER, WANDB_NOTE)
WITH_OWN_MANIFESTS = "checkpoints"


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Path in the folder -> bytes and sha256; of a folder that has a manifest.json of its own, that alone."""
    return {str(path.relative_to(folder)): _facts(path) for path in _files(folder)}


def check_files(run: Run, *, under: str = "") -> int:
    """The number of files that are what run.json says, of those whose path begins with `under`.

    Raises:
        DamagedError: one is not, or is missing.
    """
    listed: dict[str, dict[str, Any]] = run.record.get("files") or {}
    names = [name for name in listed if name.startswith(under)]
    if not names:
        raise DamagedError(f"{run.path / 'run.json'} lists no file under {under or '.'}. {_remedy(run)}")
    for name in names:
        if fault := _fault(run.path / name, listed[name]):
            raise DamagedError(f"{run.path / name}{fault}. {_remedy(run)}")
    return len(names)


def metrics_of(run: Run, name: str = METRICS) -> list[Record]:
    """What a run wrote line by line, its metrics or its samples.

    Raises:
        DamagedError: as check_metrics; or of an unfinished run, a line before the last is no JSON.
    """
    check_metrics(run, name)
    return read_metrics(run.path / name)


def check_metrics(run: Run, name: str = METRICS) -> None:
    """Have the lines of a finished run be what run.json says; those of an unfinished one may end anywhere.

    Raises:
        DamagedError: they are not.
    """
    if name in (run.record.get("files") or {}):
        check_files(run, under=name)


def _fault(path: Path, listed: dict[str, Any]) -> str | None:
    """What is wrong with a file by what run.json lists of it; of lines of JSON it names the line, where it can.

    Raises:
        DamagedError: one of these is no JSON any more.
    """
    if not path.is_file():
        return " is missing"
    if path.stat().st_size == listed["bytes"] and sha256_of(path) == listed["sha256"]:
        return None
    if path.suffix == ".jsonl":
        if path.stat().st_size < listed["bytes"]:
            number = path.read_bytes().count(b"\n") + 1
            return f":{number}: the rest is cut off, of {listed['bytes']} bytes"
        read_metrics(path)
    return " is not what run.json says"


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in LEFT_OUT or path.name == WITH_OWN_MANIFESTS:
            continue
        if path.is_file():
            yield path
        elif (path / "manifest.json").is_file():
            yield path / "manifest.json"
        else:
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _remedy(run: Run) -> str:
    return f"Make the {run.stage} run again with reuse=never, or put the file back."
