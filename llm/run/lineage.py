"""A run whose model is used -> the run that it was tuned from, and the folders that its training wrote."""

from pathlib import Path

from llm.errors import ConfigError, DamagedError
from llm.run.folders import is_foreign
from llm.run.runs import Run


def base_of(run: Run) -> Run:
    """The pretrained run whose weights a run speaks with.

    Raises:
        ConfigError: it was tuned on a model that no run made.
        DamagedError: the base was made anew, with other weights than the adapter was trained on.
    """
    if run.stage == "pretrain":
        return run
    if is_foreign(place := run.places["base"]):
        raise ConfigError(f"{run.path} was tuned on {place}, which no run here pretrained. Name one whose base was.")
    base = run.parent("base")
    if base.record.get("digest") != run.record["identity"]["parents"]["base"]:
        raise DamagedError(
            f"{run.path} was tuned on other weights than {base.path} holds now. Run the fine-tuning again."
        )
    return base


def has_whole_model(run: Run) -> bool:
    """Whether a run left a model that stands by itself: a pretraining, or a fine-tuning of every weight."""
    return weights_folder(run).name == "model"


def usable_positions(base: Run) -> int:
    """Tokens that a text may take: gpt2 learns a vector for each position, and only for those it saw."""
    learned = base.config["model"]["architecture"] == "gpt2"
    return int(base.config["data"]["sequence_length"] if learned else base.config["model"]["max_position_embeddings"])


def weights_folder(run: Run) -> Path:
    """The folder that a run's training wrote: model/, or adapter/ of a run that trained one on its base."""
    return run.path / ("adapter" if (run.path / "adapter").is_dir() else "model")


def tokenizer_folder(run: Run) -> Path:
    """The folder with the tokenizer that a run was trained with: every run keeps it beside its weights."""
    return weights_folder(run)
