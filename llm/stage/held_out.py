"""What an evaluation is of, a run or any model's folder -> the model, and the held-out text that it is asked about.

The text is what the run itself held out, so that none of it was learned from, or the held-out side of `data`.
"""

import random
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from llm.config.compose import as_recorded
from llm.config.data import DataConfig, DataKind
from llm.config.stages import EvaluateStage
from llm.data.corpus import Corpus, open_corpus
from llm.data.documents import open_documents
from llm.data.mixture import sources_of
from llm.data.records import Conversation
from llm.data.rows import length_of_bytes
from llm.data.shards import Sources, available_cores, open_shard, write_shards
from llm.errors import ConfigError, DamagedError, DataError
from llm.run.console import log
from llm.run.files import digest_of
from llm.run.models import Model, base_of, find_model, is_foreign
from llm.run.runs import Run
from llm.tokenizer.chat import check_template
from llm.tokenizer.folder import load_chat

MOST_BYTES = 4_000_000  # of raw text: enough for thousands of items, decoded in seconds
WAY_TO_TEMPLATE = "Mark the answers in its chat_template.jinja, or give data=text."


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A model, and what is known that it has not learned from: text, conversations, or both."""

    model: Model
    shards: Run | None = None  # whose held-out documents are the text, where nothing else was asked for
    sequence_length: int = 0  # of the rows of text
    text: DataConfig | None = None  # the text that was asked for
    texts: dict[str, Run] = field(default_factory=dict)  # its documents, by part
    chats: DataConfig | None = None  # the conversations that the run was tuned on, or that were asked for
    conversations: Corpus | None = None

    def parents(self) -> dict[str, str]:
        """The digests of all that the numbers depend on."""
        run, found = self.model.run, {"run": self.model.digest}
        found |= {"shards": self.shards.digest} if self.shards else {}
        found |= {"text": digest_of({n: run.digest for n, run in self.texts.items()})} if self.texts else {}
        base = run.record["identity"]["parents"].get("base") if run else None
        found |= {"base": base} if base else {}
        return found | ({"data": self.conversations.digest()} if self.conversations else {})

    def note(self) -> dict[str, Any]:
        """What results.json says of whose numbers it has."""
        run, known = self.model.run, {"name": self.model.name, "digest": self.model.digest}
        return ({"stage": run.stage, "key": run.key} if run else {"folder": str(self.model.path)}) | known

    def row_length(self, sources: Sources) -> int:
        """Tokens of a row of text.

        Raises:
            ConfigError: data.sequence_bytes are more tokens than the model can read.
        """
        if self.text is None or self.text.sequence_bytes is None:
            return self.sequence_length
        splits = [made.held_out for _, made in sources.values()]
        tokens, raw_bytes = (sum(getattr(split, name) for split in splits) for name in ("tokens", "raw_bytes"))
        length = length_of_bytes(self.text.sequence_bytes, tokens=tokens, raw_bytes=raw_bytes)
        if length > self.model.positions:
            raise ConfigError(
                f"data.sequence_bytes={self.text.sequence_bytes} are {length} tokens, more than the "
                f"{self.model.positions} that {self.model.path.name} can read. Lower it."
            )
        return length

    def held_out_conversations(self) -> list[Conversation]:
        records = self.conversations.records(held_out=True) if self.conversations else ()
        return [record for record in records if isinstance(record, Conversation)]


def find_evaluated(config: EvaluateStage, texts: dict[str, Run]) -> Evaluated:
    """What config.run names, with its files checked, and the text and conversations to ask it about.

    `texts` are the documents of the text that is asked for, by part.

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
        texts=texts,
        chats=chats,
        conversations=open_corpus(chats) if chats else None,
    )
    _check(config, evaluated)
    model.check()
    return evaluated


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
    """The conversations that a run was tuned on, where they lie seen from here, or from where it was started."""
    if run is None or run.stage != "finetune":
        return None
    values = dict(run.config["data"])
    typed = str(values.get("path") or "")
    there = str(Path(run.record.get("directory", "")) / typed)
    if typed and not _is_there(typed) and _is_there(there):
        values["path"] = there
    return as_recorded(DataConfig, values, place=str(run.path / "config.yaml"))


