"""Which documents are held out: by hash of their text, so that it is the same text for every tokenizer and run."""

import hashlib
import unicodedata


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out `share` (0 to 1); texts that differ in white space fall on one side."""
    number = int.from_bytes(hashlib.sha256(key(text).encode()).digest()[:8], "big")
    return number < share * 2**64


def key(text: str) -> str:
    """What makes two texts the same: their characters in NFC, white space left out."""
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return "".join(text.split())
