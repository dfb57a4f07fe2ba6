"""Which documents are held out: by hash of their text, so that it is the same text for every tokenizer and run."""

import hashlib


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out `share` (0 to 1); equal texts fall on the same side."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return number < share * 2**64
