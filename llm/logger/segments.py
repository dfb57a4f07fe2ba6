"""The .wandb files under outputs/wandb -> what they hold, as far as they are whole, and a torn one cut to that.

Each start of a run leaves a segment: a folder <timestamp>-<run id> with one .wandb file, which is a log in LevelDB's
format: a header, then blocks of 32 KiB in which a record is one chunk or several.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.run import whole_files

WANDB = "wandb"  # the folder under outputs
HEADER, BLOCK, CHUNK = b":W&B\xe1\xbe\x00", 32768, struct.Struct("<IHB")  # a chunk's checksum, length and type
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class Segment:
    """What a .wandb file holds, as far as it can be read."""

    path: Path  # of the file
    steps: frozenset[int]  # of the history
    has_ended: bool  # it has the record that says how the run came to its end
    whole_bytes: int  # up to the end of the last whole record
    folder_id: str | None = None  # the stage and the folder of the run, which an agent's trial has another id than

    @property
    def is_torn(self) -> bool:
        """Whether something follows that cannot be read."""
        return self.path.stat().st_size > self.whole_bytes

    @property
    def is_synced(self) -> bool:
        return self.marker.exists()

    @property
    def marker(self) -> Path:
        """The file by which wandb knows that a segment was uploaded."""
        return self.path.with_name(self.path.name + ".synced")

    @property
    def is_online(self) -> bool:
        return not self.path.parent.name.startswith("offline-")

    @property
    def run_id(self) -> str:
        return self.path.stem.removeprefix("run-")


def run_folders(outputs: Path) -> list[Path]:
    """The folders of all segments, the oldest first."""
    folders = [path for path in (outputs / WANDB).glob("*run-*-*") if path.is_dir() and not path.is_symlink()]
    return sorted(folders, key=lambda path: path.name.partition("run-")[2])


def segments_of(outputs: Path, run_id: str) -> list[Segment]:
    """What the starts of one run left, the oldest first."""
    files = (folder / f"run-{run_id}.wandb" for folder in run_folders(outputs) if folder.name.endswith(f"-{run_id}"))
    return [read_segment(path) for path in files if path.is_file()]


def read_segment(path: Path) -> Segment:
    """A .wandb file, as far as it is whole."""
    steps, has_ended, whole, folder_id = set(), False, 0, None
    for record, end in _records(path.read_bytes()):
        whole = end
        if record.WhichOneof("record_type") == "history":
            steps.add(int(record.history.step.num))
        elif record.WhichOneof("record_type") == "run":
            folder_id = f"{record.run.job_type}-{record.run.display_name}"
        has_ended = has_ended or record.HasField("exit")
    return Segment(path, frozenset(steps), has_ended, whole, folder_id)


def cut_torn(segment: Segment) -> None:
    """Leave of a torn file what is whole; as it was, it stays beside it under the name *.torn."""
    content = segment.path.read_bytes()
    with whole_files(segment.path.parent) as target:
        (target / f"{segment.path.name}.torn").write_bytes(content)
        (target / segment.path.name).write_bytes(content[: segment.whole_bytes] or HEADER)


def _records(content: bytes) -> Iterator[tuple[Any, int]]:
    """(record, where it ends) until the file's end, or until something is not whole."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # has no stubs of its own
    from wandb.proto.wandb_internal_pb2 import Record

    for payload, end in _payloads(content):
        try:
            yield Record.FromString(payload), end
        except DecodeError:
            return


def _payloads(content: bytes) -> Iterator[tuple[bytes, int]]:
    if not content.startswith(HEADER):
        return
    place, parts = len(HEADER), b""
    while place + CHUNK.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < CHUNK.size:  # too little for a chunk: the block ends in padding
            place += left
            continue
        _, length, kind = CHUNK.unpack_from(content, place)
        start, end = place + CHUNK.size, place + CHUNK.size + length
        if end > len(content) or kind not in (WHOLE, FIRST, MIDDLE, LAST) or (kind in (MIDDLE, LAST)) != bool(parts):
            return
        parts += content[start:end]
        place = end
        if kind in (WHOLE, LAST):
            yield parts, place
            parts = b""
