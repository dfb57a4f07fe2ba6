"""A corpus and a saved tokenizer -> a folder of shards, by all cores, going on where a killed attempt ended."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tokenizers

from llm.data.corpus import Corpus
from llm.data.encoding import EncodedChunk, Encoder, chunks_of, encode_in_order
from llm.data.partial import PartialFolder, notes_of
from llm.data.records import Document
from llm.data.shards import SPLITS, Array, Manifest, Shard, Split, open_shard, read_manifest
from llm.errors import DataError
from llm.run.console import log
from llm.run.files import digest_of, naming, sync_file

SHARD_TOKENS = 2**25  # 32 Mi tokens, 64 MiB at two bytes each: what a kill can cost, half a minute on two cores
COUNTED_AT_ONCE = 2**22  # tokens


def write_shards(
    corpus: Corpus,
    tokenizer_folder: Path,
    folder: Path,
    *,
    made_from: str,
    num_workers: int = 1,
    splits: tuple[str, ...] = SPLITS,
) -> Manifest:
    """Encode both sides of a corpus, or those in `splits`, into `folder`, which appears only when it is whole.

    `made_from` is a digest of corpus, tokenizer and settings: shards that a killed attempt finished are kept if they
    were made from the same. The files are the same to the byte, whatever was killed and however many workers there are.

    Raises:
        DataError: a record cannot be used, or its text would be read as a special token. Nothing is left then.
        MachineError: a process that encodes was killed.
    """
    if folder.is_dir():  # the kill came after the last shard, but before the run's record
        notes_of(folder).unlink(missing_ok=True)
        _count_dropped(corpus)
        return read_manifest(folder)
    encoder = Encoder(tokenizer_folder)
    partial = PartialFolder(folder, made_from=digest_of([made_from, SHARD_TOKENS, tokenizers.__version__]))
    try:
        chunks = chunks_of(_documents_left(corpus, partial.documents, splits))
        encoded = encode_in_order(chunks, tokenizer_folder, num_workers=num_workers)
        with closing(encoded), ExitStack() as stack:
            writers = {split: stack.enter_context(closing(_ShardWriter(partial, split))) for split in SPLITS}
            for chunk in encoded:
                writers[chunk.split].add(chunk)
            for writer in writers.values():
                writer.finish_shard()
    except DataError:  # the same command would end here again
        partial.discard()
        raise
    manifest = Manifest(
        dtype=encoder.dtype.name,
        vocab_size=encoder.vocab_size,
        bos_id=encoder.bos_id,
        eos_id=encoder.eos_id,
        **{split: _total(partial.folder, partial.shards[split], encoder) for split in SPLITS},
    )
    partial.complete(manifest)
    return manifest


def _documents_left(
    corpus: Corpus, finished: dict[str, int], splits: tuple[str, ...]
) -> Iterator[tuple[str, Document]]:
    """(split, document) of those that are in no finished shard: each split's first ones are."""
    seen: Counter[str] = Counter()
    if splits == SPLITS:
        records = corpus.split_records()
    else:
        held_out = splits == ("held_out",)
        records = ((held_out, record) for record in corpus.records(held_out=held_out))
    for is_held_out, record in records:
        assert isinstance(record, Document)  # the stage takes no conversations
        split = SPLITS[is_held_out]
        seen[split] += 1
        if seen[split] > finished[split]:
            yield split, record


def _count_dropped(corpus: Corpus) -> None:
    """Read a corpus for its counts alone."""
    for _ in corpus.split_records():
        pass


def _total(folder: Path, shards: list[Shard], encoder: Encoder) -> Split:
    if not shards:  # a side that was not asked for
        return Split(documents=0, tokens=0, raw_bytes=0, lost_bytes=0, unigram_bits_per_byte=0.0, shards=[])
    raw_bytes = sum(shard.raw_bytes for shard in shards)
    counts = count_predicted(
        folder, shards, dtype=encoder.dtype.name, vocab_size=encoder.vocab_size, bos_id=encoder.bos_id
    )
    return Split(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        raw_bytes=raw_bytes,
        lost_bytes=sum(shard.lost_bytes for shard in shards),
        unigram_bits_per_byte=entropy_bits(counts) / raw_bytes,
        shards=shards,
    )


