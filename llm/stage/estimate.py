"""What a run would take, as far as its stage says it: from its config and from what is there; nothing is written.

Text that is not there as documents yet is read for a few seconds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.config.data import PartConfig
from llm.data.mixture import capped_bytes
from llm.run.runs import Run


@dataclass(kw_only=True)
class Estimate:
    """What one run would take; what does not apply to its stage is None."""

    config: Any = None  # of a training: with what is computed of its parents, as its steps
    tokens: float | None = None  # that it is fed in all
    epochs: float | None = None
    is_whole: bool = True  # False: there is more text than was found, and there are fewer epochs
    disk: dict[str, float] = field(default_factory=dict)  # bytes, by what takes them
    notes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)  # of the run's, what the next stage goes by
    # Of a training, which a dry run works out.
    parameters: int | None = None
    trainable: int | None = None
    steps: int | None = None
    flops: float | None = None
    memory: Any = None  # bytes by what takes them, as llm.dry_run.memory has them
    micro_batch: str = ""
    seconds: float | None = None


def estimated_run(stage: str, results: dict[str, Any], *, key: str = "") -> Run:
    """A run that is not there, with the results that it might have."""
    return Run(Path(), {"stage": stage, "status": "estimated", "results": results, "key": key})


def guess_bytes_per_token(vocab_size: int) -> float:
    """Byte-level and character BPE on Korean statutes gave 4.5 at 4,096 and 5.5 to 6.5 at 8,192."""
    return max(2.0, 4.5 + math.log2(vocab_size / 4096))


def estimate_text(documents: Mapping[str, Run], tokenizer: Run) -> Estimate:
    """How many tokens of training text there are, by documents and a tokenizer that are there or are guessed at."""
    raw_bytes = sum(run.results["train"]["raw_bytes"] for run in documents.values())
    is_whole = all(run.results.get("is_whole", True) for run in documents.values())
    per_token, vocab_size = tokenizer.results["bytes_per_token"], tokenizer.results["vocab_size"]
    how = "all of it read" if is_whole else "what some seconds of reading found: there is more"
    source = "as the tokenizer's report has it" if tokenizer.is_done else f"a guess from {vocab_size} tokens"
    made = _of_text(raw_bytes / per_token, raw_bytes, is_whole, vocab_size)
    megabytes = f"{raw_bytes / 1e6:.1f} MB of training text ({how})"
    made.notes = [f"Tokens are estimated: {megabytes}, at {per_token:.2f} bytes a token, {source}."]
    return made


def estimate_mixture(results: Mapping[str, dict[str, Any]], parts: Mapping[str, PartConfig]) -> Estimate:
    """The text of all parts, by what their shards have or might have, up to their caps."""
    pools = {name: capped_bytes(result["train"], parts[name]) for name, result in results.items()}
    train = {name: result["train"] for name, result in results.items()}
    tokens = sum(size * train[name]["tokens"] / train[name]["raw_bytes"] for name, size in pools.items())
    is_whole = all(result.get("is_whole", True) for result in results.values())
    return _of_text(tokens, sum(pools.values()), is_whole, next(iter(results.values()))["vocab_size"])


def _of_text(tokens: float, raw_bytes: int, is_whole: bool, vocab_size: int) -> Estimate:
    results = {"vocab_size": vocab_size, "train": {"tokens": tokens, "raw_bytes": raw_bytes}, "is_whole": is_whole}
    return Estimate(tokens=tokens, is_whole=is_whole, results=results)
