"""A path of a model that is there already: a folder, a finished run or a hub id -> the folder with its files."""

import re
from pathlib import Path

from llm.errors import ConfigError
from llm.run.runs import load

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_WANTED = {
    CONFIG: ["*.json", "*.safetensors"],
    TOKENIZER: [TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", CONFIG],
}


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
        adapter = " It holds an adapter, not a whole model." if (folder / "adapter_config.json").is_file() else ""
        raise ConfigError(f"{key}={path} has no {file}.{adapter} Give a folder in Hugging Face format.")
    return folder


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
