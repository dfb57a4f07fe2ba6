"""The shards of a mixture's parts -> what they come to together, in the proportions of an epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm.config.data import Packing, PartConfig
from llm.config.stages import PretrainStage
from llm.data.mixture import MixedRows, amounts
from llm.data.rows import TokenRows
from llm.data.sharding import count_predicted, entropy_bits
from llm.data.shards import Manifest, read_manifest
from llm.run.console import log
from llm.run.runs import Run

Sources = dict[str, tuple[Path, Manifest]]  # part of a mixture -> its shards and what is in them; "": all of it
ROLE = "shards."  # and a part's name: what a run calls the shards of a part
MOST_EPOCHS = 4  # of repeated text, up to which it is worth nearly as much as new text (Muennighoff et al. 2023)


def parts_of(shards: Run) -> dict[str, Run]:
    """The shards run of each part of a mixture; none, if it is no mixture."""
    return {role.removeprefix(ROLE): shards.parent(role) for role in shards.record["folders"] if role.startswith(ROLE)}


def totals(runs: Mapping[str, Run], parts: Mapping[str, PartConfig]) -> dict[str, Any]:
    """What a manifest says of its splits, of all parts: of the training text in the proportions of an epoch.

    Caps in tokens count here as if rows had no ends: by the mean bytes of a token.
    """
    results = {name: run.results for name, run in runs.items()}
    first = next(iter(results.values()))
    pools = {name: pool(results[name]["train"], parts[name]) for name in results}
    wanted = amounts(parts, pools)
    times = {name: float(wanted[name] / results[name]["train"]["raw_bytes"]) for name in results}
    train = {
        key: round(sum(times[name] * results[name]["train"][key] for name in results))
        for key in ("documents", "tokens", "raw_bytes")
    }
    counts = sum(times[name] * _counts(run) for name, run in runs.items())
    held_out = {
        key: sum(result["held_out"][key] for result in results.values())
        for key in ("documents", "tokens", "raw_bytes", "lost_bytes")
    }
    return {
        **{key: first[key] for key in ("dtype", "vocab_size", "bos_id", "eos_id")},
        "train": train | {"unigram_bits_per_byte": entropy_bits(np.asarray(counts)) / train["raw_bytes"]},
        "held_out": held_out,
        "parts": {
            name: {"epochs": times[name], **{split: _brief(result[split]) for split in ("train", "held_out")}}
            for name, result in results.items()
        },
    }


def sources_of(shards: Run) -> Sources:
    """The shards of each part of a mixture, or those that there are, each file checked.

    Raises:
        DamagedError: one is missing or is not what it was.
    """
    runs = parts_of(shards) or {"": shards}
    return {name: (run.path / "shards", read_manifest(run.path / "shards")) for name, run in runs.items()}


def rows_of(
    sources: Sources, split: str, *, sequence_length: int, packing: Packing = Packing.concatenate
) -> TokenRows | MixedRows:
    """The documents of a split, train or held_out, in rows."""
    rows = {
        name: TokenRows(folder, manifest, getattr(manifest, split), sequence_length=sequence_length, packing=packing)
        for name, (folder, manifest) in sources.items()
    }
    return rows[""] if "" in rows else MixedRows(rows)


def say_epochs(config: PretrainStage, rows: MixedRows) -> dict[str, float]:
    """How often a run sees each part's text, by name; past MOST_EPOCHS a warning."""
    places = config.trainer.max_steps * config.data.batch_size
    whole = sum(share.places for share in rows.shares)
    epochs = {}
    for name, share in zip(rows.parts, rows.shares, strict=True):
        epochs[name] = places * share.places / whole / share.pool
        log.info(
            "%s: %.1f %% of the rows, from %d of its %d; in %d steps each is seen %.2f times",
            name,
            100 * share.places / whole,
            share.pool,
            share.num_rows,
            config.trainer.max_steps,
            epochs[name],
        )
        if epochs[name] > MOST_EPOCHS:
            log.warning(
                "data.parts.%s is repeated %.1f times: past %d, text is worth ever less. Lower its weight or "
                "trainer.max_steps, or give it more text",
                name,
                epochs[name],
                MOST_EPOCHS,
            )
    return {f"epochs/{name}": value for name, value in epochs.items()}


def pool(train: dict[str, Any], part: PartConfig) -> int:
    """Bytes of training text that a part's caps leave."""
    size = int(train["raw_bytes"])
    caps = [size, part.max_bytes or size]
    if part.max_tokens is not None:
        caps.append(part.max_tokens * size // train["tokens"])
    return max(1, min(caps))


def _counts(run: Run) -> Any:
    """(vocab_size,): how often each token is foretold in a part's training text."""
    folder = run.path / "shards"
    manifest = read_manifest(folder)
    return count_predicted(
        folder,
        manifest.train.shards,
        dtype=manifest.dtype,
        vocab_size=manifest.vocab_size,
        bos_id=manifest.bos_id,
    )


def _brief(split: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in split.items() if key != "shards"}