def _is_there(path: str) -> bool:
    return Path(path).exists() or bool(glob(path))


# What cannot be asked is refused before any work


def _check_folder(config: EvaluateStage, model: Model) -> None:
    if config.data is None and not config.evaluation.tasks:
        raise ConfigError(
            f"run={config.run} is a folder, and it is not known which text its model has not seen. Give some: "
            "data=text data.path=<files>, of which data.held_out_share is measured; or data=conversations."
        )
    from llm.model import read_config  # takes seconds

    read_config(model.weights, key="run")
    if config.data and config.data.kind is DataKind.conversations:  # its own template tells the answers
        chat = load_chat(model.tokenizer)
        check_template(chat, name=f"run={model.tokenizer}", way=WAY_TO_TEMPLATE)


def _check(config: EvaluateStage, evaluated: Evaluated) -> None:
    asked, model, data = config.evaluation, evaluated.model, config.data
    if not asked.tokens_to_write(model.positions) < model.positions:
        raise ConfigError(
            f"evaluation.max_new_tokens={asked.max_new_tokens} is out of range: prompt and text share "
            f"{model.positions} tokens in {model.path.name}. Set it to {model.positions // 2} or less."
        )
    if data and data.sequence_bytes is None and data.sequence_length > model.positions:
        raise ConfigError(
            f"data.sequence_length={data.sequence_length} is longer than {model.positions}, all that "
            f"{model.path.name} can read. Set data.sequence_length={model.positions} or less."
        )
    if model.run is None:
        return
    chats = evaluated.chats
    if chats and chats is not data and evaluated.parents()["data"] != model.run.record["identity"]["parents"]["data"]:
        raise DataError(
            f"{chats.path or f'data={chats.name}'}: it is not what {model.path} was tuned on, so it is not known which "
            "answers that held out. Put it back as it was."
        )
    if data and data.held_out_share > (share := model.run.config["data"]["held_out_share"]):  # the split is by hash
        log.warning(
            "data.held_out_share=%g is more than the %g that %s held out: of texts that it was trained on, it has "
            "learned some of these",
            data.held_out_share,
            share,
            model.path.name,
        )


# The text itself


def open_sources(evaluated: Evaluated, tokenizer_folder: Path, scratch: Path) -> Sources:
    """Shards whose held-out side is the text, by part: the run's own, or the text that was asked for, encoded.

    Raises:
        DataError: a text would be read as a special token.
    """
    if evaluated.shards:
        return sources_of(evaluated.shards)
    sources: Sources = {}
    for name, run in evaluated.texts.items():
        assert evaluated.text is not None
        workers, place = evaluated.text.num_workers or available_cores(), scratch / (name or "shards")
        made = write_shards(open_documents(run), tokenizer_folder, place, num_workers=workers, splits=("held_out",))
        sources[name] = (place, made)
    return sources


def documents_of(sources: Sources, vocabulary: Tokenizer, *, seed: int) -> list[str]:
    """Held-out documents in an order drawn by `seed`, up to MOST_BYTES of raw text.

    They are what the shards' tokens spell, so that they are there whatever became of the files.
    """
    found: list[tuple[Any, int]] = []  # the tokens of a document, bos and eos included, and its raw bytes
    for folder, made in sources.values():
        for shard in made.held_out.shards:
            tokens, documents = open_shard(folder, shard, made.dtype)
            ends = documents[:, 0].cumsum()
            found += zip(np.split(tokens, ends[:-1]), documents[:, 1].tolist(), strict=True)
    random.Random(seed).shuffle(found)
    texts, raw_bytes = [], 0
    for ids, size in found:
        if raw_bytes >= MOST_BYTES:
            break
        texts.append(vocabulary.decode(ids[1:-1].tolist()))
        raw_bytes += size
    return texts
