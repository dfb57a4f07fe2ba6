"""A size and a seed -> a jsonl file of made-up Korean: words of Hangul syllables, as frequent as words are (Zipf)."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VOCABULARY = 400_000  # words; each may take one of the endings
ENDINGS = ["", "은", "는", "이", "가", "을", "를", "의", "에", "에서", "으로", "하고", "했다", "한다", "하였으며"]
SYLLABLES = [chr(code) for code in range(ord("가"), ord("힣") + 1)]


def write_jsonl(path: Path, *, megabytes: float, seed: int = 0) -> None:
    """Write at least so many MB (10^6 bytes of UTF-8) of documents, one a line."""
    left = megabytes * 1e6
    with path.open("w", encoding="utf-8") as file:
        for text in texts(seed):
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            file.write(line)
            left -= len(line.encode())
            if left <= 0:
                return


def texts(seed: int) -> Iterator[str]:
    """Documents without end, of 20 to 2,000 words."""
    draw = np.random.default_rng(seed)
    common = draw.permutation(np.array(SYLLABLES))[:1200]  # as few as Korean text mostly uses
    syllables = common[draw.integers(0, len(common), (VOCABULARY, 4))]
    words = np.array(
        ["".join(row[:size]) for row, size in zip(syllables, draw.integers(1, 5, VOCABULARY), strict=True)]
    )
    up_to = np.cumsum(1 / np.arange(1, VOCABULARY + 1))  # the frequencies of a word and of all before it
    endings = np.array(ENDINGS)
    while True:
        count = int(20 * 100 ** draw.random())
        chosen = words[np.searchsorted(up_to, draw.random(count) * up_to[-1])]
        chosen = np.char.add(chosen, draw.choice(endings, count))
        chosen[9::10] = np.char.add(chosen[9::10], ".")
        yield " ".join(chosen.tolist())
