"""Held-out text, of shards that there are or of a data config -> its shards by source, and their rows."""

from collections.abc import Mapping
from pathlib import Path

from llm.config import DataConfig
from llm.data import (
    Corpus,
    Manifest,
    MixedRows,
    TokenRows,
    available_cores,
    open_corpus,
    open_parts,
    read_manifest,
    write_shards,
)
from llm.run import Run, digest_of
from llm.stage._mixture import parts_of

Sources = dict[str, tuple[Path, Manifest]]  # part of a mixture -> its shards and what is in them; "": all of it


def open_sources(config: DataConfig) -> dict[str, Corpus]:
    """The corpus of each part of a mixture, or the one that there is; nothing is read yet."""
    return open_parts(config) if config.is_mixture else {"": open_corpus(config)}


def digest_of_sources(corpora: Mapping[str, Corpus]) -> str:
    """SHA-256 over all that is read."""
    return digest_of({name: corpus.digest() for name, corpus in corpora.items()})


def of_shards(shards: Run) -> Sources:
    """What a shards run held out, each file checked.

    Raises:
        DamagedError: one is missing or is not what it was.
    """
    runs = parts_of(shards) or {"": shards}
    return {name: (run.path / "shards", read_manifest(run.path / "shards")) for name, run in runs.items()}


def of_text(corpora: Mapping[str, Corpus], words: Path, folder: Path, *, num_workers: int | None) -> Sources:
    """The held-out documents of each corpus, encoded into `folder` by the tokenizer in `words`.

    Raises:
        DataError: there is none, a record cannot be used, or its text would be read as a special token.
    """
    sources: Sources = {}
    for name, corpus in corpora.items():
        place = folder / (name or "shards")
        manifest = write_shards(
            corpus,
            words,
            place,
            made_from=corpus.digest(),
            num_workers=num_workers or available_cores(),
            splits=("held_out",),
        )
        sources[name] = (place, manifest)
    return sources


def rows_of(sources: Sources, *, sequence_length: int) -> TokenRows | MixedRows:
    """The held-out documents in rows, as training validates: end to end, cut where a row is full."""
    rows = {
        name: TokenRows(folder, manifest, manifest.held_out, sequence_length=sequence_length)
        for name, (folder, manifest) in sources.items()
    }
    return rows[""] if "" in rows else MixedRows(rows)
