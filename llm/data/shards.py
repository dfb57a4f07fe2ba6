"""Documents and a saved tokenizer -> a folder of shards: memory-mapped token ids, each file checked before it is read.

manifest.json                 dtype, special ids, for each split its counts and its shards with their SHA-256; its own
train-00000.bin               token ids: for each document of train-00000.parquet bos, its tokens, eos
train-00000.documents.npy     int64 (documents, 2): tokens with bos and eos; bytes of the raw UTF-8 text
train-00000.json              the note of a finished shard, until the manifest is there: killed work goes on after those
"""

import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from io import BytesIO
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.documents import SPLITS, document_files, read_documents
from llm.environment import set_variables
from llm.errors import DamagedError, DataError, MachineError
from llm.run.console import log
from llm.run.files import TEMPORARY, clear_temporaries, digest_of, naming, sha256_of, sync_file, write_json
from llm.tokenizer.folder import load_tokenizer, read_special
from llm.tokenizer.report import lost_bytes

Array = np.ndarray[Any, Any]
Sources = dict[str, tuple[Path, "Manifest"]]  # part of a mixture -> its shards and what is in them; "": all of it

FILES_ALONE = 3  # so few are encoded here, in the time that workers would take to start
BATCH_CHARACTERS = 2**16  # of text encoded at once: about 10 MB of the library's objects
PIECE_CHARACTERS = 2**18  # of a document, more of which are encoded in pieces
CUT_WITHIN = 4096  # characters in which a space is looked for where a long document is cut
COUNTED_AT_ONCE = 2**22  # tokens
LOG_SECONDS = 10.0  # between two lines on how far it is

_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


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


# Writing


