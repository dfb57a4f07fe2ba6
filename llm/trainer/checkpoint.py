"""A checkpoint's folder: whole or absent, checked before it is trusted, without pickle.

    checkpoints/step-00000200/
      tensors.safetensors   every tensor of the state
      state.json            everything else, with the tensors' places
      manifest.json         size and SHA-256 of both, the identity of the run, and a SHA-256 of this

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

from llm.errors import ConfigError, DamagedError
from llm.run.console import log
from llm.run.files import TEMPORARY, clear_temporaries, digest_of, sha256_of, whole_folder, write_json
from llm.run.record import differences

PREFIX = "step-"
BAD_PREFIX = "bad-"
FILES = ("tensors.safetensors", "state.json")


class CheckpointFolders(CheckpointIO):
    """Lightning's seam for how a checkpoint is written and read; a path names a folder."""

    def __init__(self, identity: dict[str, Any] | None = None) -> None:
        self._identity = identity  # of the run whose checkpoints these are

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        tensors: dict[str, torch.Tensor] = {}
        state = _pack(checkpoint, "", tensors, {})
        with whole_folder(Path(path)) as folder:
            save_file(tensors, folder / FILES[0])
            write_json(folder / FILES[1], state)
            _write_manifest(folder, self._identity)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        tensors = load_file(Path(path) / FILES[0])
        state: dict[str, Any] = _unpack(json.loads((Path(path) / FILES[1]).read_text(encoding="utf-8")), tensors)
        return _as_of_now(state)

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path)


def _as_of_now(state: dict[str, Any]) -> dict[str, Any]:
    """A state of before 2026-12, in which Lightning counted micro-batches and callbacks had other names, as of now."""
    if "Meter" not in (old := state.get("callbacks", {})):
        return state
    counts = old["Meter"] | old["Health"] | old["Validation"] | {"gradient_norm": state.pop("gradient_norm")}
    done, loop = state["global_step"], state["loops"]["fit_loop"]
    for which in ("total", "current"):
        loop["epoch_loop.batch_progress"][which] |= {"ready": done, "started": done, "processed": done}
        loop["epoch_loop.batch_progress"][which]["completed"] = done - 1  # saved as the last one ended
        loop["epoch_loop.manual_optimization.optim_step_progress"][which] |= {"ready": done, "completed": done}
    return state | {"callbacks": {"AfterStep": counts}}


def copy_checkpoint(checkpoint: Path, checkpoints: Path, identity: dict[str, Any]) -> None:
    """Copy the checkpoint of one run among those of another, which is the same run up to there."""
    with whole_folder(checkpoints / checkpoint.name) as folder:
        for name in FILES:
            shutil.copyfile(checkpoint / name, folder / name)
        _write_manifest(folder, identity)


def _write_manifest(folder: Path, identity: dict[str, Any] | None) -> None:
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in FILES}
    manifest = {"identity": identity, "files": files}
    write_json(folder / "manifest.json", manifest | {"sha256": digest_of(manifest)})


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that are in a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"{PREFIX}{step:08d}"


def newest_good(checkpoints: Path, identity: dict[str, Any] | None = None) -> Path | None:
    """The newest checkpoint that is what its manifest says; None if none was ever written.

    Raises:
        DamagedError: there are checkpoints, and none of them is good.
        ConfigError: it is of a run with another identity than the given one.
    """
    if not checkpoints.is_dir():
        return None
    clear_temporaries(checkpoints)
    bad = {path.name for path in checkpoints.glob(f"{BAD_PREFIX}*")}
    for path in sorted(checkpoints.glob(f"{PREFIX}*"), reverse=True):
        if fault := find_fault(path):
            aside = path.with_name(f"{BAD_PREFIX}{path.name}")
            log.warning("checkpoint %s is damaged (%s); set aside as %s", path.name, fault, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            bad.add(aside.name)
            continue
        if identity is not None:
            _require_identity(path, identity)
        return path
    if bad:
        raise DamagedError(
            f"{checkpoints}: no checkpoint is good ({', '.join(sorted(bad))}). Set reuse=never to begin again."
        )
    return None


def _require_identity(path: Path, identity: dict[str, Any]) -> None:
    made_by = _manifest(path)["identity"]
    if changed := [
        f"{key.removeprefix('settings.')}={new} (it was {old})" for key, old, new in differences(made_by, identity)
    ]:
        raise ConfigError(
            f"{path} is of another run: {', '.join(changed)}. Give this run a name of its own, or set reuse=never to "
            "begin again."
        )


def _manifest(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "manifest.json").read_text(encoding="utf-8")))


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's folder, None if it is what its manifest says."""
    try:
        manifest = _manifest(path)
        if manifest.pop("sha256") != digest_of(manifest):
            return "manifest.json is not what it was"
        files = manifest["files"]
        entries = {name: (files[name]["bytes"], files[name]["sha256"]) for name in FILES}
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def _pack(value: Any, place: str, tensors: dict[str, torch.Tensor], seen: dict[Any, str]) -> Any:
    """JSON for a tree of plain values; tensors go to `tensors` under their place, shared ones (tied weights) once."""
    if isinstance(value, torch.Tensor):
        new = f"{len(tensors)}:{place}"  # two places can read alike: {1: ...} and {"1": ...}
        storage = value.untyped_storage().data_ptr()
        shared = (storage, value.storage_offset(), value.shape, value.stride(), value.dtype)
        name = seen.setdefault(shared, new) if value.numel() else new
        if name == new:
            is_part = seen.setdefault(storage, new) != new  # safetensors takes no two tensors that overlap
            tensors[new] = value.detach().clone().contiguous() if is_part else value.detach().contiguous()
        return {"$tensor": name}
    if isinstance(value, dict):
        items = [[key, _pack(item, f"{place}/{key}", tensors, seen)] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(items)
        return {"$items": items}
    if isinstance(value, list | tuple):
        packed = [_pack(item, f"{place}/{index}", tensors, seen) for index, item in enumerate(value)]
        return packed if isinstance(value, list) else {"$tuple": packed}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a checkpoint holds numbers, not {value} (at {place})")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(value).__name__} (at {place})")


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
