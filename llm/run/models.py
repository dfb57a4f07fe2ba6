"""What names a model, a run, a folder in Hugging Face format or an id of the hub -> where it lies; nothing is loaded.

A folder holds a whole model, or an adapter that names its base; an export has one in it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from llm.config.stages import MODEL_STAGES, STAGES
from llm.errors import ConfigError, DamagedError, UserError, first_line, is_out_of_memory, is_panic
from llm.run.console import log
from llm.run.files import digest_of, sha256_of
from llm.run.record import read_record
from llm.run.runs import Run, as_typed, candidates, check_files, find_run, load

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer.json", "adapter_config.json"
BASE = "base_model_name_or_path"  # in an adapter's config: where the weights lie that it is for
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OF_MODEL = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")  # what makes a folder's model
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
UNBOUNDED_POSITIONS = 4096  # taken for a model that names no limit
_WANTED = {
    CONFIG: list(OF_MODEL),
    TOKENIZER: [TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", CONFIG],
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is there, and what it is put together from."""

    path: Path  # of the run, or of the folder itself
    name: str
    run: Run | None = None  # None: no run made it
    weights: Path  # a folder in Hugging Face format
    adapter: Path | None = None  # in PEFT format, on those weights
    tokenizer: Path  # the folder of the tokenizer that it was trained with
    positions: int  # tokens that a text may take

    @property
    def title(self) -> str:
        """What a person sees."""
        return f"{self.run.stage}/{self.path.name}" if self.run else str(self.path)

    @cached_property
    def digest(self) -> str:
        """What a run has recorded; of a folder the SHA-256 of all that makes its model."""
        if self.run:
            return str(self.run.record.get("digest"))
        whole = digest_in(self.weights)
        return digest_of([whole, digest_in(self.adapter)]) if self.adapter else whole

    def check(self) -> "Model":
        """Itself, once each file of it that a run left is known to be what it was.

        Raises:
            DamagedError: a file is missing or another, or the base was made anew with other weights.
        """
        if self.run and self.adapter:
            base_of(self.run).check()
        if self.run:
            check_files(self.run, under=f"{own_folder(self.run).name}/")
        return self


def find_model(outputs: str | Path, named: str, *, key: str = "", stages: Sequence[str] = MODEL_STAGES) -> Model:
    """The model of a finished run of `stages` by folder, name or glob, of a folder of any origin, or of the hub.

    `key` is how the user named it, for messages.

    Raises:
        ConfigError: there is none of that name, several, or it is no model that can be used.
        DamagedError: a file of a folder is missing or cannot be read.
    """
    if (folder := _foreign_folder(named)) is not None:
        return _in_folder(folder, key=key)
    owner, slash, name = named.partition("/")
    if slash and HUB_ID.fullmatch(named) and owner not in STAGES and not Path(owner).exists():
        return _in_folder(folder_of(named, key=key, file=CONFIG), key=key, name=name)
    return model_of(find_run(outputs, named, key=key, stages=stages))


def model_of(run: Run) -> Model:
    """The model of a pretrained or fine-tuned run; its files are not looked at.

    Raises:
        DamagedError: the base of its adapter is gone.
    """
    own = own_folder(run)
    base = _tuned_on(run) if own.name == "adapter" else None
    return Model(
        path=run.path,
        name=str(run.record["name"]),
        run=run,
        weights=base.weights if base else own,
        adapter=own if base else None,
        tokenizer=own if base is None or (own / TOKENIZER).is_file() else base.tokenizer,
        positions=base.positions if base else _usable_positions(run),
    )


def base_of(run: Run) -> Model:
    """The model that a fine-tuning was tuned on, as it was then.

    Raises:
        DamagedError: it is gone, or was made anew with other weights.
    """
    base = _tuned_on(run)
    if base.digest != run.record["identity"]["parents"]["base"]:
        raise DamagedError(f"{run.path} was tuned on other weights than {base.path} holds now. Put them back.")
    return base


