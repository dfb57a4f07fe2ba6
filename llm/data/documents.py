"""A corpus -> its cleaned documents on disk, written once; and the folder of a documents run -> its texts.

train-00000.parquet, held_out-00000.parquet ...   columns text and origin (file:line), in zstd
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from llm.data.corpus import Corpus
from llm.data.records import Document
from llm.run.files import digest_of, naming, whole_folder
from llm.run.runs import Run, check_files

SPLITS = ("train", "held_out")
FOLDER = "documents"  # in the run's own
FILE_BYTES = 2**23  # of text: one shard, of which a kill can cost each process one
READ_AT_ONCE = 256  # documents


@dataclass(frozen=True, slots=True)
class Documents:
    """The cleaned documents of a corpus, parted into training and held-out ones."""

    folder: Path

    def files(self, split: str) -> list[Path]:
        """Those of one of SPLITS, in order."""
        return sorted(self.folder.glob(f"{split}-*.parquet"))

    def texts(self, split: str) -> Iterator[str]:
        """The texts of one of SPLITS, in order."""
        return (text for file in self.files(split) for text, _ in read_documents(file))


def open_documents(run: Run) -> Documents:
    """The documents of a run, each file checked.

    Raises:
        DamagedError: one is missing or is not what it was.
    """
    check_files(run, under=FOLDER)
    return Documents(run.path / FOLDER)


def read_documents(file: Path) -> Iterator[tuple[str, str]]:
    """(text, origin) of the documents of one file, READ_AT_ONCE of which are in memory."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(READ_AT_ONCE, use_threads=False):
            yield from zip(batch["text"].to_pylist(), batch["origin"].to_pylist(), strict=True)


def write_documents(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Write both sides of a corpus into `folder`, which appears only when it is whole; gives counts and a digest.

    The digest is of the texts, their order and their sides: other files with the same text have the same.

    Raises:
        DataError: a record cannot be used, or a side has none.
    """
    with whole_folder(folder) as target:
        writers = {split: _Writer(target, split) for split in SPLITS}
        for is_held_out, record in corpus.split_records():
            assert isinstance(record, Document)  # the stage takes no conversations
            writers[SPLITS[is_held_out]].add(record)
        for writer in writers.values():
            writer.end_file()
    digest = digest_of({split: writer.sha256.hexdigest() for split, writer in writers.items()})
    return {split: writer.counts for split, writer in writers.items()} | {"digest": digest}


class _Writer:
    """Appends documents to files of about FILE_BYTES, and counts them."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self.counts, self.sha256 = dict.fromkeys(("documents", "raw_bytes", "files"), 0), hashlib.sha256()
        self._documents: list[Document] = []
        self._size = 0

    def add(self, document: Document) -> None:
        self._documents.append(document)
        self._size += len(document.text.encode())
        if self._size >= FILE_BYTES:
            self.end_file()

    def end_file(self) -> None:
        """Write what has come since the last file, if there is any."""
        if not self._documents:
            return
        import pyarrow
        from pyarrow import parquet

        texts = pyarrow.array([document.text for document in self._documents], pyarrow.large_string())
        for buffer in texts.buffers()[1:]:  # where each text ends, and all of them
            self.sha256.update(buffer)
        origins = [document.origin for document in self._documents]
        content = BytesIO()
        parquet.write_table(
            pyarrow.table({"text": texts, "origin": origins}), content, compression="zstd", use_dictionary=False
        )
        path = self._folder / f"{self._split}-{self.counts['files']:05d}.parquet"
        with naming(path):
            path.write_bytes(content.getbuffer())
        self.counts["documents"] += len(self._documents)
        self.counts["raw_bytes"] += self._size
        self.counts["files"] += 1
        self._documents, self._size = [], 0
