"""A corpus -> its cleaned documents on disk, written once; and their folder -> the texts.

train-00000.parquet, held_out-00000.parquet ...   columns text and origin (file:line), in zstd
"""

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from llm.data.corpus import Corpus
from llm.data.records import Document
from llm.environment import set_variables
from llm.run.files import digest_of, naming, whole_folder
from llm.run.runs import Run, check_files

SPLITS = ("train", "held_out")
FOLDER = "documents"  # in the run's own
FILE_BYTES = 2**23  # of text: one shard, of which a kill can cost each process one
READ_AT_ONCE = 256  # documents


def document_files(folder: Path, split: str) -> list[Path]:
    """The files of one of SPLITS in a folder of documents, in order."""
    return sorted(folder.glob(f"{split}-*.parquet"))


def read_texts(folder: Path, split: str) -> Iterator[str]:
    """The texts of one of SPLITS, in order."""
    return (text for file in document_files(folder, split) for text, _ in read_documents(file))


def read_documents(file: Path) -> Iterator[tuple[str, str]]:
    """(text, origin) of the documents of one file, READ_AT_ONCE of which are in memory."""
    _, parquet = _arrow()
    with parquet.ParquetFile(file, buffer_size=2**16) as opened:
        for batch in opened.iter_batches(READ_AT_ONCE, use_threads=False):
            yield from zip(batch["text"].to_pylist(), batch["origin"].to_pylist(), strict=True)


def open_documents(run: Run) -> Path:
    """The folder of a run's documents, each file checked.

    Raises:
        DamagedError: one is missing or is not what it was.
    """
    check_files(run, under=FOLDER)
    return run.path / FOLDER


def write_documents(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Write both sides of a corpus into `folder`, which appears only when it is whole; gives counts and a digest.

    The digest is of the texts, their order and their sides: other files with the same text have the same.

    Raises:
        DataError: a record cannot be used, or a side has none.
    """
    counts = {split: dict.fromkeys(("documents", "raw_bytes", "files"), 0) for split in SPLITS}
    sha256 = {split: hashlib.sha256() for split in SPLITS}
    kept: dict[str, list[tuple[bytes, str]]] = {split: [] for split in SPLITS}  # text and origin, of the next file
    sizes = dict.fromkeys(SPLITS, 0)  # of these texts
    with whole_folder(folder) as target:

        def end_file(split: str) -> None:
            path = target / f"{split}-{counts[split]['files']:05d}.parquet"
            _write_file(path, kept[split], sha256[split])
            counts[split]["files"] += 1
            kept[split], sizes[split] = [], 0

        for is_held_out, record in corpus.split_records():
            assert isinstance(record, Document)  # the stage takes no conversations
            split, text = SPLITS[is_held_out], record.text.encode()
            kept[split].append((text, record.origin))
            counts[split]["documents"] += 1
            counts[split]["raw_bytes"] += len(text)
            sizes[split] += len(text)
            if sizes[split] >= FILE_BYTES:
                end_file(split)
        for split in SPLITS:
            if kept[split]:
                end_file(split)
    pyarrow, _ = _arrow()
    pyarrow.default_memory_pool().release_unused()  # 30 MB, which shards are made beside
    return counts | {"digest": digest_of({split: each.hexdigest() for split, each in sha256.items()})}


def _write_file(path: Path, documents: list[tuple[bytes, str]], sha256: Any) -> None:
    """Write (text, origin) pairs; the digest takes in where each text ends, and all of them."""
    pyarrow, parquet = _arrow()
    texts = pyarrow.array([text for text, _ in documents], pyarrow.large_string())
    for buffer in texts.buffers()[1:]:
        sha256.update(buffer)
    table = pyarrow.table({"text": texts, "origin": [origin for _, origin in documents]})
    content = BytesIO()  # for Arrow does not say why it cannot write to a file
    parquet.write_table(table, content, compression="zstd", use_dictionary=False)
    with naming(path):
        path.write_bytes(content.getbuffer())


def _arrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, with malloc's memory: what is free of Arrow's own it does not give back."""
    set_variables({"ARROW_DEFAULT_MEMORY_POOL": "system"})  # which is looked at once, at the import
    import pyarrow
    from pyarrow import parquet

    return pyarrow, parquet
