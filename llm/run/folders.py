"""A model that is there already, a folder, a run's or a hub id -> its folder, and what its files say unloaded.

A folder in Hugging Face format holds a whole model, or an adapter that names its base; an export has one in it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from llm.config import STAGES
from llm.errors import ConfigError, DamagedError, UserError, first_line, is_panic
from llm.run.console import log
from llm.run.files import digest_of, sha256_of
from llm.run.runs import Run, load, read_record

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer.json", "adapter_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OF_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")  # what makes a folder's model
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
UNBOUNDED_POSITIONS = 4096  # taken for a model that names no limit
_WANTED = {
    CONFIG: list(OF_MODEL),
    TOKENIZER: [TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", CONFIG],
}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a model is put together from."""

    model: Path  # a folder in Hugging Face format
    adapter: Path | None  # in PEFT format, on that model
    tokenizer: Path  # the folder of the tokenizer that it was trained with
    positions: int  # tokens that a text may take


@contextmanager
def opening(folder: Path, *, as_a: str = "model") -> Iterator[None]:
    """Turn whatever a library raises over the files of a folder into one line that names the folder.

    Each of them has errors of its own, and of any kind: only the want of memory is not the folder's.

    Raises:
        DamagedError: the library cannot use what lies there.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)) or _is_short_of_memory(error):
            raise
        raise DamagedError(
            f"{folder} cannot be used as a {as_a}: {first_line(error)[:300]}. Put its files right, or choose another."
        ) from error


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds a model that no run made."""
    return (folder / CONFIG).is_file() and not (folder / "run.json").is_file()


