"""What an evaluation is of, a run or any model's folder -> the model, and the held-out text that it is asked about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm import tokenizer
from llm.config.compose import as_recorded
from llm.config.data import DataConfig, DataKind, Packing
from llm.config.evaluation import EvaluationConfig
from llm.config.stages import EvaluateStage
from llm.config.training import Accelerator
from llm.data import (
    Corpus,
    available_cores,
    open_corpus,
    open_parts,
    write_shards,
)
from llm.data.mixed_shards import Sources
from llm.errors import ConfigError, DamagedError, DataError
from llm.run.console import log
from llm.run.files import digest_of, sha256_of
from llm.run.models import Model, base_of, find_model, is_foreign
from llm.run.runs import Run

TASK_SUFFIXES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".txt", ".csv", ".parquet")

WAY_TO_TEMPLATE = "Mark the answers in its chat_template.jinja, or give data=text."


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A model, and what is known that it has not learned from: text, conversations, or both."""

    model: Model
    shards: Run | None = None  # whose held-out documents are the text, where nothing else was asked for
    sequence_length: int = 0  # of the rows of text
    text: DataConfig | None = None  # the text that was asked for
    texts: dict[str, Corpus] = field(default_factory=dict)  # of it, by part
    chats: DataConfig | None = None  # the conversations that the run was tuned on, or that were asked for
    conversations: Corpus | None = None

    @cached_property
    def digest(self) -> str:
        """Of the model; of a folder's whole one hashed again, as the keys of evaluations have it."""
        model = self.model
        return model.digest if model.run or model.adapter else digest_of([model.digest])

    def parents(self) -> dict[str, str]:
        """The digests of all that the numbers depend on."""
        found = {"run": self.digest}
        if self.shards:
            found["shards"] = self.shards.digest
        if self.texts:
            found["text"] = _digest_of_sources(self.texts)
        if self.model.run and (base := self.model.run.record["identity"]["parents"].get("base")):
            found["base"] = base
        if self.conversations:
            found["data"] = self.conversations.digest()
        return found

    def note(self) -> dict[str, Any]:
        """What results.json says of whose numbers it has."""
        run, known = self.model.run, {"name": self.model.name, "digest": self.digest}
        return ({"stage": run.stage, "key": run.key} if run else {"folder": str(self.model.path)}) | known


def find_evaluated(config: EvaluateStage) -> Evaluated:
    """What config.run names, with its files checked, and the text and conversations to ask it about.

    Raises:
        ConfigError: no such run or folder, several, one that is not done or has no model, or what its model cannot do.
        DamagedError: a file of it is not what it was, or what it was made from was made anew.
        DataError: the conversations it was tuned on are others now, so that it is not known which it held out.
    """
    model, data = find_model(config.outputs, config.run, key="run"), config.data
    if model.run is None:
        _check_folder(config, model)
    shards, length = _own_text(model.run) if model.run else (None, 0)
    text = data if data and data.kind is not DataKind.conversations else None
    chats = data if data and not text else _tuned_on(model.run)
    evaluated = Evaluated(
        model=model,
        shards=None if text else shards,
        sequence_length=text.sequence_length if text else length,
        text=text,
        texts=_open_sources(text) if text else {},
        chats=chats,
        conversations=open_corpus(chats) if chats else None,
    )
    _check(config, evaluated)
    model.check()
    return evaluated


def task_parents(config: EvaluationConfig) -> dict[str, str]:
    """The digest of the task files that the user brings, if any."""
    if config.task_path is None:
        return {}
    files = [path for path in sorted(Path(config.task_path).rglob("*")) if path.suffix in TASK_SUFFIXES]
    return {"tasks": digest_of([[str(path.relative_to(config.task_path)), sha256_of(path)] for path in files])}


def _open_sources(config: DataConfig) -> dict[str, Corpus]:
    """The corpus of each part of a mixture, or the one that there is; nothing is read yet."""
    return open_parts(config) if config.is_mixture else {"": open_corpus(config)}


def _digest_of_sources(corpora: Mapping[str, Corpus]) -> str:
    """SHA-256 over all that is read."""
    return digest_of({name: corpus.digest() for name, corpus in corpora.items()})


def held_out_of_text(
    corpora: Mapping[str, Corpus], tokenizer_folder: Path, folder: Path, *, num_workers: int | None
) -> Sources:
    """The held-out documents of each corpus, encoded into `folder` by the tokenizer in `tokenizer_folder`.

    Raises:
        DataError: there is none, a record cannot be used, or its text would be read as a special token.
    """
    sources: Sources = {}
    for name, corpus in corpora.items():
        place = folder / (name or "shards")
        manifest = write_shards(
            corpus,
            tokenizer_folder,
            place,
            made_from=corpus.digest(),
            num_workers=num_workers or available_cores(),
            splits=("held_out",),
        )
        sources[name] = (place, manifest)
    return sources


