"""What an evaluation is of, a run or any model's folder -> its weights, and the held-out text that is asked about."""

from dataclasses import dataclass, field
from functools import cached_property
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm.config import Accelerator, DataConfig, DataKind, EvaluateStage, EvaluationConfig, Packing, as_recorded
from llm.data import Corpus, open_corpus
from llm.errors import ConfigError, DamagedError, DataError
from llm.run import (
    CONFIG,
    Run,
    Weights,
    base_of,
    digest_in,
    digest_of,
    find_folder,
    find_model_run,
    folder_of,
    is_foreign,
    is_hub_id,
    log,
    positions_of,
    sha256_of,
    weights_in,
    weights_of,
)
from llm.stage._held_out import digest_of_sources, open_sources

TASK_SUFFIXES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".txt", ".csv", ".parquet")

WAY_TO_TEMPLATE = "Mark the answers in its chat_template.jinja, or give data=text."


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, and what is known that it has not learned from: text, conversations, or both."""

    name: str
    path: Path  # of the run, or of the folder
    run: Run | None  # None: no run made it
    positions: int
    shards: Run | None = None  # whose held-out documents are the text, where nothing else was asked for
    sequence_length: int  # of the rows of text
    text: DataConfig | None = None  # the text that was asked for
    texts: dict[str, Corpus] = field(default_factory=dict)  # of it, by part
    chats: DataConfig | None = None  # the conversations that the run was tuned on, or that were asked for
    conversations: Corpus | None = None

    @property
    def title(self) -> str:
        return f"{self.run.stage} {self.path.name}" if self.run else f"folder {self.name}"

    @cached_property
    def weights(self) -> Weights:
        """A run's are checked when they are first asked for."""
        return weights_of(self.run) if self.run else weights_in(self.path)

    @cached_property
    def digest(self) -> str:
        if self.run:
            return self.run.digest
        parts = [self.weights.model, *([self.weights.adapter] if self.weights.adapter else [])]
        return digest_of([digest_in(folder) for folder in parts])

    def parents(self) -> dict[str, str]:
        """The digests of all that the numbers depend on."""
        found = {"run": self.digest}
        if self.shards:
            found["shards"] = self.shards.digest
        if self.texts:
            found["text"] = digest_of_sources(self.texts)
        if self.run and (base := self.run.record["identity"]["parents"].get("base")):
            found["base"] = base
        if self.conversations:
            found["data"] = self.conversations.digest()
        return found

    def note(self) -> dict[str, Any]:
        """What results.json says of whose numbers it has."""
        of_run = {"stage": self.run.stage, "key": self.run.key} if self.run else {"folder": str(self.path)}
        return of_run | {"name": self.name, "digest": self.digest}


def find_subject(config: EvaluateStage) -> Subject:
    """What config.run names, with its files checked, and the text and conversations to ask it about.

    Raises:
        ConfigError: no such run or folder, several, one that is not done or has no model, or what its model cannot do.
        DamagedError: a file of it is not what it was, or what it was made from was made anew.
        DataError: the conversations it was tuned on are others now, so that it is not known which it held out.
    """
    folder = find_folder(config.run)
    if folder is None and is_hub_id(config.run):
        folder = folder_of("run", config.run, file=CONFIG)
    subject = _of_folder(config, folder) if folder else _of_run(config)
    _check(config, subject)
    assert subject.weights.model.is_dir()  # which has every file checked
    return subject


def task_parents(config: EvaluationConfig) -> dict[str, str]:
    """The digest of the task files that the user brings, if any."""
    if config.task_path is None:
        return {}
    files = [path for path in sorted(Path(config.task_path).rglob("*")) if path.suffix in TASK_SUFFIXES]
    return {"tasks": digest_of([[str(path.relative_to(config.task_path)), sha256_of(path)] for path in files])}


