"""A folder of shards: memory-mapped token ids with a manifest that every file is checked against.

manifest.json                 dtype, special ids, for each split its counts and its shards with their SHA-256; its own
train-00000.bin               token ids: for each document of train-00000.parquet bos, its tokens, eos
train-00000.documents.npy     int64 (documents, 2): tokens with bos and eos; bytes of the raw UTF-8 text
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.documents import SPLITS
from llm.errors import DamagedError
from llm.run.files import digest_of, sha256_of, write_json

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens and the index of its documents."""

    tokens_file: str
    documents_file: str
    tokens: int  # bos and eos included
    documents: int
    raw_bytes: int  # UTF-8, before any normalization
    lost_bytes: int  # that the tokenizer cannot represent; counted for held-out documents only
    sha256: dict[str, str]  # of both files, by name


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of the training or the held-out documents, and their totals."""

    documents: int
    tokens: int
    raw_bytes: int
    lost_bytes: int
    unigram_bits_per_byte: float  # entropy of the token frequencies, in bits per raw byte
    shards: list[Shard]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a folder of shards."""

    dtype: str
    vocab_size: int
    bos_id: int
    eos_id: int
    train: Split
    held_out: Split


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json with its own SHA-256 in it."""
    write_json(folder / "manifest.json", asdict(manifest) | {"sha256": digest_of(asdict(manifest))})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards, after checking every file against it.

    Raises:
        DamagedError: a file is missing or is not what the manifest says.
    """
    path = folder / "manifest.json"
    try:
        value = dict(json.loads(path.read_text(encoding="utf-8")))
        if value.pop("sha256") != digest_of(value):
            raise ValueError("its SHA-256 is another")
        splits = {
            name: Split(**value[name] | {"shards": [Shard(**shard) for shard in value[name]["shards"]]})
            for name in SPLITS
        }
        manifest = Manifest(**value | splits)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read ({error!r}). Remove its run's folder to make it again.") from None
    for shard in manifest.train.shards + manifest.held_out.shards:
        if (bad := bad_file(folder, shard)) is not None:
            raise DamagedError(f"{bad} is not what its manifest says. Remove its run's folder to make it again.")
    return manifest


def bad_file(folder: Path, shard: Shard) -> Path | None:
    """The first file of a shard that is missing or has another SHA-256; None if there is none."""
    for name, digest in shard.sha256.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            return folder / name
    return None


def open_shard(folder: Path, shard: Shard, dtype: str) -> tuple[Array, Array]:
    """(tokens, documents) of a shard: ids (tokens,), memory-mapped; int64 (documents, 2), see the module's head."""
    tokens = np.memmap(folder / shard.tokens_file, dtype=dtype, mode="r")
    return tokens, np.load(folder / shard.documents_file, allow_pickle=False)