def count_predicted(folder: Path, shards: list[Shard], *, dtype: str, vocab_size: int, bos_id: int) -> Array:
    """(vocab_size,): how often each token is what a model is asked for: always, but for the bos of a document."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in shards:
        tokens, _ = open_shard(folder, shard, dtype)
        for start in range(0, len(tokens), COUNTED_AT_ONCE):
            counts += np.bincount(tokens[start : start + COUNTED_AT_ONCE], minlength=len(counts))
        counts[bos_id] -= shard.documents
    return counts


def entropy_bits(counts: Array) -> float:
    """Bits that the counted tokens take in all under their own frequencies."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * (math.log2(used.sum()) - np.log2(used))).sum())


class _ShardWriter:
    """Appends documents to files of at most SHARD_TOKENS tokens (more only for a document that is longer)."""

    def __init__(self, partial: PartialFolder, split: str) -> None:
        self._partial, self._split = partial, split
        self._file: BinaryIO | None = None
        self._documents: list[Array] = []
        self._tokens = 0
        self._sha256 = hashlib.sha256()  # of the tokens, as they were meant: a write that went wrong shows

    def add(self, encoded: EncodedChunk) -> None:
        """Append the documents of a chunk, cut where a shard is full."""
        ids, documents = encoded.ids, encoded.documents
        while len(documents):
            ends = np.cumsum(documents[:, 0])
            fitting = int(np.searchsorted(ends, SHARD_TOKENS - self._tokens, side="right"))
            if not fitting and self._tokens:
                self.finish_shard()
                continue
            fitting = max(fitting, 1)
            size = int(ends[fitting - 1])
            self._append(ids[:size], documents[:fitting])
            ids, documents = ids[size:], documents[fitting:]

    def finish_shard(self) -> None:
        """Put the shard that is open on the disk, and note that it is finished."""
        if self._file is None:
            return
        self.close()
        with naming(self._path):
            sync_file(self._path)
        documents = np.concatenate(self._documents)
        index = BytesIO()  # for numpy does not say why it cannot write to a file
        np.save(index, documents[:, :2])
        index_path = self._path.with_name(f"{self._stem}.documents.npy")
        with naming(index_path):
            index_path.write_bytes(index.getbuffer())
            sync_file(index_path)
        shard = Shard(
            tokens_file=self._path.name,
            documents_file=index_path.name,
            tokens=self._tokens,
            documents=len(documents),
            raw_bytes=int(documents[:, 1].sum()),
            lost_bytes=int(documents[:, 2].sum()),
            sha256={
                self._path.name: self._sha256.hexdigest(),
                index_path.name: hashlib.sha256(index.getbuffer()).hexdigest(),
            },
        )
        self._partial.add(self._split, shard)
        log.info("%s: %d documents, %d tokens", shard.tokens_file, shard.documents, shard.tokens)
        self._file, self._documents, self._tokens, self._sha256 = None, [], 0, hashlib.sha256()

    def close(self) -> None:
        """Leave a shard that is not finished."""
        if self._file is not None:
            with naming(self._path):
                self._file.close()

    @property
    def _stem(self) -> str:
        return f"{self._split}-{len(self._partial.shards[self._split]):05d}"

    @property
    def _path(self) -> Path:
        return self._partial.folder / f"{self._stem}.bin"

    def _append(self, ids: Array, documents: Array) -> None:
        if self._file is None:
            self._file = self._path.open("wb")
        content = ids.tobytes()
        with naming(self._path):
            self._file.write(content)
        self._sha256.update(content)
        self._documents.append(documents)
        self._tokens += len(ids)