def with_parents(runs: list[Run]) -> list[Run]:
    """The runs and all that they were made from, parents first, each once.

    Raises:
        DamagedError: a parent is missing, or a model that was not made here is not what it was.
    """
    found: dict[Path, Run] = {}

    def add(run: Run) -> None:
        for name, folder in run.places.items():
            if is_foreign(folder):
                base_of(run)  # whose digest is taken again
                continue
            try:
                add(run.parent(name))
            except ConfigError as error:
                raise DamagedError(f"{run.path} was made from a {name} run that is gone: {error}") from None
        found.setdefault(run.path.resolve(), run)

    for run in runs:
        add(run)
    return list(found.values())


def own_folder(run: Run) -> Path:
    """Where a run left its tokenizer, and the weights beside it: adapter/ of one that trained an adapter, or model/."""
    if run.stage == "tokenizer":
        return run.path
    return run.path / ("adapter" if (run.path / "adapter").is_dir() else "model")


def folder_of(named: str, *, key: str, file: str) -> Path:
    """The folder that has `file`, CONFIG or TOKENIZER: of a run that of its model; from the hub if there is none here.

    Raises:
        ConfigError: there is no such folder, it lacks the file, or the hub does not give it.
    """
    folder = Path(named).expanduser()
    if not folder.exists():
        folder = _from_hub(named, key=key, wanted=_WANTED[file])
    elif (folder / "run.json").is_file():
        folder = own_folder(find_run(folder.parent.parent, str(folder), key=key, stages=("tokenizer", "pretrain")))
    if not (folder / file).is_file():
        raise ConfigError(f"{as_typed(key, named)} has no {file}. Give a folder of a whole model.")
    return folder


