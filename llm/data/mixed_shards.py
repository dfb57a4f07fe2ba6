"""The shards of a mixture's parts -> what they come to together, in the proportions of an epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm.config import PartConfig, PretrainStage
from llm.data.mixture import MixedRows, amounts, share_out
from llm.data.rows import TokenRows
from llm.data.sharding import count_predicted, entropy_bits
from llm.data.shards import read_manifest
from llm.run import Run, log

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


def mixed_rows(config: PretrainStage, shards: Run) -> dict[str, MixedRows]:
    """The rows of both splits; says what share each part has, and how often its text is seen.

    Raises:
        ConfigError: a cap leaves no row.
        DamagedError: shards are damaged.
    """
    length, packing = config.data.sequence_length, config.data.packing
    train, held_out = {}, {}
    for name, run in parts_of(shards).items():
        folder = run.path / "shards"
        manifest = read_manifest(folder)
        train[name] = TokenRows(folder, manifest, manifest.train, sequence_length=length, packing=packing)
        held_out[name] = TokenRows(folder, manifest, manifest.held_out, sequence_length=length)
    rows = {"train": MixedRows(train), "held_out": MixedRows(held_out)}
    share_out(rows["train"], config.data.parts)
    return rows


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
