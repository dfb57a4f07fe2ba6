"""The run that an evaluation is of -> the runs and the text that stand behind it; and what cannot be asked of it."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm.config import Accelerator, DataConfig, EvaluateStage, EvaluationConfig, as_recorded
from llm.data import Corpus, open_corpus
from llm.errors import ConfigError, DamagedError, DataError
from llm.run import (
    Run,
    Weights,
    base_of,
    digest_of,
    find_model_run,
    is_foreign,
    positions_of,
    sha256_of,
    weights_of,
)

TASK_SUFFIXES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".txt", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A finished run with a model, the pretrained run whose weights it has, and the shards of what that held out."""

    run: Run
    base: Run
    shards: Run
    data: DataConfig | None  # conversations, of a tuned run
    corpus: Corpus | None

    @property
    def folder(self) -> Path:
        """Of the tokenizer."""
        return self.weights.tokenizer

    @cached_property
    def weights(self) -> Weights:
        """Checked when they are first asked for."""
        return weights_of(self.run)

    @property
    def positions(self) -> int:
        return positions_of(self.run)

    def parents(self) -> dict[str, str]:
        """The digests of all that the numbers depend on."""
        of_tuning = {"base": self.base.digest, "data": self.corpus.digest()} if self.corpus else {}
        return {"run": self.run.digest, "shards": self.shards.digest, **of_tuning}


def find_subject(config: EvaluateStage) -> Subject:
    """The run that config.run names, with its files checked.

    Raises:
        ConfigError: no such run, several, one that is not done or has no model, or what its model cannot do.
        DamagedError: a file of it is not what it was, or what it was made from was made anew.
        DataError: the conversations it was tuned on are others now, so that it is not known which it held out.
    """
    run = find_model_run(config.outputs, config.run, done_to_it="evaluated")
    if run.stage == "finetune" and is_foreign(place := Path(run.record["folders"]["base"])):
        raise ConfigError(
            f"run={config.run}: {run.path} was tuned on {place}, which was not pretrained here, so that no text is "
            "known that it has not seen. The loss of its held-out answers is in its own run.json."
        )
    base = base_of(run)
    shards = base.parent("shards")
    if shards.record.get("digest") != base.record["identity"]["parents"]["shards"]:
        raise DamagedError(
            f"{base.path} was trained on other shards than {shards.path} holds now. Run the pretraining again."
        )
    data = None
    if run.stage == "finetune":
        data = as_recorded(DataConfig, run.config["data"], place=str(run.path / "config.yaml"))
    subject = Subject(run=run, base=base, shards=shards, data=data, corpus=open_corpus(data) if data else None)
    _check(config.evaluation, subject)
    assert subject.weights.model.is_dir()  # which has every file checked
    return subject


def task_parents(config: EvaluationConfig) -> dict[str, str]:
    """The digest of the task files that the user brings, if any."""
    if config.task_path is None:
        return {}
    files = [path for path in sorted(Path(config.task_path).rglob("*")) if path.suffix in TASK_SUFFIXES]
    return {"tasks": digest_of([[str(path.relative_to(config.task_path)), sha256_of(path)] for path in files])}


def _check(config: EvaluationConfig, subject: Subject) -> None:
    """Refuse, before any work, what cannot be asked."""
    if not config.tokens_to_write(subject.positions) < subject.positions:
        raise ConfigError(
            f"evaluation.max_new_tokens={config.max_new_tokens} is out of range: prompt and text share "
            f"{subject.positions} tokens in {subject.run.path.name}. Set it to {subject.positions // 2} or less."
        )
    if config.tasks and find_spec("lm_eval") is None:
        raise ConfigError(
            f"evaluation.tasks={config.tasks} are answered through lm-eval, which is not installed. Install the extra: "
            "pip install -e '.[eval]', or leave evaluation.tasks out."
        )
    if config.task_path is not None and not Path(config.task_path).is_dir():
        raise ConfigError(f"evaluation.task_path={config.task_path} is no folder. Give the one with the task files.")
    if config.accelerator is Accelerator.gpu:
        _require_gpu()
    if subject.corpus is not None and subject.corpus.digest() != subject.run.record["identity"]["parents"]["data"]:
        where = subject.data.path or f"data={subject.data.name}" if subject.data else ""
        raise DataError(
            f"{where}: it is not what {subject.run.path} was tuned on, so it is not known which answers that held out. "
            "Put it back as it was."
        )


def _require_gpu() -> None:
    import torch  # takes seconds

    if not torch.cuda.is_available():
        raise ConfigError("evaluation.accelerator=gpu, but this machine has no GPU that torch can use. Set it to cpu.")


def held_out_note(subject: Subject) -> dict[str, Any]:
    """What results.json says of whose numbers it has."""
    run = subject.run
    return {"stage": run.stage, "name": run.record["name"], "key": run.key, "digest": run.digest}
