"""What a tuning begins from, by a run's name or a folder: a pretrained run, or any model in Hugging Face format."""

from dataclasses import dataclass
from pathlib import Path

from llm.errors import ConfigError, DamagedError
from llm.run.folders import (
    ADAPTER,
    CONFIG,
    Weights,
    digest_in,
    folder_of,
    is_foreign,
    is_hub_id,
    positions_in,
    weight_files,
)
from llm.run.lineage import has_whole_model, usable_positions
from llm.run.manifest import check_files
from llm.run.runs import Run, find, load


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model to tune, with its tokenizer."""

    path: Path  # of the run, or of the folder itself
    folder: Path  # that the model and its tokenizer lie in
    name: str
    digest: str  # of the weights, the tokenizer and the chat template
    positions: int  # tokens that a text may take
    run: Run | None  # None: not made here


def find_base(outputs: str | Path, name_or_folder: str) -> Base:
    """The finished pretraining run, the Hugging Face folder, or the model of the hub, that `base` names.

    Raises:
        ConfigError: there is no such run, or several; or what lies in the folder is no model with its weights.
    """
    folder = Path(name_or_folder)
    if is_foreign(folder):
        return _foreign(folder)
    if (folder / ADAPTER).is_file():
        raise ConfigError(f"base={folder} holds an adapter, not a model. Name the run or the folder that it is for.")
    if is_hub_id(name_or_folder) and not folder.exists():
        return _foreign(folder_of("base", name_or_folder, file=CONFIG), name=folder.name)
    return _ours(find(outputs, "pretrain", name_or_folder))


def base_behind(run: Run) -> Base:
    """The base that a fine-tuning run was tuned from, as it was then.

    Raises:
        DamagedError: it is gone, or was made anew with other weights.
    """
    place = run.places["base"]
    try:
        base = _foreign(place) if is_foreign(place) else _ours(load(place))
    except ConfigError as error:
        raise DamagedError(f"{run.path} was tuned on {place}, which is gone: {error}") from None
    if base.digest != run.record["identity"]["parents"]["base"]:
        raise DamagedError(
            f"{run.path} was tuned on other weights than {place} holds now. Put them back, or run the "
            "fine-tuning again."
        )
    return base


def weights_of(run: Run) -> Weights:
    """What to load for a pretrained or fine-tuned run, every file of it checked.

    Raises:
        DamagedError: a file is missing or not what it was, or the base was made anew with other weights.
    """
    if has_whole_model(run):
        check_files(run, under="model/")
        own = run.path / "model"
        return Weights(model=own, adapter=None, tokenizer=own, positions=positions_of(run))
    base = base_behind(run)
    check_base(base)
    check_files(run, under="adapter/")
    adapter = run.path / "adapter"
    has_own = (adapter / "tokenizer.json").is_file()
    return Weights(
        model=base.folder, adapter=adapter, tokenizer=adapter if has_own else base.folder, positions=base.positions
    )


def positions_of(run: Run) -> int:
    """Tokens that a text may take in the model of a pretrained or fine-tuned run."""
    if run.stage == "pretrain":
        return usable_positions(run)
    if has_whole_model(run):
        return int(run.record["notes"]["positions"])
    place = run.places["base"]
    return _positions(place) if is_foreign(place) else usable_positions(load(place))


def check_base(base: Base) -> None:
    """Have the files of a base be what its run left; a foreign folder's digest has just been taken of them.

    Raises:
        DamagedError: one is not, or is missing.
    """
    if base.run:
        check_files(base.run, under="model/")


def _ours(run: Run) -> Base:
    return Base(
        path=run.path,
        folder=run.path / "model",
        name=str(run.record["name"]),
        digest=str(run.record.get("digest")),
        positions=usable_positions(run),
        run=run,
    )


def _foreign(folder: Path, *, name: str | None = None) -> Base:
    weight_files(folder, key="base")
    return Base(
        path=folder,
        folder=folder,
        name=name or folder.resolve().name,
        digest=digest_in(folder),
        positions=_positions(folder),
        run=None,
    )


def _positions(folder: Path) -> int:
    if (found := positions_in(folder)) is None:
        raise ConfigError(
            f"base={folder}: its config.json does not say how long a text may be. Add max_position_embeddings."
        )
    return found
