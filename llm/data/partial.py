"""A folder of shards that is being made: which shards are finished, kept from one attempt to the next.

Beside the folder that is to be:

shards.partial/        the files of the shards
shards.partial.json    which of them are finished, with their SHA-256, and what they are made from
"""

import json
from dataclasses import asdict
from pathlib import Path

from llm.data.shards import SPLITS, Manifest, Shard, bad_file, write_manifest
from llm.run.console import log
from llm.run.files import remove, sync_folder, write_json


class PartialFolder:
    """Holds the shards that an earlier attempt finished, if they are as they were and were made from the same."""

    def __init__(self, target: Path, *, made_from: str) -> None:
        self._target, self._made_from = target, made_from
        self.folder = target.with_name(f"{target.name}.partial")
        self._notes = notes_of(target)
        self.shards: dict[str, list[Shard]] = {name: [] for name in SPLITS}
        if self._notes.exists():
            self._read()
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {name for shards in self.shards.values() for shard in shards for name in shard.sha256}
        for path in self.folder.iterdir():
            if path.name not in kept:
                remove(path)

    @property
    def documents(self) -> dict[str, int]:
        """Documents of each split that are in finished shards: as many as a source need not give again."""
        return {name: sum(shard.documents for shard in shards) for name, shards in self.shards.items()}

    def add(self, split: str, shard: Shard) -> None:
        """Note that a shard is finished; its files are on the disk."""
        sync_folder(self.folder)
        self.shards[split].append(shard)
        self._write()

    def complete(self, manifest: Manifest) -> None:
        """Give the folder its name, manifest included."""
        write_manifest(self.folder, manifest)
        self.folder.rename(self._target)
        sync_folder(self._target.parent)
        self._notes.unlink()

    def discard(self) -> None:
        """Remove the folder and what was noted of it."""
        remove(self.folder)
        self._notes.unlink(missing_ok=True)

    def _write(self) -> None:
        shards = {name: [asdict(shard) for shard in shards] for name, shards in self.shards.items()}
        write_json(self._notes, {"made_from": self._made_from, "shards": shards})

    def _read(self) -> None:
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["made_from"] != self._made_from:
                raise ValueError("made from another corpus, or by another tokenizer or version")
            noted = {name: [Shard(**shard) for shard in notes["shards"][name]] for name in SPLITS}
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s is of no use (%r): every shard is made again", self._notes, error)
            return
        for name in SPLITS:
            self.shards[name] = self._good(noted[name])
        self._write()
        shards = sum(map(len, self.shards.values()))
        log.info("going on after %d finished shards with %d documents", shards, sum(self.documents.values()))

    def _good(self, shards: list[Shard]) -> list[Shard]:
        """The shards before the first that is not what was noted."""
        for number, shard in enumerate(shards):
            if (bad := bad_file(self.folder, shard)) is not None:
                log.warning("%s is damaged: it is made again, and the %d after it", bad, len(shards) - number - 1)
                return shards[:number]
        return shards


def notes_of(target: Path) -> Path:
    """Where it is noted which shards of a folder are finished."""
    return target.with_name(f"{target.name}.partial.json")
