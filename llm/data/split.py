"""Which documents are held out: by hash of their text, so that it is the same text for every tokenizer and run."""

import hashlib
import unicodedata


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out `share` (0 to 1); texts that differ in white space fall on one side."""
    return is_below(place_of(text), share)


def place_of(text: str) -> int:
    """Where a text lies in the split: 64 bits that look random."""
    return int.from_bytes(hashlib.sha256(key(text).encode()).digest()[:8], "big")


def is_below(place: int, share: float) -> bool:
    """Whether a place lies in the held-out share."""
    return place < share * 2**64


def share_that_parts(lowest: int, highest: int) -> float | None:
    """The least share in hundredths that parts texts of these places; None where there is none."""
    shares = (hundredths / 100 for hundredths in range(1, 100))
    return next((share for share in shares if is_below(lowest, share) and not is_below(highest, share)), None)


def key(text: str) -> str:
    """What makes two texts the same: their characters in NFC, white space left out."""
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return "".join(text.split())