def folder_of(key: str, path: str, *, file: str) -> Path:
    """The folder that has `file`, CONFIG or TOKENIZER: of a run that of its model; from the hub if there is none here.

    Raises:
        ConfigError: there is no such folder, it lacks the file, or the hub does not give it.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        folder = _from_hub(key, path, _WANTED[file])
    elif (folder / "run.json").is_file():
        folder = _of_run(key, folder)
    if not folder.is_dir():
        raise ConfigError(f"{key}={path} is a file. Give the folder that it lies in.")
    if not (folder / file).is_file():
        adapter = " It holds an adapter, not a whole model." if (folder / ADAPTER).is_file() else ""
        raise ConfigError(f"{key}={path} has no {file}.{adapter} Give a folder in Hugging Face format.")
    return folder


def find_folder(named: str) -> Path | None:
    """The folder with a model or an adapter that no run.json speaks for; of an export, the folder in it; else None.

    Raises:
        ConfigError: it is the path of a folder that holds neither a run nor a model.
    """
    path = Path(named)
    record = read_record(path)
    if record is not None and record["stage"] != "export":
        return None
    for folder in (path, path / "model", path / "adapter"):
        if (folder / CONFIG).is_file() or (folder / ADAPTER).is_file():
            return folder
    if path.is_dir() and record is None and ("/" in named or path.is_absolute()):
        raise ConfigError(
            f"{path} is neither a run nor a model: it has no run.json, config.json or adapter_config.json. Name the "
            "folder that holds one of these."
        )
    return None


def is_hub_id(named: str) -> bool:
    """Whether a name is of the form owner/model, and not what runs go by (stage/name)."""
    owner, slash, _ = named.partition("/")
    return bool(slash and HUB_ID.fullmatch(named)) and owner not in STAGES and not Path(owner).exists()


def weights_in(folder: Path) -> Weights:
    """What the model of a folder that no run.json speaks for is put together from; its weights are not looked at.

    Raises:
        ConfigError: it has no tokenizer; or it is an adapter whose base is not there.
        DamagedError: its config cannot be read.
    """
    model, adapter = folder, None
    if (folder / ADAPTER).is_file():
        adapter = folder
        named = read_json(folder / ADAPTER).get("base_model_name_or_path")
        model = _model_under(folder, str(named))
        if not (model / CONFIG).is_file():
            raise ConfigError(
                f"{folder} is an adapter on {named}, which is no folder with a config.json here. Put the base model "
                "there, or name its folder as base_model_name_or_path in adapter_config.json."
            )
    own = [each for each in (folder, model) if (each / TOKENIZER).is_file()]
    if not own:
        raise ConfigError(f"{folder} has no tokenizer.json, so that its model cannot read or write text. Put it there.")
    if (positions := positions_in(model)) is None:
        log.info("%s names no limit of its positions; %d are taken", model / CONFIG, UNBOUNDED_POSITIONS)
    return Weights(model=model, adapter=adapter, tokenizer=own[0], positions=positions or UNBOUNDED_POSITIONS)


def _model_under(adapter: Path, named: str) -> Path:
    """The model that an adapter is for, as it names it; where that is not there, of a run's adapter the run's base."""
    if (Path(named) / CONFIG).is_file() or (record := read_record(adapter.parent)) is None:
        return Path(named)
    run = Run(adapter.parent, record)
    base = (run.parent("run") if run.stage == "export" else run).places.get("base", Path(named))
    return base / "model" if (base / "run.json").is_file() else base


def positions_in(folder: Path) -> int | None:
    """Tokens that a text may take, as config.json says; None where it names no limit.

    Raises:
        DamagedError: it cannot be read.
    """
    config = read_json(folder / CONFIG)
    nested = config.get("text_config")
    for settings in (config, nested if isinstance(nested, dict) else {}):
        for key in POSITIONS:
            if isinstance(settings.get(key), int):
                return int(settings[key])
    return None


def digest_in(folder: Path) -> str:
    """SHA-256 of all that makes the model of a folder: weights, config, tokenizer and chat template."""
    files = sorted({path for pattern in OF_MODEL for path in folder.glob(pattern)})
    return digest_of([[path.name, sha256_of(path)] for path in files])


def weight_files(folder: Path, *, key: str) -> list[Path]:
    """The safetensors files of a folder's model, in the order of their names; they are not opened.

    Raises:
        DamagedError: one is missing, or lies elsewhere.
    """
    names = [SINGLE]
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        names = _indexed(key, folder)
    for name in names:
        if not (folder / name).is_file():
            pickles = " (a pytorch_model.bin is a pickle, which is not read)" if [*folder.glob("*.bin")] else ""
            raise bad_weights(key, folder, f"{name} is missing{pickles}")
    return [folder / name for name in names]


def bad_weights(key: str, folder: Path, reason: str) -> DamagedError:
    named = f"{key}: {folder}" if key else str(folder)
    return DamagedError(f"{named} does not hold a model's weights: {reason}. Give a whole one.")


def _indexed(key: str, folder: Path) -> list[str]:
    """The names in an index, of files beside it: another folder is not this model's to read."""
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise bad_weights(key, folder, f"{INDEX} has no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or PurePath(name).name != name:
            raise bad_weights(key, folder, f"{INDEX} names {name}, which is no file of it")
    return sorted(set(shards.values()))


def _of_run(key: str, folder: Path) -> Path:
    run = load(folder)
    if not run.is_done:
        raise ConfigError(f"{key}={folder} is {run.state}, not done. Start it again to finish it.")
    if run.stage not in ("pretrain", "tokenizer"):
        raise ConfigError(f"{key}={folder} is a {run.stage} run, which has no whole model. Name a pretrain run.")
    return folder / "model" if run.stage == "pretrain" else folder


def _from_hub(key: str, path: str, wanted: list[str]) -> Path:
    """The files of a model in the hub's cache, fetched if they are not there."""
    if not HUB_ID.fullmatch(path):
        raise ConfigError(f"{key}={path}: there is no such folder.")
    import httpx2  # what the hub's client speaks through
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(path, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError, httpx2.HTTPError) as error:
        reason = " ".join(str(error).split()[:40])
        raise ConfigError(
            f"{key}={path}: there is no such folder, and the hub's model of that id cannot be had ({reason}). Check "
            "the path or the id, or log in (hf auth login) where it asks for that."
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a folder that no run.json speaks for.

    Raises:
        DamagedError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({first_line(error)}). Put it back as it was.") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path} cannot be read (no JSON object). Put it back as it was.")
    return value


def _is_short_of_memory(error: BaseException) -> bool:
    """As Python, torch on a device, and torch on the host say it."""
    named = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
    return named or "can't allocate memory" in str(error)