def with_folders_of_runs(config: Any) -> Any:
    """A stage's config, with the folder of the pretrained run that model.path or tokenizer.path names, if one does.

    Raises:
        ConfigError: several runs have that name, or it is not finished.
    """
    for group in ("tokenizer", "model"):
        part: Any = getattr(config, group, None)
        named = part.path if part else None
        if named is None or "/" in named or Path(named).exists():
            continue
        if any(run.record.get("name") == named for run in candidates(config.outputs, "pretrain")):
            run = find_run(config.outputs, named, key=f"{group}.path", stages=("pretrain",))
            config = replace(config, **{group: replace(part, path=str(run.path))})
    return config


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds a model that no run made."""
    return (folder / CONFIG).is_file() and not (folder / "run.json").is_file()


def _foreign_folder(named: str) -> Path | None:
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
    if path.is_dir() and record is None and "/" in named:
        raise ConfigError(f"{path} is neither a run nor a model: it has no run.json, {CONFIG} or {ADAPTER}.")
    return None


def _in_folder(folder: Path, *, key: str = "", name: str | None = None) -> Model:
    """The model of a folder that no run.json speaks for; its weights are not opened."""
    adapter = folder if (folder / ADAPTER).is_file() else None
    weights = _under(adapter) if adapter else folder
    own = [each for each in (folder, weights) if (each / TOKENIZER).is_file()]
    if not own:
        raise ConfigError(f"{as_typed(key, folder)} has no {TOKENIZER}. Put the model's tokenizer beside its weights.")
    positions, whole = _positions_in(weights), folder.resolve()
    weight_files(weights, key=key)
    of_export = whole.parent if (whole.parent / "run.json").is_file() else whole
    return Model(
        path=folder,
        name=name or of_export.name,
        weights=weights,
        adapter=adapter,
        tokenizer=own[0],
        positions=positions,
    )


def _under(adapter: Path) -> Path:
    """The model that an adapter is for, as it names it; where that is not there, of a run's adapter the run's base.

    Raises:
        ConfigError: it is not there.
    """
    named = str(read_json(adapter / ADAPTER).get(BASE))
    if (Path(named) / CONFIG).is_file():
        return Path(named)
    if (adapter.parent / "run.json").is_file():
        run = load(adapter.parent)
        return _tuned_on(run.parent("run") if run.stage == "export" else run).weights
    raise ConfigError(f"{adapter} is an adapter on {named}, which is no folder with a {CONFIG} here. Put it there.")


def _tuned_on(run: Run) -> Model:
    """The base of a fine-tuning, whatever it holds now."""
    place = run.places["base"]
    try:
        return _in_folder(place) if is_foreign(place) else model_of(load(place))
    except ConfigError as error:
        raise DamagedError(f"{run.path} was tuned on {place}, which is gone: {error}") from None


def _usable_positions(run: Run) -> int:
    """Tokens that a text may take: gpt2 learns a vector for each position, and only for those it saw."""
    if run.stage == "finetune":
        return int(run.record["notes"]["positions"])
    learned = run.config["model"]["architecture"] == "gpt2"
    return int(run.config["data"]["sequence_length"] if learned else run.config["model"]["max_position_embeddings"])


def _from_hub(named: str, *, key: str, wanted: list[str]) -> Path:
    """The files of a model in the hub's cache, fetched if they are not there."""
    if not HUB_ID.fullmatch(named):
        raise ConfigError(f"{as_typed(key, named)}: there is no such folder.")
    import httpx2  # what the hub's client speaks through
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(named, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise ConfigError(
            f"{as_typed(key, named)}: there is no such folder, and the hub's model of that id cannot be had "
            f"({' '.join(str(error).split()[:40])}). Check the path or the id, or log in: hf auth login."
        ) from None


# What the files of a folder say


def _positions_in(folder: Path) -> int:
    """Tokens that a text may take, as config.json says; UNBOUNDED_POSITIONS where it names no limit."""
    config = read_json(folder / CONFIG)
    nested = config.get("text_config")
    for settings in (config, nested if isinstance(nested, dict) else {}):
        for key in POSITIONS:
            if isinstance(settings.get(key), int):
                return int(settings[key])
    log.info("%s names no limit of its positions; %d are taken", folder / CONFIG, UNBOUNDED_POSITIONS)
    return UNBOUNDED_POSITIONS


def digest_in(folder: Path) -> str:
    """SHA-256 of all that makes the model of a folder: weights, config, tokenizer and chat template.

    Where an adapter's base lies is left out: trained under another outputs folder, it is the same adapter.
    """
    files = sorted({path for pattern in OF_MODEL for path in folder.glob(pattern)})
    return digest_of([[path.name, _digest_of_file(path)] for path in files])


def _digest_of_file(path: Path) -> str:
    return digest_of(read_json(path) | {BASE: None}) if path.name == ADAPTER else sha256_of(path)


def weight_files(folder: Path, *, key: str) -> list[Path]:
    """The safetensors files of a folder's model, in the order of their names; they are not opened.

    Raises:
        DamagedError: one is missing, or an index names one that lies elsewhere, which is not this model's to read.
    """
    names = {SINGLE}
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        with opening(folder):
            names = set(read_json(folder / INDEX)["weight_map"].values())
    for name in map(str, names):
        if PurePath(name).name != name or not (folder / name).is_file():
            raise bad_weights(key, folder, f"{name} is missing, or lies elsewhere; no pickle is read")
    return [folder / name for name in sorted(names)]


def bad_weights(key: str, folder: Path, reason: str) -> DamagedError:
    said = f"{key}: " if key else ""
    return DamagedError(f"{said}{folder} does not hold a model's weights: {reason}. Give a whole one.")


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
        if not (isinstance(error, Exception) or is_panic(error)) or is_out_of_memory(error):
            raise
        raise DamagedError(
            f"{folder} cannot be used as a {as_a}: {first_line(error)[:300]}. Put its files right, or choose another."
        ) from error
