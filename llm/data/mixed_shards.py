"""The shards of a mixture's parts -> what they come to together, in the proportions of an epoch, and their rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm.config.data import Packing, PartConfig
from llm.data.mixture import MixedRows, amounts
from llm.data.rows import TokenRows
from llm.data.sharding import count_predicted, entropy_bits
from llm.data.shards import Manifest, read_manifest
from llm.run.console import log
from llm.run.runs import Run

Sources = dict[str, tuple[Path, Manifest]]  # part of a mixture -> its shards and what is in them; "": all of it
ROLE = "shards."  # and a part's name: what a run calls the shards of a part
MOST_EPOCHS = 4  # of repeated text, up to which it is worth nearly as much as new text (Muennighoff et al. 2023)


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
) -> TokenRows | MixedRows:
    """The documents of a split, train or held_out, in rows; where `parts` are given, in their proportions.

    Raises:
        ConfigError: a part's cap leaves no row.
    """
    rows = {
        name: TokenRows(folder, manifest, getattr(manifest, split), sequence_length=sequence_length, packing=packing)
        for name, (folder, manifest) in sources.items()
    }
    return rows[""] if "" in rows else MixedRows(rows, parts)


def totals(sources: Sources, parts: Mapping[str, PartConfig]) -> dict[str, Any]:
    """What a manifest says of its splits, of all parts: of the training text in the proportions of an epoch.

    Caps in tokens count here as if rows had no ends: by the mean bytes of a token.
    """
    made = {name: manifest for name, (_, manifest) in sources.items()}
    first = next(iter(made.values()))
    trained = {name: vars(manifest.train) for name, manifest in made.items()}
    wanted = amounts(parts, {name: pool(trained[name], parts[name]) for name in made})
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


def pool(train: Mapping[str, Any], part: PartConfig) -> int:
    """Bytes of training text that a part's caps leave."""
    size = int(train["raw_bytes"])
    caps = [size, part.max_bytes or size]
    if part.max_tokens is not None:
        caps.append(part.max_tokens * size // train["tokens"])
    return max(1, min(caps))


def say_epochs(rows: MixedRows, *, num_steps: int, batch_size: int) -> dict[str, float]:
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
