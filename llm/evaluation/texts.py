"""Held-out shards -> their documents as text, and the sentences of a document.

The text is what the shards' tokens spell, so that it is there however the model was made and whatever became of the
files; under a tokenizer that loses nothing it is the same text as under any other.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from llm.data import Manifest
from llm.data.shards import open_shard

MOST_BYTES = 4_000_000  # of raw text: enough for thousands of items, decoded in seconds
CHARACTERS = (15, 150)  # of a sentence that is asked about
FEWEST_WORDS = 4

_ENDS = re.compile(r"(?<=[.!?])\s+")
_HANGUL = re.compile("[가-힣]")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, and what parts it from the one before it: a space or a line feed."""

    text: str
    gap: str


def held_out_documents(sources: Iterable[tuple[Path, Manifest]], tokenizer: Tokenizer, *, seed: int) -> list[str]:
    """Held-out documents of folders of shards in an order drawn by `seed`, up to MOST_BYTES of raw text."""
    opened = [open_shard(folder, shard, made.dtype) for folder, made in sources for shard in made.held_out.shards]
    places = [(shard, line) for shard, (_, documents) in enumerate(opened) for line in range(len(documents))]
    random.Random(seed).shuffle(places)
    starts = [documents[:, 0].cumsum() - documents[:, 0] for _, documents in opened]
    texts, raw_bytes = [], 0
    for shard, line in places:
        tokens, documents = opened[shard]
        start, length = int(starts[shard][line]), int(documents[line, 0])
        texts.append(tokenizer.decode(tokens[start + 1 : start + length - 1].tolist()))  # between bos and eos
        raw_bytes += int(documents[line, 1])
        if raw_bytes >= MOST_BYTES:
            break
    return texts


def sentences(document: str) -> Iterator[Sentence | None]:
    """What stands in a document, piece by piece: its sentences, and None for what is none or is too long or short."""
    for line in document.splitlines():
        for place, piece in enumerate(_ENDS.split(line.strip())):
            yield Sentence(piece, " " if place else "\n") if _is_sentence(piece) else None


def _is_sentence(text: str) -> bool:
    """Whether it is some words of Korean that end as a sentence does, not a heading or a row of a table."""
    shortest, longest = CHARACTERS
    return (
        shortest <= len(text) <= longest
        and text[-1] in ".!?"
        and len(text.split()) >= FEWEST_WORDS
        and len(_HANGUL.findall(text)) >= len(text) / 2
    )


def openings(documents: list[str], count: int) -> list[str]:
    """The first half of the words of one sentence of each document, for a model to go on from."""
    firsts = (next((sentence for sentence in sentences(document) if sentence), None) for document in documents)
    words = [sentence.text.split() for sentence in firsts if sentence]
    return [" ".join(line[: len(line) // 2]) for line in words][:count]