def write_shards(
    documents: Path,
    tokenizer_folder: Path,
    folder: Path,
    *,
    num_workers: int = 1,
    splits: tuple[str, ...] = SPLITS,
) -> Manifest:
    """Encode both sides of a folder of documents, or those in `splits`; manifest.json comes last.

    The files are the same to the byte, whatever was killed before and however many workers there are.

    Raises:
        DataError: a text would be read as a special token.
        MachineError: a process that encodes was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder)
    if (folder / "manifest.json").exists():  # the kill came after it, but before the run's record
        return read_manifest(folder)
    encoder = Encoder(tokenizer_folder)
    files = [file for split in splits for file in document_files(documents, split)]
    shards = {file: shard for file in files if (shard := _finished(folder, file.stem)) is not None}
    if shards:
        log.info("going on after %d of %d shards", len(shards), len(files))
    left = [file for file in files if file not in shards]
    logged_at = time.monotonic()
    for file, shard in zip(left, _encode(left, encoder, folder, num_workers=num_workers), strict=True):
        shards[file] = shard
        if time.monotonic() - logged_at > LOG_SECONDS:
            logged_at = time.monotonic()
            log.info("%d of %d shards", len(shards), len(files))
    train, held_out = (
        _total(folder, [shards[file] for file in document_files(documents, split) if file in shards], encoder)
        for split in SPLITS
    )
    manifest = Manifest(
        dtype=encoder.dtype,
        vocab_size=encoder.vocab_size,
        bos_id=encoder.bos_id,
        eos_id=encoder.eos_id,
        train=train,
        held_out=held_out,
    )
    write_manifest(folder, manifest)
    for file in files:
        _note(folder, file.stem).unlink(missing_ok=True)
    return manifest


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # not Linux


class Encoder:
    """A saved tokenizer that gives documents as shards hold them."""

    def __init__(self, tokenizer_folder: Path) -> None:
        self.folder = tokenizer_folder
        self._tokenizer, self._special = load_tokenizer(tokenizer_folder), read_special(tokenizer_folder)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.bos_id, self.eos_id = self._special.bos_id, self._special.eos_id
        self.dtype = "uint16" if self.vocab_size <= 2**16 else "uint32"

    def write(self, file: Path, folder: Path) -> Shard:
        """The shard of a file of documents, in `folder`. Lost bytes are counted of held-out ones only.

        Raises:
            DataError: the tokenizer would read a text as a special token.
        """
        tokens = bytearray()
        counts: list[tuple[int, int]] = []
        lost = 0
        decode = file.stem.startswith("held_out")
        for batch in _batches(read_documents(file)):
            encoded = self.encode([text for text, _ in batch], decode=decode)
            for (text, origin), (ids, decoded) in zip(batch, encoded, strict=True):
                self._refuse_special(text, origin, ids)
                tokens += np.array([self.bos_id, *ids, self.eos_id], dtype=self.dtype).tobytes()
                counts.append((len(ids) + 2, len(text.encode())))
                lost += 0 if decoded is None else lost_bytes(text, decoded)
        return _write_shard(folder, file.stem, tokens, np.array(counts, dtype=np.int64), lost)

    def encode(self, texts: list[str], *, decode: bool) -> list[tuple[list[int], str | None]]:
        """(token ids, what they decode to if that is wanted) of each text; of one that is long by its pieces.

        What the library needs for a text is 150 bytes a token.
        """
        if max(map(len, texts)) > PIECE_CHARACTERS:
            return [self._encode_long(text, decode=decode) for text in texts]
        encoded = [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        decoded = self._tokenizer.decode_batch(encoded) if decode else [None] * len(texts)
        return list(zip(encoded, decoded, strict=True))

    def _encode_long(self, text: str, *, decode: bool) -> tuple[list[int], str | None]:
        parts = [self.encode([piece], decode=decode)[0] for piece in pieces(text)]
        ids = [token for ids, _ in parts for token in ids]
        # Some decoders drop the space that a piece begins with; one too many costs nothing.
        return ids, " ".join(decoded or "" for _, decoded in parts) if decode else None

    def _refuse_special(self, text: str, origin: str, ids: list[int]) -> None:
        """Unigram and WordLevel look a special token's text up in their vocabulary like any other piece."""
        for token in self._special.tokens:
            if token in text and not {self.bos_id, self.eos_id, self._special.pad_id}.isdisjoint(ids):
                raise DataError(
                    f"{origin}: the text holds {token}, which this tokenizer takes for a control token. Remove or "
                    "rewrite it, or choose tokenizer=byte_bpe."
                )


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most PIECE_CHARACTERS, cut before a single space between words if one is near the end.

    There every tokenizer of conf/ begins a token, so that the pieces have the tokens of the whole.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        spaces = [match.start() for match in _BETWEEN_WORDS.finditer(text, max(start + 1, end - CUT_WITHIN), end)]
        end = spaces[-1] if spaces else end
        yield text[start:end]
        start = end
    yield text[start:]


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Documents in lists of about BATCH_CHARACTERS."""
    batch: list[tuple[str, str]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[0])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_shard(folder: Path, name: str, tokens: bytearray, documents: Array, lost: int) -> Shard:
    index = BytesIO()  # for numpy does not say why it cannot write to a file
    np.save(index, documents)
    contents: dict[str, bytes | bytearray] = {f"{name}.bin": tokens, f"{name}.documents.npy": index.getvalue()}
    for file, content in contents.items():
        temporary = folder / f"{TEMPORARY}{file}-{os.getpid()}"
        with naming(folder / file, temporary):
            temporary.write_bytes(content)
            sync_file(temporary)
            temporary.replace(folder / file)
    shard = Shard(
        tokens_file=f"{name}.bin",
        documents_file=f"{name}.documents.npy",
        tokens=int(documents[:, 0].sum()),
        documents=len(documents),
        raw_bytes=int(documents[:, 1].sum()),
        lost_bytes=lost,
        sha256={file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
    )
    write_json(_note(folder, name), asdict(shard))
    return shard


def _note(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _finished(folder: Path, name: str) -> Shard | None:
    """A shard that an earlier attempt finished, if its files are as they were."""
    try:
        shard = Shard(**json.loads(_note(folder, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return shard if bad_file(folder, shard) is None else None


def _encode(files: Sequence[Path], encoder: Encoder, folder: Path, *, num_workers: int) -> Iterator[Shard]:
    """The shard of each file, in order.

    Raises:
        DataError: as Encoder.write.
        MachineError: a worker was killed.
    """
    if num_workers == 1 or len(files) <= FILES_ALONE:
        yield from (encoder.write(file, folder) for file in files)
        return
    # Workers begin as new processes: forks of this one could inherit locks that its threads hold.
    context = multiprocessing.get_context("spawn")
    num_workers = min(num_workers, len(files))
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(encoder.folder, folder)
    )
    try:
        yield from pool.map(_write_in_worker, files)
    except BrokenProcessPool:
        raise MachineError(
            f"one of the {num_workers} processes that encode text was killed, by a lack of memory or by hand. Start "
            "the same command again: it goes on after the shards that are finished. Where memory is short, set "
            f"data.num_workers={max(1, num_workers // 2)}."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Encoder, Path]  # of a worker process: its encoder and the folder of shards


def _start_worker(tokenizer_folder: Path, folder: Path) -> None:
    global _worker
    set_variables({"TOKENIZERS_PARALLELISM": "false"})  # one core a worker
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):  # these reach a whole group: the parent ends workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Encoder(tokenizer_folder), folder


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, and they would wait for it for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _write_in_worker(file: Path) -> Shard:
    encoder, folder = _worker
    return encoder.write(file, folder)


def _total(folder: Path, shards: list[Shard], encoder: Encoder) -> Split:
    if not shards:  # a side that was not asked for
        return Split(documents=0, tokens=0, raw_bytes=0, lost_bytes=0, unigram_bits_per_byte=0.0, shards=[])
    raw_bytes = sum(shard.raw_bytes for shard in shards)
    counts = count_predicted(folder, shards, encoder)
    return Split(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        raw_bytes=raw_bytes,
        lost_bytes=sum(shard.lost_bytes for shard in shards),
        unigram_bits_per_byte=entropy_bits(counts) / raw_bytes,
        shards=shards,
    )


def count_predicted(folder: Path, shards: list[Shard], by: Encoder | Manifest) -> Array:
    """(vocab_size,): how often each token is what a model is asked for: always, but for the bos of a document."""
    counts = np.zeros(by.vocab_size, dtype=np.int64)
    for shard in shards:
        tokens, _ = open_shard(folder, shard, by.dtype)
        for start in range(0, len(tokens), COUNTED_AT_ONCE):
            counts += np.bincount(tokens[start : start + COUNTED_AT_ONCE], minlength=len(counts))
        counts[by.bos_id] -= shard.documents
    return counts


def entropy_bits(counts: Array) -> float:
    """Bits that the counted tokens take in all under their own frequencies."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * (math.log2(used.sum()) - np.log2(used))).sum())