def _of_run(config: EvaluateStage) -> Subject:
    run = find_model_run(config.outputs, config.run, done_to_it="evaluated")
    shards, length = None, run.config["data"]["sequence_length"]
    if not _is_on_foreign_base(run):
        base = base_of(run)
        shards, length = base.parent("shards"), base.config["data"]["sequence_length"]
        if shards.record.get("digest") != base.record["identity"]["parents"]["shards"]:
            raise DamagedError(
                f"{base.path} was trained on other shards than {shards.path} holds now. Run the pretraining again."
            )
    is_asked_for = config.data is not None and config.data.kind is DataKind.conversations
    chats = _recorded(run) if run.stage == "finetune" and not is_asked_for else None
    name, known = str(run.record["name"]), {"shards": shards, "sequence_length": length, "chats": chats}
    return Subject(name=name, path=run.path, run=run, positions=positions_of(run), **known | _asked_for(config, chats))


def _of_folder(config: EvaluateStage, folder: Path) -> Subject:
    weights = weights_in(folder)
    if config.data is None and not config.evaluation.tasks:
        raise ConfigError(
            f"run={config.run} is a folder, and it is not known which text its model has not seen. Give some: "
            "data=text data.path=<files>, of which data.held_out_share is measured; or data=conversations."
        )
    from llm.model import read_config  # takes seconds

    read_config(weights.model, key="run")
    name = config.run.rpartition("/")[2] if is_hub_id(config.run) else _name_of(folder)
    return Subject(
        name=name,
        path=folder,
        run=None,
        positions=weights.positions,
        **{"sequence_length": 0} | _asked_for(config, None),
    )


def _is_on_foreign_base(run: Run) -> bool:
    return run.stage == "finetune" and is_foreign(run.places["base"])


def _name_of(folder: Path) -> str:
    """Of an export's model/ or adapter/, the export's."""
    folder = folder.resolve()
    return (folder.parent if (folder.parent / "run.json").is_file() else folder).name


def _recorded(run: Run) -> DataConfig:
    """The conversations that a run was tuned on."""
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


def _asked_for(config: EvaluateStage, chats: DataConfig | None) -> dict[str, Any]:
    """What `data` sets in place of what is known of the subject itself."""
    data = config.data
    if data is None:
        return {"chats": chats, "conversations": open_corpus(chats) if chats else None}
    if data.kind is DataKind.conversations:
        return {"chats": data, "conversations": open_corpus(data)}
    texts = {"shards": None, "text": data, "texts": open_sources(data), "sequence_length": data.sequence_length}
    return texts | {"conversations": open_corpus(chats) if chats else None}


def _check(config: EvaluateStage, subject: Subject) -> None:
    """Refuse, before any work, what cannot be asked."""
    asked, positions = config.evaluation, subject.positions
    if not asked.tokens_to_write(positions) < positions:
        raise ConfigError(
            f"evaluation.max_new_tokens={asked.max_new_tokens} is out of range: prompt and text share "
            f"{positions} tokens in {subject.path.name}. Set it to {positions // 2} or less."
        )
    if config.data is not None and config.data.sequence_length > positions:
        raise ConfigError(
            f"data.sequence_length={config.data.sequence_length} is longer than {positions}, all that "
            f"{subject.path.name} can read. Set data.sequence_length={positions} or less."
        )
    _check_tasks(asked)
    if asked.accelerator is Accelerator.gpu:
        _require_gpu()
    if subject.run is None and subject.chats is not None:
        _require_template(subject.weights.tokenizer)
    if subject.run and subject.conversations and subject.chats is not config.data:
        _require_same(subject.run, subject.conversations, subject.chats)
    if subject.run and config.data is not None:
        _warn_of_shares(subject.run, config.data)


def _check_tasks(config: EvaluationConfig) -> None:
    if config.tasks and find_spec("lm_eval") is None:
        raise ConfigError(
            f"evaluation.tasks={config.tasks} are answered through lm-eval, which is not installed. Install the extra: "
            "pip install -e '.[eval]', or leave evaluation.tasks out."
        )
    if config.task_path is not None and not Path(config.task_path).is_dir():
        raise ConfigError(f"evaluation.task_path={config.task_path} is no folder. Give the one with the task files.")


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


def _require_template(folder: Path) -> None:
    """The conversations of a folder are told by its own template."""
    from llm import tokenizer

    tokenizer.check_template(tokenizer.load_chat(folder), name=f"run={folder}", way=WAY_TO_TEMPLATE)


def _require_gpu() -> None:
    import torch  # takes seconds

    if not torch.cuda.is_available():
        raise ConfigError("evaluation.accelerator=gpu, but this machine has no GPU that torch can use. Set it to cpu.")
