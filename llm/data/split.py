"""Which documents are held out: by hash of their text, so that it is the same text for every tokenizer and run."""

import hashlib
import unicodedata
from collections.abc import Iterable


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out `share` (0 to 1); texts that differ in white space fall on one side."""
    number = int.from_bytes(hashlib.sha256(key(text).encode()).digest()[:8], "big")
    return number < share * 2**64


def share_that_parts(texts: Iterable[str]) -> float | None:
    """The least share in hundredths with texts on both sides; None where there is none."""
    kept = list(texts)
    for hundredths in range(1, 100):
        if 0 < sum(is_held_out(text, hundredths / 100) for text in kept) < len(kept):
            return hundredths / 100
    return None


def key(text: str) -> str:
    """What makes two texts the same: their characters in NFC, white space left out."""
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return "".join(text.split())
