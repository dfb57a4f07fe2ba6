"""metrics.jsonl: one JSON object a line with step, tokens, seconds and what was measured; the truth about a run."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class MetricsLog:
    """The metrics of one run, appended line by line, so that another process can follow them."""

    def __init__(self, path: Path, *, size: int = 0) -> None:
        """Go on after the first `size` bytes; what an interrupted run wrote past its checkpoint is cut off."""
        self._file = path.open("a+b")
        self._file.truncate(size)

    def append(self, record: Record) -> None:
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        self._file.flush()

    @property
    def size(self) -> int:
        """Bytes written so far: what a checkpoint keeps, to go on from there."""
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Record]:
    """Every whole record; a last line that is still being written is left out. Empty if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def history(records: list[Record], metric: str) -> list[tuple[int, float]]:
    """(step, value) of each record that has the metric."""
    return [(record["step"], record[metric]) for record in records if metric in record]
