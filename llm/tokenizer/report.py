"""What a tokenizer keeps of held-out text, and what it loses."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from unicodedata import normalize

from tokenizers import Tokenizer

BATCH = 1000  # texts encoded at once: enough for every core, small enough to hold


@dataclass(frozen=True, kw_only=True)
class Report:
    """Counts over held-out documents; rates are shares from 0 to 1."""

    vocab_size: int
    documents: int
    raw_bytes: int  # UTF-8, before any normalization
    tokens: int
    tokens_per_eojeol: float  # an eojeol: what stands between white space
    bytes_per_token: float
    exact_round_trip: float  # share of lines that decode to exactly themselves
    nfc_round_trip: float  # the same with both in NFC: equal to a reader, if not to the byte
    first_failing_line: str | None  # the first line that does not come back, not even in NFC
    lost_bytes: int
    lost_bytes_share: float
    unknown_rate: float  # share of tokens that are the unknown token


def report(tokenizer: Tokenizer, documents: Iterable[str]) -> Report:
    """Measure a tokenizer, as llm.tokenizer.load gives it, on held-out documents."""
    unknown = json.loads(tokenizer.to_str())["model"].get("unk_token")
    unknown_id = tokenizer.token_to_id(unknown) if unknown else None
    count: Counter[str] = Counter()
    first_failing = None
    for texts in _batched(iter(documents)):
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        decoded = tokenizer.decode_batch(ids)
        count["documents"] += len(texts)
        count["tokens"] += sum(map(len, ids))
        count["unknown"] += sum(line.count(unknown_id) for line in ids) if unknown_id is not None else 0
        count["raw_bytes"] += sum(len(text.encode()) for text in texts)
        count["eojeols"] += sum(len(text.split()) for text in texts)
        count["lost_bytes"] += sum(map(lost_bytes, texts, decoded))
        lines = [line for text in texts for line in text.split("\n")]
        back = tokenizer.decode_batch(
            [encoding.ids for encoding in tokenizer.encode_batch_fast(lines, add_special_tokens=False)]
        )
        count["lines"] += len(lines)
        count["exact"] += sum(line == again for line, again in zip(lines, back, strict=True))
        pairs = zip(lines, back, strict=True)
        nfc_fails = [line for line, again in pairs if normalize("NFC", line) != normalize("NFC", again)]
        count["nfc"] += len(lines) - len(nfc_fails)
        first_failing = first_failing or next(iter(nfc_fails), None)
    return Report(
        vocab_size=tokenizer.get_vocab_size(),
        documents=count["documents"],
        raw_bytes=count["raw_bytes"],
        tokens=count["tokens"],
        tokens_per_eojeol=count["tokens"] / max(count["eojeols"], 1),
        bytes_per_token=count["raw_bytes"] / max(count["tokens"], 1),
        exact_round_trip=count["exact"] / max(count["lines"], 1),
        nfc_round_trip=count["nfc"] / max(count["lines"], 1),
        first_failing_line=first_failing,
        lost_bytes=count["lost_bytes"],
        lost_bytes_share=count["lost_bytes"] / max(count["raw_bytes"], 1),
        unknown_rate=count["unknown"] / max(count["tokens"], 1),
    )


def lost_bytes(text: str, decoded: str) -> int:
    """UTF-8 bytes of the characters of `text` that `decoded` lacks, both in NFC, wherever they stand.

    Order is not looked at, so this is a lower bound; what `decoded` has in addition (spaces around punctuation) costs
    nothing, for the reader of the tokens can be told the rule that adds it.
    """
    text, decoded = normalize("NFC", text), normalize("NFC", decoded)
    if text == decoded:
        return 0
    missing = Counter(text) - Counter(decoded)
    return sum(len(character.encode()) * times for character, times in missing.items())


def _batched(documents: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(documents, BATCH)):
        yield batch
