"""Documents and a tokenizer -> shards of token ids on disk with a manifest, and back as memory-mapped arrays.

manifest.json                 dtype, special ids, for each split its counts and its shards with their SHA-256; its own
train-00000.bin               token ids: for each document bos, its tokens, eos
train-00000.documents.npy     int64 (documents, 2): tokens with bos and eos; bytes of the raw UTF-8 text
"""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from llm.data.corpus import Corpus
from llm.data.records import Conversation, Document
from llm.errors import DamagedError, DataError
from llm.run import digest_of, sha256_of, whole_folder, write_json
from llm.tokenizer import Special, batch_encoder, lost_bytes

BATCH = 2000  # documents encoded at once
SHARD_TOKENS = 2**27  # 128 Mi tokens, 256 MiB at two bytes each

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens and the index of its documents."""

    tokens_file: str
    documents_file: str
    tokens: int
    documents: int
    sha256: dict[str, str]  # of both files, by name


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of the training or the held-out documents, and their totals."""

    documents: int
    tokens: int  # bos and eos included
    raw_bytes: int  # UTF-8, before any normalization
    lost_bytes: int  # that the tokenizer cannot represent; counted for held-out documents only
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


def write_shards(corpus: Corpus, tokenizer: Tokenizer, special: Special, folder: Path) -> Manifest:
    """Encode both sides of a corpus into `folder`, which appears only when it is whole.

    Raises:
        DataError: a record cannot be used, or its text would be read as a special token.
    """
    dtype = np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32)
    with whole_folder(folder) as temporary:
        splits = {
            name: _write_split(
                corpus.records(held_out=held_out),
                tokenizer,
                special,
                temporary,
                name=name,
                dtype=dtype,
                count_lost=held_out,
            )
            for name, held_out in (("train", False), ("held_out", True))
        }
        manifest = Manifest(
            dtype=dtype.name,
            vocab_size=tokenizer.get_vocab_size(),
            bos_id=special.bos_id,
            eos_id=special.eos_id,
            **splits,
        )
        write_json(temporary / "manifest.json", asdict(manifest) | {"sha256": digest_of(asdict(manifest))})
    return manifest


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
            for name in ("train", "held_out")
        }
        manifest = Manifest(**value | splits)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read ({error!r}). Remove its run's folder to make it again.") from None
    for shard in manifest.train.shards + manifest.held_out.shards:
        for name, digest in shard.sha256.items():
            if not (folder / name).is_file() or sha256_of(folder / name) != digest:
                raise DamagedError(
                    f"{folder / name} is not what its manifest says. Remove its run's folder to make it again."
                )
    return manifest


def open_shard(folder: Path, shard: Shard, dtype: str) -> tuple[Array, Array]:
    """(tokens, documents) of a shard: ids (tokens,), memory-mapped; int64 (documents, 2), see the module's head."""
    tokens = np.memmap(folder / shard.tokens_file, dtype=dtype, mode="r")
    return tokens, np.load(folder / shard.documents_file, allow_pickle=False)


def _write_split(
    records: Iterator[Document | Conversation],
    tokenizer: Tokenizer,
    special: Special,
    folder: Path,
    *,
    name: str,
    dtype: np.dtype[Any],
    count_lost: bool,
) -> Split:
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    lost = 0
    encode = batch_encoder(tokenizer)
    with closing(_ShardWriter(folder, name, dtype)) as writer:
        while batch := list(islice(records, BATCH)):
            texts = [record.text for record in batch]
            encoded = encode(texts)
            for record, token_ids in zip(batch, encoded, strict=True):
                _refuse_special(record, token_ids, special)
            if count_lost:
                lost += sum(map(lost_bytes, texts, tokenizer.decode_batch(encoded)))
            documents = [np.array([special.bos_id, *token_ids, special.eos_id], dtype=dtype) for token_ids in encoded]
            for text, ids in zip(texts, documents, strict=True):
                writer.add(ids, len(text.encode()))
            predicted = np.concatenate([ids[1:] for ids in documents])  # what a model is asked for: all but bos
            counts += np.bincount(predicted, minlength=len(counts))
        shards = writer.finish()
    return Split(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        raw_bytes=writer.raw_bytes,
        lost_bytes=lost,
        unigram_bits_per_byte=_entropy_bits(counts) / writer.raw_bytes,
        shards=shards,
    )


def _refuse_special(record: Document | Conversation, token_ids: list[int], special: Special) -> None:
    """Unigram and WordLevel look a special token's text up in their vocabulary like any other piece."""
    for token in special.tokens:
        if token in record.text and not {special.bos_id, special.eos_id, special.pad_id}.isdisjoint(token_ids):
            raise DataError(
                f"{record.origin}: the text holds {token}, which this tokenizer takes for a control token. "
                "Remove or rewrite it, or choose tokenizer=byte_bpe."
            )


def _entropy_bits(counts: Array) -> float:
    """Bits that the counted tokens take in all under their own frequencies."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * (math.log2(used.sum()) - np.log2(used))).sum())


class _ShardWriter:
    """Appends documents to files of at most SHARD_TOKENS tokens (more only for a document that is longer)."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]) -> None:
        self._folder, self._name, self._dtype = folder, name, dtype
        self._shards: list[Shard] = []
        self._documents: list[tuple[int, int]] = []
        self._tokens = 0
        self._file = self._open()
        self.raw_bytes = 0

    def add(self, ids: Array, raw_bytes: int) -> None:
        if self._tokens and self._tokens + len(ids) > SHARD_TOKENS:
            self._finish_shard()
            self._file = self._open()
        self._file.write(ids.tobytes())
        self._documents.append((len(ids), raw_bytes))
        self._tokens += len(ids)
        self.raw_bytes += raw_bytes

    def finish(self) -> list[Shard]:
        """End the last shard."""
        self._finish_shard()
        return self._shards

    def close(self) -> None:
        self._file.close()

    @property
    def _stem(self) -> str:
        return f"{self._name}-{len(self._shards):05d}"

    def _open(self) -> BinaryIO:
        return (self._folder / f"{self._stem}.bin").open("wb")

    def _finish_shard(self) -> None:
        self._file.close()
        tokens_file, documents_file = f"{self._stem}.bin", f"{self._stem}.documents.npy"
        np.save(self._folder / documents_file, np.array(self._documents, dtype=np.int64).reshape(-1, 2))
        self._shards.append(
            Shard(
                tokens_file=tokens_file,
                documents_file=documents_file,
                tokens=self._tokens,
                documents=len(self._documents),
                sha256={name: sha256_of(self._folder / name) for name in (tokens_file, documents_file)},
            )
        )
        self._documents, self._tokens = [], 0