def _check_folder(config: EvaluateStage, model: Model) -> None:
    if config.data is None and not config.evaluation.tasks:
        raise ConfigError(
            f"run={config.run} is a folder, and it is not known which text its model has not seen. Give some: "
            "data=text data.path=<files>, of which data.held_out_share is measured; or data=conversations."
        )
    from llm.model import read_config  # takes seconds

    read_config(model.weights, key="run")


def _own_text(run: Run) -> tuple[Run | None, int]:
    """(the shards that a run's weights learned from, the length of their rows); none of what no run pretrained."""
    if run.stage == "finetune" and is_foreign(run.places["base"]):
        return None, 0
    pretrained = base_of(run).run if run.stage == "finetune" else run
    assert pretrained is not None
    shards = pretrained.parent("shards")
    if shards.record.get("digest") != pretrained.record["identity"]["parents"]["shards"]:
        raise DamagedError(
            f"{pretrained.path} was trained on other shards than {shards.path} holds now. Run the pretraining again."
        )
    return shards, pretrained.config["data"]["sequence_length"]


def _tuned_on(run: Run | None) -> DataConfig | None:
    """The conversations that a run was tuned on."""
    if run is None or run.stage != "finetune":
        return None
    values = dict(run.config["data"])
    if values.get("packing") == Packing.concatenate.name:  # as it was called while each had a row to itself
        values["packing"] = Packing.padded.name
    if values.get("path"):
        values["path"] = _seen_from_here(str(values["path"]), run)
    return as_recorded(DataConfig, values, place=str(run.path / "config.yaml"))


def _seen_from_here(path: str, run: Run) -> str:
    """A path as it was typed, or where it led from the working directory that the run was started in."""
    there = str(Path(run.record.get("directory", "")) / path)
    return there if not _is_there(path) and _is_there(there) else path


def _is_there(path: str) -> bool:
    return Path(path).exists() or bool(glob(path))


def _check(config: EvaluateStage, evaluated: Evaluated) -> None:
    """Refuse, before any work, what cannot be asked."""
    asked, model = config.evaluation, evaluated.model
    if not asked.tokens_to_write(model.positions) < model.positions:
        raise ConfigError(
            f"evaluation.max_new_tokens={asked.max_new_tokens} is out of range: prompt and text share "
            f"{model.positions} tokens in {model.path.name}. Set it to {model.positions // 2} or less."
        )
    if config.data is not None and config.data.sequence_length > model.positions:
        raise ConfigError(
            f"data.sequence_length={config.data.sequence_length} is longer than {model.positions}, all that "
            f"{model.path.name} can read. Set data.sequence_length={model.positions} or less."
        )
    if asked.tasks and find_spec("lm_eval") is None:
        raise ConfigError(
            f"evaluation.tasks={asked.tasks} are answered through lm-eval, which is not installed. Install the extra: "
            "pip install -e '.[eval]', or leave evaluation.tasks out."
        )
    if asked.task_path is not None and not Path(asked.task_path).is_dir():
        raise ConfigError(f"evaluation.task_path={asked.task_path} is no folder. Give the one with the task files.")
    if asked.accelerator is Accelerator.gpu:
        _require_gpu()
    if model.run is None and evaluated.chats is not None:  # its own template tells them
        chat = tokenizer.load_chat(model.tokenizer)
        tokenizer.check_template(chat, name=f"run={model.tokenizer}", way=WAY_TO_TEMPLATE)
    if model.run and evaluated.conversations and evaluated.chats is not config.data:
        _require_same(model.run, evaluated.conversations, evaluated.chats)
    if model.run and config.data is not None:
        _warn_of_shares(model.run, config.data)


def _require_same(run: Run, conversations: Corpus, chats: DataConfig | None) -> None:
    if conversations.digest() == run.record["identity"]["parents"]["data"]:
        return
    where = chats.path or f"data={chats.name}" if chats else ""
    raise DataError(
        f"{where}: it is not what {run.path} was tuned on, so it is not known which answers that held out. "
        "Put it back as it was."
    )


def _warn_of_shares(run: Run, data: DataConfig) -> None:
    """The split is by hash of the text, so that a smaller share holds out some of the same, and nothing else."""
    share = run.config["data"]["held_out_share"]
    if data.held_out_share > share:
        log.warning(
            "data.held_out_share=%g is more than the %g that %s held out: of texts that it was trained on, it has "
            "learned some of these",
            data.held_out_share,
            share,
            run.path.name,
        )


def _require_gpu() -> None:
    import torch  # takes seconds

    if not torch.cuda.is_available():
        raise ConfigError("evaluation.accelerator=gpu, but this machine has no GPU that torch can use. Set it to cpu.")
