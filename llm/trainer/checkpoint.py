"""A run's checkpoints: whole or absent, checked before they are trusted, without pickle.

    checkpoints/step-00000200/
      tensors.safetensors   every tensor of the state
      state.json            everything else, with the tensors' places
      manifest.json         size and SHA-256 of both, and a SHA-256 of this

The newest good one is where a run goes on; one that is not what its manifest says is set aside under bad-<name>.
"""

import json
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors.torch import load_file, save_file
from torch import nn

from llm.config.training import TrainerConfig
from llm.errors import DamagedError, MachineError
from llm.run.console import log
from llm.run.files import TEMPORARY, clear_temporaries, digest_of, sha256_of, whole_folder, write_json

PREFIX = "step-"
BAD_PREFIX = "bad-"
FILES = ("tensors.safetensors", "state.json")
STATES = 3  # of a parameter in a checkpoint: its value and AdamW's two moments


class CheckpointFolders(CheckpointIO):
    """Lightning's seam for how a checkpoint is written and read; a path names a folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        tensors: dict[str, torch.Tensor] = {}
        state = _pack(checkpoint, "", tensors, {})
        with whole_folder(Path(path)) as folder:
            save_file(tensors, folder / FILES[0])
            write_json(folder / FILES[1], state)
            files = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in FILES}
            write_json(folder / "manifest.json", {"files": files, "sha256": digest_of({"files": files})})

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        tensors = load_file(Path(path) / FILES[0])
        state: dict[str, Any] = _unpack(json.loads((Path(path) / FILES[1]).read_text(encoding="utf-8")), tensors)
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that are in a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"{PREFIX}{step:08d}"


def newest_good(checkpoints: Path) -> Path | None:
    """The newest checkpoint that is what its manifest says; None if none was ever written.

    Raises:
        DamagedError: there are checkpoints, and none of them is good.
    """
    if not checkpoints.is_dir():
        return None
    clear_temporaries(checkpoints)
    for path in sorted(checkpoints.glob(f"{PREFIX}*"), reverse=True):
        if (fault := find_fault(path)) is None:
            return path
        aside = path.with_name(f"{BAD_PREFIX}{path.name}")
        log.warning("checkpoint %s is damaged (%s); set aside as %s", path.name, fault, aside.name)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if bad := sorted(path.name for path in checkpoints.glob(f"{BAD_PREFIX}*")):
        raise DamagedError(f"{checkpoints}: no checkpoint is good ({', '.join(bad)}). Set reuse=never to begin again.")
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's folder, None if it is what its manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest.pop("sha256") != digest_of(manifest):
            return "manifest.json is not what it was"
        entries = {name: (manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]) for name in FILES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json: {error!r}"
    for name, (size, digest) in entries.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or sha256_of(file) != digest:
            return f"{name} is not what the manifest says"
    return None


def keep(checkpoints: Path, *, newest: int, steps: Collection[int | None] = ()) -> None:
    """Remove all but the newest ones, and those of some steps."""
    for path in sorted(checkpoints.glob(f"{PREFIX}*"))[:-newest]:
        if step_of(path) not in steps:
            going = path.with_name(f"{TEMPORARY}{path.name}")  # so that what is removed half is not taken for damaged
            path.rename(going)
            shutil.rmtree(going)


def require_space(checkpoints: Path, model: nn.Module, config: TrainerConfig, *, kept: int = 0) -> None:
    """Refuse to start what could not be saved; so many checkpoints are `kept` beside the newest and the best.

    Raises:
        MachineError: the disk has less free than the checkpoints still to come and the finished model take.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    number = config.keep_checkpoints + config.keep_best + kept + 1  # the new one is written before an old one goes
    to_come = max(1, number - len(list(checkpoints.glob(f"{PREFIX}*"))))
    needed = (to_come * STATES + 1) * trained
    free = shutil.disk_usage(checkpoints.parent).free
    if free < needed:
        raise MachineError(
            f"{checkpoints.parent}: {free / 1e9:.2f} GB are free on the disk, but {to_come} checkpoints of "
            f"{STATES * trained / 1e9:.2f} GB and the model take {needed / 1e9:.2f} GB. Free some, lower "
            "trainer.keep_checkpoints, or set outputs to a folder on another disk."
        )


def _pack(value: Any, place: str, tensors: dict[str, torch.Tensor], seen: dict[Any, str]) -> Any:
    """JSON for a tree of plain values; tensors go to `tensors` under their place, shared ones (tied weights) once."""
    if isinstance(value, torch.Tensor):
        return {"$tensor": _pack_tensor(value, place, tensors, seen)}
    if isinstance(value, dict):
        items = [[key, _pack(item, f"{place}/{key}", tensors, seen)] for key, item in value.items()]
        is_object = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(items) if is_object else {"$items": items}
    if isinstance(value, list | tuple):
        packed = [_pack(item, f"{place}/{index}", tensors, seen) for index, item in enumerate(value)]
        return packed if isinstance(value, list) else {"$tuple": packed}
    if value is None or isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {value!r} (at {place})")


def _pack_tensor(value: torch.Tensor, place: str, tensors: dict[str, torch.Tensor], seen: dict[Any, str]) -> str:
    """The name under which a tensor is kept: a part of another is copied, for no two may overlap."""
    new = f"{len(tensors)}:{place}"  # two places can read alike: {1: ...} and {"1": ...}
    storage = value.untyped_storage().data_ptr()
    shared = (storage, value.storage_offset(), value.shape, value.stride(), value.dtype)
    name = seen.setdefault(shared, new) if value.numel() else new
    if name == new:
        is_part = seen.setdefault(storage, new) != new
        tensors[new] = value.detach().clone().contiguous() if is_part else value.detach().contiguous()
    return name


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["$tuple"])
    items = value["$items"] if "$items" in value else value.items()
    return {key: _unpack(item, tensors) for key, item in items}
