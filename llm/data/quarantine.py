"""Records that were left out -> quarantine.jsonl: a line each with origin, reason, step or way out, and text."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from llm.data.cleaning import Dropped
from llm.data.records import Rejected
from llm.run.files import TEMPORARY, sync_file, sync_folder

CHARACTERS = 2000  # of a text that are kept: enough to judge, not a second corpus


@contextmanager
def quarantine(folder: Path | None) -> Iterator[Callable[[Rejected | Dropped], object]]:
    """What takes each record that one pass leaves out, to nowhere if there is no folder.

    Only a pass that ends leaves a file, and of one that left nothing out there is none.
    """
    if folder is None:
        yield lambda _: None
        return
    path = folder / "quarantine.jsonl"
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield lambda left_out: file.write(json.dumps(_line(left_out), ensure_ascii=False) + "\n")
        if temporary.stat().st_size:
            sync_file(temporary)
            temporary.replace(path)
        else:
            path.unlink(missing_ok=True)
        sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _line(left_out: Rejected | Dropped) -> dict[str, str | None]:
    if isinstance(left_out, Rejected):
        return asdict(left_out)
    record = left_out.record
    text = record.text[:CHARACTERS]
    return {"origin": record.origin, "reason": left_out.reason, "step": left_out.step, "text": text}
