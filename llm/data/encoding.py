"""Documents in chunks -> their token ids, chunk by chunk in the same order, by as many processes as wanted.

The parent reads text and writes shards; workers only encode. What comes out does not depend on how many there are.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from llm.data.records import Document
from llm.data.shards import SPLITS, Array
from llm.environment import set_variables
from llm.errors import DataError, MachineError
from llm.tokenizer import load, lost_bytes, special

CHUNK_CHARACTERS = 2**19  # of text encoded at once: about 75 MB of the library's objects
CHUNKS_ALONE = 4  # text of fewer chunks is encoded here, in the time that workers would take to start
CHUNKS_AHEAD = 2  # for each worker: one in work, one that waits for it
CUT_WITHIN = 4096  # characters in which a space is looked for where a long document is cut

_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Documents of one split that are encoded together."""

    split: str
    documents: list[Document]


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """The documents of a chunk as shards hold them."""

    split: str
    ids: Array  # (tokens,): bos, tokens, eos of each document
    documents: Array  # int64 (documents, 3): tokens with bos and eos; raw bytes; lost bytes, of held-out ones only


class Encoder:
    """A saved tokenizer that gives documents as shards hold them."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer, self._special = load(folder), special(folder)
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.bos_id, self.eos_id = self._special.bos_id, self._special.eos_id
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """The chunk's token ids with bos and eos, and the counts of each document.

        Raises:
            DataError: the tokenizer would read a text as a special token.
        """
        texts, decode = [document.text for document in chunk.documents], chunk.split == "held_out"
        if max(map(len, texts)) <= CHUNK_CHARACTERS:
            encoded = self._encode(texts, decode=decode)
        else:
            encoded = [self._encode_long(text, decode=decode) for text in texts]
        counts = np.empty((len(texts), 3), dtype=np.int64)
        parts: list[Array] = []
        bos, eos = (np.array([token], dtype=self.dtype) for token in (self.bos_id, self.eos_id))
        for line, (document, (ids, decoded)) in enumerate(zip(chunk.documents, encoded, strict=True)):
            self._refuse_special(document, ids)
            parts += [bos, ids, eos]
            lost = 0 if decoded is None else lost_bytes(document.text, decoded)
            counts[line] = len(ids) + 2, len(document.text.encode()), lost
        return EncodedChunk(chunk.split, np.concatenate(parts), counts)

    def _encode(self, texts: list[str], *, decode: bool) -> list[tuple[Array, str | None]]:
        """(token ids, what they decode to if that is wanted) of each text."""
        encoded = [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        decoded = self._tokenizer.decode_batch(encoded) if decode else [None] * len(texts)
        return list(zip((np.array(ids, dtype=self.dtype) for ids in encoded), decoded, strict=True))

    def _encode_long(self, text: str, *, decode: bool) -> tuple[Array, str | None]:
        """The same of a long text by its pieces: what the library needs for one is 150 bytes a token."""
        parts = [self._encode([piece], decode=decode)[0] for piece in pieces(text)]
        ids = np.concatenate([ids for ids, _ in parts])
        # Some decoders drop the space that a piece begins with; one too many costs nothing.
        return ids, " ".join(decoded or "" for _, decoded in parts) if decode else None

    def _refuse_special(self, document: Document, ids: Array) -> None:
        """Unigram and WordLevel look a special token's text up in their vocabulary like any other piece."""
        for token in self._special.tokens:
            if token in document.text and np.isin(ids, [self.bos_id, self.eos_id, self._special.pad_id]).any():
                raise DataError(
                    f"{document.origin}: the text holds {token}, which this tokenizer takes for a control token. "
                    "Remove or rewrite it, or choose tokenizer=byte_bpe."
                )


def chunks_of(documents: Iterable[tuple[str, Document]]) -> Iterator[Chunk]:
    """(split, document) in chunks of about CHUNK_CHARACTERS of one split, each split in its order."""
    open_chunks = {split: Chunk(split, []) for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    for split, document in documents:
        open_chunks[split].documents.append(document)
        characters[split] += len(document.text)
        if characters[split] >= CHUNK_CHARACTERS:
            yield open_chunks[split]
            open_chunks[split], characters[split] = Chunk(split, []), 0
    yield from (chunk for chunk in open_chunks.values() if chunk.documents)


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most CHUNK_CHARACTERS, cut before a single space between words if one is near the end.

    There every tokenizer of conf/ begins a token, so that the pieces have the tokens of the whole.
    """
    start = 0
    while len(text) - start > CHUNK_CHARACTERS:
        end = start + CHUNK_CHARACTERS
        spaces = [match.start() for match in _BETWEEN_WORDS.finditer(text, max(start + 1, end - CUT_WITHIN), end)]
        end = spaces[-1] if spaces else end
        yield text[start:end]
        start = end
    yield text[start:]


def encode_in_order(chunks: Iterator[Chunk], folder: Path, *, num_workers: int) -> Generator[EncodedChunk, None, None]:
    """What Encoder gives for each chunk, in the order of the chunks; close it when it is not read to its end.

    At most CHUNKS_AHEAD chunks a worker are in memory, whatever the input's size.

    Raises:
        DataError: as Encoder.encode.
        MachineError: a worker was killed.
    """
    first = list(islice(chunks, CHUNKS_ALONE))
    chunks = chain(first, chunks)
    if num_workers == 1 or len(first) < CHUNKS_ALONE:
        encoder = Encoder(folder)
        for chunk in chunks:
            yield encoder.encode(chunk)
        return
    pool = _start_pool(folder, num_workers)
    try:
        pending: deque[Future[EncodedChunk]] = deque()
        for chunk in chunks:
            pending.append(pool.submit(_encode_in_worker, chunk))
            if len(pending) > CHUNKS_AHEAD * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise MachineError(
            f"one of the {num_workers} processes that encode text was killed, by a lack of memory or by hand. Start "
            "the same command again: it goes on after the shards that are finished. Where memory is short, set "
            f"data.num_workers={max(1, num_workers // 2)}.",
            kind="killed",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # not Linux


def _start_pool(folder: Path, num_workers: int) -> ProcessPoolExecutor:
    """Workers that begin as new processes: forks of this one could inherit locks that its threads hold."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(folder,))


_encoder: Encoder  # of a worker process: loaded once, when it starts


def _start_worker(folder: Path) -> None:
    global _encoder
    set_variables({"TOKENIZERS_PARALLELISM": "false"})  # one core a worker
    for number in (
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGHUP,
    ):  # what reaches a whole group: the parent ends its workers itself
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(folder)


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, and they would wait for it for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    return _encoder.encode(chunk)
