"""The parts of a mixture -> the text that its tokenizer learns from, and the rows that its model does, in proportion.

Weights are shares of bytes of raw text: whatever a tokenizer makes of it, models see the same proportions. An epoch of
a mixture has as much text as its parts have together; a part whose weight is above its size comes several times in it.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llm.config.data import DataConfig, PartConfig
from llm.data.corpus import Corpus, open_corpus
from llm.data.order import MicroBatch, Share, pool_order
from llm.data.rows import Array, Batch, Rows, TokenRows
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.files import clear_temporaries, digest_of


class MixedCorpus:
    """The texts of all parts of a mixture, as a tokenizer takes them."""

    def __init__(self, config: DataConfig) -> None:
        self._parts: dict[str, PartConfig] = config.parts
        self._corpora = open_parts(config)
        self._sizes: dict[str, int] | None = None  # of the training text, bytes

    @property
    def rights(self) -> str | None:
        return "\n".join(dict.fromkeys(filter(None, (corpus.rights for corpus in self._corpora.values())))) or None

    def digest(self) -> str:
        """SHA-256 over all that is read."""
        return digest_of({name: corpus.digest() for name, corpus in self._corpora.items()})

    def keep_left_out(self, folder: Path) -> None:
        """Have the passes that follow leave what they left out in folder/parts/<part>."""
        for name, corpus in self._corpora.items():
            (folder / "parts" / name).mkdir(parents=True, exist_ok=True)
            clear_temporaries(folder / "parts" / name)
            corpus.keep_left_out(folder / "parts" / name)

    def say_dropped(self) -> dict[str, int]:
        """As Corpus.say_dropped, each reason with its part."""
        dropped = {name: corpus.say_dropped() for name, corpus in self._corpora.items()}
        return {f"{name}: {reason}": times for name, counts in dropped.items() for reason, times in counts.items()}

    def texts(self, *, held_out: bool) -> Iterator[str]:
        """Held-out texts each once; training texts in the mixture's proportions, some several times or not at all."""
        if held_out or all(part.weight is None and part.max_bytes is None for part in self._parts.values()):
            for corpus in self._corpora.values():
                yield from corpus.texts(held_out=held_out)
            return
        if self._sizes is None:
            self._sizes = {n: sum(len(t.encode()) for t in c.texts(held_out=False)) for n, c in self._corpora.items()}
            self._say_times()
        for name, (kept, times) in self._times().items():
            for text in self._corpora[name].texts(held_out=False):
                if _draw("cap", text) < kept:
                    yield from [text] * (int(times) + (_draw("repeat", text) < times % 1))

    def _times(self) -> dict[str, tuple[float, float]]:
        """For each part the share of its texts that its cap leaves, and how many times each of these comes."""
        assert self._sizes is not None
        pools = {name: min(self._parts[name].max_bytes or size, size) for name, size in self._sizes.items()}
        wanted = amounts(self._parts, pools)
        return {name: (pools[name] / size, float(wanted[name] / pools[name])) for name, size in self._sizes.items()}

    def _say_times(self) -> None:
        assert self._sizes is not None
        for name, (kept, times) in self._times().items():
            log.info(
                "%s: %.1f MB of training text, the tokenizer is given %.3g of it %.3g times",
                name,
                self._sizes[name] / 1e6,
                kept,
                times,
            )
            if self._parts[name].max_tokens is not None:
                log.warning(
                    "data.parts.%s.max_tokens bounds no text of a tokenizer, before which there are no tokens; "
                    "max_bytes does",
                    name,
                )


def open_texts(config: DataConfig) -> Corpus | MixedCorpus:
    """What a tokenizer learns from: the corpus of a data config, or those of a mixture's parts; nothing is read yet.

    Raises:
        ConfigError: as open_corpus.
    """
    return MixedCorpus(config) if config.is_mixture else open_corpus(config)


def corpus_notes(corpus: Corpus | MixedCorpus) -> dict[str, Any]:
    """What a run keeps of the corpus that it read: the rights note (said once a process) and what was dropped."""
    if corpus.rights:
        _say_once(corpus.rights)
    return {"rights": corpus.rights, "dropped_records": corpus.say_dropped()}


@cache
def _say_once(text: str) -> None:
    log.info("rights: %s", text)


def open_parts(config: DataConfig) -> dict[str, Corpus]:
    """The corpus of each part, by name; nothing is read yet.

    Raises:
        ConfigError: as open_corpus, in the keys of the part.
    """
    corpora = {}
    for name in sorted(config.parts):
        try:
            corpora[name] = open_corpus(config.part(name))
        except ConfigError as error:
            raise ConfigError(_in_keys_of_part(str(error), name)) from error
    return corpora


