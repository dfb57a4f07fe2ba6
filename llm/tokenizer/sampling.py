"""All training texts -> those that a tokenizer learns from, with progress and the memory that it took."""

import hashlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llm.run.console import log

SAY_EVERY_SECONDS = 10.0


@dataclass
class Taken:
    """What training read."""

    documents: int = 0
    raw_bytes: int = 0
    of_bytes: int | None = None  # what there was to sample from; None where all was taken


def sample(texts: Callable[[], Iterator[str]], *, num_bytes: int | None, seed: int, taken: Taken) -> Iterator[str]:
    """The texts of a random sample of about `num_bytes` (UTF-8), in their order, counted in `taken` as they pass.

    A first pass measures the whole; a text is then taken or not by a hash of seed and text, so that nothing but one
    text is held, a larger sample holds the smaller one, and the same seed takes the same texts.
    """
    share = 1.0
    if num_bytes is not None:
        taken.of_bytes = sum(len(text.encode()) for text in texts())
        share = num_bytes / max(taken.of_bytes, 1)
    chosen = (text for text in texts() if share >= 1 or _draw(text, seed) < share)
    spoken = time.monotonic()
    for text in chosen:
        taken.documents += 1
        taken.raw_bytes += len(text.encode())
        yield text
        if time.monotonic() - spoken > SAY_EVERY_SECONDS:
            spoken = time.monotonic()
            log.info("read %.0f MB in %d documents", taken.raw_bytes / 1e6, taken.documents)
    log.info("learns from %.1f MB in %d documents", taken.raw_bytes / 1e6, taken.documents)


def peak_memory_bytes() -> int:
    """The most memory that this process held so far (resident)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _draw(text: str, seed: int) -> float:
    """A number from 0 to 1 that looks random, and has nothing to do with which texts are held out."""
    digest = hashlib.sha256(f"tokenizer sample {seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
