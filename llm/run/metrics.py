"""metrics.jsonl: one JSON object a line with step, tokens, seconds and what was measured; the truth about a run."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm.errors import DamagedError
from llm.run.files import naming

Record = dict[str, Any]
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
VALIDATION = "validation.jsonl"  # what a run of text was fed and what held-out text then cost, by blocks of documents


class MetricsLog:
    """The metrics of one run, appended line by line, so that another process can follow them."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        """Go on after the first `size` bytes; what an interrupted run wrote past its checkpoint is cut off.

        Raises:
            DamagedError: the file is shorter than that.
        """
        self._path, self._file = path, path.open("a+b")
        there = self._file.seek(0, os.SEEK_END)
        if there < size:
            self._file.close()
            raise DamagedError(f"{path} has {there} bytes, but the checkpoint counts on {size}. Run with reuse=never.")
        self._file.truncate(size)
        self._file.seek(size)

    def append(self, record: Record) -> None:
        """Write one line.

        Raises:
            DamagedError: the run's folder was removed, or another one has its name: nothing that is written would stay.
        """
        self._require_place()
        with naming(self._path):
            self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
            self._file.flush()

    @property
    def size(self) -> int:
        """Bytes that are on the disk: what a checkpoint keeps, to go on from there."""
        self._require_place()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _require_place(self) -> None:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                return
        raise DamagedError(
            f"{self._path.parent} was removed or moved while this process was at it. Start the same command again to "
            "make the run anew, or where it is now to go on."
        )

    def close(self) -> None:
        with naming(self._path):
            self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """Every whole record; a last line that is still being written is left out. Empty if there is no file.

    Raises:
        DamagedError: a line before the last is no JSON.
    """
    records: list[Record] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # not splitlines: text may hold U+2028
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise DamagedError(f"{path}:{number}: this is no JSON. Run with reuse=never to make it again.") from None
    return records


def history(records: list[Record], metric: str) -> list[tuple[int, float]]:
    """(step, value) of each record that has the metric."""
    return [(record["step"], record[metric]) for record in records if metric in record]