class MixedRows:
    """The rows of all parts, one part after the other by name."""

    def __init__(self, parts: Mapping[str, TokenRows]) -> None:
        self.parts: dict[str, TokenRows] = {name: parts[name] for name in sorted(parts)}
        rows = list(self.parts.values())
        self.sequence_length = rows[0].sequence_length
        self.num_labels: Array = np.concatenate([part.num_labels for part in rows])
        self.raw_bytes = sum(part.raw_bytes for part in rows)
        self.lost_bytes = sum(part.lost_bytes for part in rows)
        self.first_rows: list[int] = [0, *np.cumsum([len(part) for part in rows[:-1]]).tolist()]
        self.shares: list[Share] = []  # of an epoch, where the rows are trained on

    def __len__(self) -> int:
        return len(self.num_labels)

    def part_of(self, row: int) -> int:
        """The number of the part that has a row."""
        return int(np.searchsorted(self.first_rows, row, side="right")) - 1

    @property
    def padding_share(self) -> float:
        return 1 - float(self.num_labels.sum()) / (len(self) * self.sequence_length)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        import torch  # takes seconds, which the stages before training need not wait for

        rows = np.asarray(micro_batch.rows)
        parts = np.searchsorted(self.first_rows, rows, side="right") - 1
        batch = {key: torch.empty((len(rows), self.sequence_length), dtype=torch.int64) for key in _TENSORS}
        for number, part in enumerate(self.parts.values()):
            here = np.flatnonzero(parts == number)
            if len(here):
                within = MicroBatch(micro_batch.step, rows[here] - self.first_rows[number], micro_batch.num_labels)
                read = part.__getitems__(within)
                for key in _TENSORS:
                    batch[key][torch.from_numpy(here)] = read[key]
        return {**batch, "num_labels": micro_batch.num_labels}

    def describe(self, rows: Array) -> list[str]:
        names, own = list(self.parts), list(self.parts.values())
        found = []
        for row in np.asarray(rows):
            part = self.part_of(int(row))
            found += [f"{names[part]} {line}" for line in own[part].describe(np.array([row - self.first_rows[part]]))]
        return found


_TENSORS = ("input_ids", "labels", "position_ids")


def share_out(rows: MixedRows, parts: Mapping[str, PartConfig]) -> dict[str, Share]:
    """The share of an epoch that each part has, which is set in `rows`, too.

    Raises:
        ConfigError: a cap leaves no row.
    """
    pools, kept = {}, {}
    for name, part in rows.parts.items():
        pools[name], kept[name] = _pool(name, part, parts[name])
    wanted = amounts(parts, kept)
    shares = {}
    for (name, own), first in zip(rows.parts.items(), rows.first_rows, strict=True):
        times = wanted[name] / kept[name]
        shares[name] = Share(first, len(own), pools[name], max(1, round(times * pools[name])))
    rows.shares = list(shares.values())
    return shares


def amounts(parts: Mapping[str, PartConfig], pools: Mapping[str, Fraction | int]) -> dict[str, Fraction]:
    """Bytes that each part has of an epoch, of `pools` bytes that there are of it: these, or the same by weight."""
    total = sum(map(Fraction, pools.values()))
    weights = {name: parts[name].weight for name in pools}
    if None in weights.values():
        return {name: Fraction(pool) for name, pool in pools.items()}
    whole = sum(Fraction(weight or 0) for weight in weights.values())
    return {name: total * Fraction(weight or 0) / whole for name, weight in weights.items()}


def _pool(name: str, rows: Rows, part: PartConfig) -> tuple[int, Fraction]:
    """(rows that a part's caps leave, bytes of these), by the labels that they have."""
    labels = int(rows.num_labels.sum())
    caps = [labels]
    if part.max_tokens is not None:
        caps.append(part.max_tokens)
    if part.max_bytes is not None:
        caps.append(part.max_bytes * labels // rows.raw_bytes)
    pool = len(rows)
    if min(caps) < labels:
        in_order = np.cumsum(rows.num_labels[pool_order(len(rows), len(rows))])
        pool = int(np.searchsorted(in_order, min(caps), side="right"))
        if pool == 0:
            key = "max_tokens" if part.max_tokens == min(caps) else "max_bytes"
            raise ConfigError(
                f"data.parts.{name}.{key}={getattr(part, key)} is less than a row of {int(in_order[0])} tokens. "
                "Raise it, or lower data.sequence_length."
            )
        labels = int(in_order[pool - 1])
    return pool, Fraction(labels * rows.raw_bytes, int(rows.num_labels.sum()))


def _in_keys_of_part(line: str, name: str) -> str:
    """A line about data.path and the like in the keys of a part; what a file's name has of them stays as it is."""
    keys = "|".join(PartConfig.__dataclass_fields__)
    line = re.sub(rf"(?<![^\s(])data\.(?=(?:{keys})\b)", f"data.parts.{name}.", line)
    return re.sub(r"(?<![^\s(])data=", f"data.parts.{name}.use=", line)


def _draw(purpose: str, text: str) -> float:
    """A number from 0 to 1 that looks random, the same for the same text."""
    digest = hashlib.sha256(f"mixture {purpose}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
