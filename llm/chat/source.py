"""What was named, a run or a folder in Hugging Face format -> where its model, adapter and tokenizer lie."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.errors import ConfigError, DamagedError
from llm.run import Run, Weights, find_model_run, log, positions_of, weights_of

POSITIONS_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")  # as the architectures call them
UNBOUNDED_POSITIONS = 4096  # taken for a model that names no limit


@dataclass(frozen=True)
class Source:
    """A model that can be talked to, not loaded yet."""

    name: str  # what a person sees
    path: Path
    positions: int  # tokens that prompt and answer may take together
    run: Run | None  # whose files can be checked
    foreign: Weights | None = None  # of a folder that no run.json speaks for

    def weights(self) -> Weights:
        """Raises: DamagedError: a file of a run is missing or is not what it was."""
        if self.foreign is not None:
            return self.foreign
        assert self.run is not None
        return weights_of(self.run)


def find_source(outputs: str, named: str) -> Source:
    """The model of a run by its name or folder, or of any folder in Hugging Face format.

    Raises:
        ConfigError: there is none of that name, several, or it is no model.
        DamagedError: a file of a folder cannot be read.
    """
    if (folder := _hugging_face_folder(Path(named))) is not None:
        return _of_folder(folder)
    run = find_model_run(outputs, named, done_to_it="meant", key="")
    return Source(f"{run.stage}/{run.path.name}", run.path, positions_of(run), run)


def _hugging_face_folder(path: Path) -> Path | None:
    """A folder with a model or an adapter that no run.json speaks for; of an export, the folder in it."""
    record = path / "run.json"
    if record.is_file() and not _is_export(record):
        return None
    for folder in (path, path / "model", path / "adapter"):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    if path.is_dir() and not record.is_file() and ("/" in str(path) or path.is_absolute()):
        raise ConfigError(
            f"{path} is neither a run nor a model: it has no run.json, config.json or adapter_config.json. Name the "
            "folder that holds one of these."
        )
    return None


def _is_export(record: Path) -> bool:
    return bool(_read(record).get("stage") == "export")


def _of_folder(folder: Path) -> Source:
    model, adapter = folder, None
    if (folder / "adapter_config.json").is_file():
        adapter = folder
        named = _read(folder / "adapter_config.json").get("base_model_name_or_path")
        model = Path(str(named))
        if not (model / "config.json").is_file():
            raise ConfigError(
                f"{folder} is an adapter on {named}, which is no folder with a config.json here. Put the base model "
                "there, or name its folder as base_model_name_or_path in adapter_config.json."
            )
    own = [each for each in (folder, model) if (each / "tokenizer.json").is_file()]
    if not own:
        raise ConfigError(f"{folder} has no tokenizer.json, so that its model cannot read or write text. Put it there.")
    positions = _positions(model)
    weights = Weights(model=model, adapter=adapter, tokenizer=own[0], positions=positions)
    return Source(str(folder), folder, positions, None, weights)


def _positions(model: Path) -> int:
    config = _read(model / "config.json")
    nested = config.get("text_config")
    for settings in (config, nested if isinstance(nested, dict) else {}):
        for key in POSITIONS_KEYS:
            if isinstance(settings.get(key), int):
                return int(settings[key])
    log.info("%s names no limit of its positions; %d are taken", model / "config.json", UNBOUNDED_POSITIONS)
    return UNBOUNDED_POSITIONS


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error}). Put it back as it was.") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path} cannot be read (no JSON object). Put it back as it was.")
    return value
