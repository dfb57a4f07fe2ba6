"""The parts of a mixture -> the text that its tokenizer learns from, and the rows that its model does, in proportion.

Weights are shares of bytes of raw text: whatever a tokenizer makes of it, models see the same proportions. An epoch of
a mixture has as much text as its parts have together; a part whose weight is above its size comes several times in it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from llm.config.data import Packing, PartConfig
from llm.data.documents import read_texts
from llm.data.order import Share, pool_order
from llm.data.rows import Part, TokenRows
from llm.data.shards import Sources, count_predicted, entropy_bits, read_manifest
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.runs import Run

ROLE = "shards."  # and a part's name: what a run calls the shards of a part
MOST_EPOCHS = 4  # of repeated text, up to which it is worth nearly as much as new text (Muennighoff et al. 2023)


def texts_in_proportion(
    documents: Mapping[str, Path], sizes: Mapping[str, int], parts: Mapping[str, PartConfig]
) -> Iterator[str]:
    """The training texts of all parts, of `sizes` bytes, as weights and caps say: some several times or not at all."""
    pools = {name: min(parts[name].max_bytes or size, size) for name, size in sizes.items()}
    wanted = amounts(parts, pools)
    for name, size in sizes.items():
        kept, times = pools[name] / size, float(wanted[name] / pools[name])
        for text in read_texts(documents[name], "train"):
            if kept == 1 or _draw("cap", text) < kept:
                yield from [text] * (int(times) + (times % 1 > 0 and _draw("repeat", text) < times % 1))


def amounts(parts: Mapping[str, PartConfig], pools: Mapping[str, Fraction | int]) -> dict[str, Fraction]:
    """Bytes that each part has of an epoch, of `pools` bytes that there are of it: these, or the same by weight."""
    total = sum(map(Fraction, pools.values()))
    weights = {name: parts[name].weight for name in pools}
    if None in weights.values():
        return {name: Fraction(pool) for name, pool in pools.items()}
    whole = sum(Fraction(weight or 0) for weight in weights.values())
    return {name: total * Fraction(weight or 0) / whole for name, weight in weights.items()}


def shares_of(rows: TokenRows, parts: Mapping[str, PartConfig]) -> list[Share]:
    """What an epoch has of the rows of each part, by its weight and caps.

    Raises:
        ConfigError: a cap leaves no row.
    """
    pools = {name: _capped_rows(name, own, parts[name]) for name, own in rows.parts.items()}
    wanted = amounts(parts, {name: size for name, (_, size) in pools.items()})
    return [
        Share(own.first_row, len(own.num_labels), pool, max(1, round(wanted[name] / size * pool)))
        for (name, own), (pool, size) in zip(rows.parts.items(), pools.values(), strict=True)
    ]


def _capped_rows(name: str, rows: Part, part: PartConfig) -> tuple[int, Fraction]:
    """(rows that a part's caps leave, bytes of these), by the labels that they have."""
    labels = int(rows.num_labels.sum())
    max_bytes = part.max_bytes and part.max_bytes * labels // rows.raw_bytes
    caps = [("max_tokens", part.max_tokens), ("max_bytes", max_bytes)]
    key, cap = min(
        ((key, cap) for key, cap in caps if cap is not None), key=lambda found: found[1], default=("", labels)
    )
    if cap >= labels:
        return len(rows.num_labels), Fraction(rows.raw_bytes)
    in_order = np.cumsum(rows.num_labels[pool_order(len(rows.num_labels), len(rows.num_labels))])
    pool = int(np.searchsorted(in_order, cap, side="right"))
    if pool == 0:
        raise ConfigError(
            f"data.parts.{name}.{key}={getattr(part, key)} is less than a row of {int(in_order[0])} tokens. Raise it, "
            "or lower data.sequence_length."
        )
    return pool, Fraction(int(in_order[pool - 1]) * rows.raw_bytes, labels)


def sources_of(shards: Run) -> Sources:
    """The shards of each part of a mixture, or those that there are, each file checked.

    Raises:
        DamagedError: one is missing or is not what it was.
    """
    roles = [role for role in shards.record["folders"] if role.startswith(ROLE)]
    runs = {role.removeprefix(ROLE): shards.parent(role) for role in roles} or {"": shards}
    return {name: (run.path / "shards", read_manifest(run.path / "shards")) for name, run in runs.items()}


def rows_of(
    sources: Sources,
    split: str,
    *,
    sequence_length: int,
    packing: Packing = Packing.concatenate,
    parts: Mapping[str, PartConfig] | None = None,
) -> TokenRows:
    """The documents of a split, train or held_out, in rows; where `parts` are given, in their proportions.

    Raises:
        ConfigError: a part's cap leaves no row.
    """
    rows = TokenRows(sources, split, sequence_length=sequence_length, packing=packing)
    if parts:
        rows.shares = shares_of(rows, parts)
    return rows


def totals(sources: Sources, parts: Mapping[str, PartConfig]) -> dict[str, Any]:
    """What a manifest says of its splits, of all parts: of the training text in the proportions of an epoch.

    Caps in tokens count here as if rows had no ends: by the mean bytes of a token.
    """
    made = {name: manifest for name, (_, manifest) in sources.items()}
    first = next(iter(made.values()))
    trained = {name: vars(manifest.train) for name, manifest in made.items()}
    wanted = amounts(parts, {name: capped_bytes(trained[name], parts[name]) for name in made})
    times = {name: float(wanted[name] / trained[name]["raw_bytes"]) for name in made}
    counts = sum(
        times[name] * count_predicted(folder, manifest.train.shards, manifest)
        for name, (folder, manifest) in sources.items()
    )
    keys = ("documents", "tokens", "raw_bytes")
    train = {key: round(sum(times[name] * trained[name][key] for name in made)) for key in keys}
    return {
        **{key: getattr(first, key) for key in ("dtype", "vocab_size", "bos_id", "eos_id")},
        "train": train | {"unigram_bits_per_byte": entropy_bits(np.asarray(counts)) / train["raw_bytes"]},
        "held_out": {
            key: sum(getattr(manifest.held_out, key) for manifest in made.values()) for key in (*keys, "lost_bytes")
        },
        "parts": {
            name: {
                "epochs": times[name],
                **{split: _brief(vars(getattr(manifest, split))) for split in ("train", "held_out")},
            }
            for name, manifest in made.items()
        },
    }


def capped_bytes(train: Mapping[str, Any], part: PartConfig) -> int:
    """Bytes of training text that a part's caps leave."""
    size = int(train["raw_bytes"])
    caps = [size, part.max_bytes or size]
    if part.max_tokens is not None:
        caps.append(part.max_tokens * size // train["tokens"])
    return max(1, min(caps))


def say_epochs(rows: TokenRows, *, num_steps: int, batch_size: int) -> dict[str, float]:
    """How often a run sees each part's text, by the name of its result; past MOST_EPOCHS a warning."""
    whole = sum(share.places for share in rows.shares)
    epochs = {}
    for name, share in zip(rows.parts, rows.shares, strict=True):
        times = epochs[f"epochs/{name}"] = num_steps * batch_size * share.places / whole / share.pool
        log.info(
            "%s: %.1f %% of the rows, from %d of its %d; each is seen %.2f times",
            *(name, 100 * share.places / whole, share.pool, share.num_rows, times),
        )
        if times > MOST_EPOCHS:
            log.warning(
                "data.parts.%s is repeated %.1f times: past %d, text is worth ever less. Lower its weight or "
                "trainer.max_steps, or give it more text",
                *(name, times, MOST_EPOCHS),
            )
    return epochs


def _brief(split: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in split.items() if key != "shards"}


def _draw(purpose: str, text: str) -> float:
    """A number from 0 to 1 that looks random, the same for the same text."""
    digest = hashlib.sha256(f"mixture {purpose}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
