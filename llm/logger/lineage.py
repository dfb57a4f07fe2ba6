"""A run's files -> a W&B artifact that refers to them where they lie; nothing of them is uploaded."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.run.runs import Run

if TYPE_CHECKING:
    from wandb import Artifact

# What a run leaves for the next one: the files, and the artifact's type. The first that is there.
LEFT = (
    ("adapter/*", "model"),
    ("model/*", "model"),
    ("shards/manifest.json", "dataset"),  # its SHA-256 sums are those of all shards
    ("results.json", "evaluation"),
    ("tokenizer*", "tokenizer"),
)
CHECKED_BYTES = 256_000_000  # larger files are not read through for W&B: run.json has their SHA-256


def artifact_of(run: Run, results: dict[str, float]) -> "Artifact | None":
    """What a run made, by reference and with digests; None where it has made nothing yet.

    Equal content is an equal version: W&B adds none. The numbers of `results` are shown beside it.
    """
    import wandb

    files, kind = _files_of(run)
    if not files:
        return None
    artifact = wandb.Artifact(artifact_name(run), type=kind, metadata=dict(_facts(run)) | results)
    for path in files:
        small = path.stat().st_size <= CHECKED_BYTES
        artifact.add_reference(path.absolute().as_uri(), name=path.name, checksum=small)
    return artifact


def _files_of(run: Run) -> tuple[list[Path], str]:
    """(what the next stage reads, the artifact's type)."""
    for pattern, kind in LEFT:
        if files := [path for path in sorted(run.path.glob(pattern)) if path.is_file()]:
            return files, kind
    return [], ""


def artifact_name(run: Run) -> str:
    """Stage and folder, in the characters that W&B takes for the name of an artifact."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{run.stage}-{run.path.name}")


def parents_of(run: Run) -> Iterator[Run]:
    """The runs that a run was made from, as far as they are there."""
    from llm.run.runs import load

    for folder in run.places.values():
        if (folder / "run.json").is_file():
            yield load(folder)


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    yield "folder", str(run.path)
    for name in ("key", "digest", "commit"):
        if value := run.record.get(name):
            yield name, value
    if sums := {path: facts["sha256"] for path, facts in (run.record.get("files") or {}).items()}:
        yield "sha256", sums
