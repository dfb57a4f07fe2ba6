"""Records that were left out -> quarantine.jsonl: a line each with origin, reason, step or way out, and text."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO

from llm.data.cleaning import Dropped
from llm.data.records import Rejected
from llm.run.files import TEMPORARY, sync_folder

CHARACTERS = 2000  # of a text that are kept: enough to judge, not a second corpus


class Quarantine:
    """The records that one pass left out, nowhere if there is no folder; only a pass that ends leaves a file."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "quarantine.jsonl" if folder is not None else None
        self._file: IO[str] | None = None

    def add(self, left_out: Rejected | Dropped) -> None:
        if self._path is None:
            return
        if self._file is None:
            self._file = self._temporary(self._path).open("w", encoding="utf-8")
        self._file.write(json.dumps(_line(left_out), ensure_ascii=False) + "\n")

    def keep(self) -> None:
        """Give the file its name; of a pass that left nothing out there is none."""
        if self._path is None:
            return
        if self._file is None:
            self._path.unlink(missing_ok=True)
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary(self._path).replace(self._path)
        sync_folder(self._path.parent)
        self._file = None

    def close(self) -> None:
        if self._file is not None and self._path is not None:
            self._file.close()
            self._temporary(self._path).unlink(missing_ok=True)

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")


def _line(left_out: Rejected | Dropped) -> dict[str, str | None]:
    if isinstance(left_out, Rejected):
        return asdict(left_out)
    record = left_out.record
    text = record.text[:CHARACTERS]
    return {"origin": record.origin, "reason": left_out.reason, "step": left_out.step, "text": text}
