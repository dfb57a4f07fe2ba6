"""Text -> its documents, cleaned and split, on disk: all that comes after reads these, and not the files."""

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from llm.config.data import DataConfig, PartConfig
from llm.config.stages import DocumentsStage
from llm.data.corpus import Corpus, open_corpus
from llm.data.documents import open_documents, write_documents
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.making import Outcome, Plan
from llm.run.runs import Run
from llm.stage import Runs, Stage, Step
from llm.stage.estimate import Estimate

FORMAT_VERSION = 1
ROLE = "documents"  # what other runs call it; of a mixture with a dot and the part's name behind
READ_SECONDS = 5.0  # at most, to find out how much text there is
PACKED = 0.35  # of the bytes of Korean text, in zstd: 0.23 of statutes, more of what repeats itself less


def steps(data: DataConfig, *, outputs: str) -> dict[str, Step]:
    """The documents that a text is made of, by role: one run, or of a mixture one for each part.

    Raises:
        ConfigError: there is no such file, or the package is not installed; in the keys of the part.
    """
    made = {}
    for name in sorted(data.parts) if data.is_mixture else [""]:
        part = data.part(name) if name else data
        try:
            open_corpus(part)
        except ConfigError as error:
            raise ConfigError(_in_keys_of_part(str(error), name)) if name else error from None
        config = DocumentsStage(stage="documents", outputs=outputs, data=part)
        made[f"{ROLE}.{name}" if name else ROLE] = Step(config=config, parents={})
    return made


def _in_keys_of_part(line: str, name: str) -> str:
    """A line about data.path and the like in the keys of a part; what a file's name has of them stays as it is."""
    keys = "|".join(PartConfig.__dataclass_fields__)
    line = re.sub(rf"(?<![^\s(])data\.(?=(?:{keys})\b)", f"data.parts.{name}.", line)
    return re.sub(r"(?<![^\s(])data=", f"data.parts.{name}.use=", line)


def of_parts(parents: Mapping[str, Run]) -> dict[str, Run]:
    """The documents runs among what a run is made from, by part of the mixture; "": all of it."""
    return {role[len(ROLE) + 1 :]: run for role, run in parents.items() if role.split(".")[0] == ROLE}


def opened(parents: Mapping[str, Run]) -> dict[str, Path]:
    """The folder of documents of each part, every file checked."""
    return {name: open_documents(run) for name, run in of_parts(parents).items()}


def plan(config: DocumentsStage, parents: Runs) -> Plan:
    corpus = open_corpus(config.data)
    return Plan(
        config=config,
        default_name=config.data.name,
        format_version=FORMAT_VERSION,
        parents={"data": corpus.state()},
        work=lambda run: _write(run, corpus),
    )


def estimate(config: DocumentsStage, parents: Runs) -> Estimate:
    sizes, is_whole = _read(
        _Text(
            repr(replace(config.data, sequence_length=2, sequence_bytes=None, batch_size=1, batch_tokens=None)),
            config.data,
        )
    )
    return Estimate(
        is_whole=is_whole,
        disk={"documents": PACKED * sizes.total()},
        results={"train": {"raw_bytes": sizes[False]}, "is_whole": is_whole},
    )


def result_names(config: DocumentsStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    return []


@dataclass(frozen=True)
class _Text:
    """A data config, equal to every other that reads the same text."""

    key: str
    data: DataConfig = field(compare=False)


@cache
def _read(text: _Text) -> tuple[Counter[bool], bool]:
    """(bytes of text of each side of the split, whether that is all); jobs that share their text read it once."""
    found: Counter[bool] = Counter()
    end = time.monotonic() + READ_SECONDS
    for is_held_out, record in open_corpus(text.data).split_records():
        found[is_held_out] += len(record.text.encode())
        if time.monotonic() > end:
            return found, False
    return found, True


def _write(run: Run, corpus: Corpus) -> Outcome:
    corpus.keep_left_out(run.path)
    made: dict[str, Any] = write_documents(corpus, run.path / "documents")
    for split in ("train", "held_out"):
        log.info("%s: %d documents, %.1f MB of text", split, made[split]["documents"], made[split]["raw_bytes"] / 1e6)
    return Outcome(results=made, digest=made.pop("digest"), notes=corpus.notes())


STAGE = Stage(plan=plan, result_names=result_names, estimate=estimate)
