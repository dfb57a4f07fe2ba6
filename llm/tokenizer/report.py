"""What a tokenizer keeps of held-out text, and what it loses."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from unicodedata import normalize

from tokenizers import Tokenizer

from llm.tokenizer.training import unknown_token

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
    exact_round_trip: float  # share of non-empty lines that decode to exactly themselves
    nfc_round_trip: float  # the same with both in NFC: equal to a reader, if not to the byte
    first_failing_line: str | None  # the first line that does not come back, not even in NFC
    lost_bytes: int
    lost_bytes_share: float
    unknown_rate: float  # share of tokens that are the unknown token


def report(tokenizer: Tokenizer, documents: Iterable[str]) -> Report:
    """Measure a tokenizer, as llm.tokenizer.load gives it, on held-out documents."""
    unknown = unknown_token(tokenizer)
    unknown_id = None if unknown is None else tokenizer.token_to_id(unknown)
    count: Counter[str] = Counter()
    first_failing = None
    for texts in _batched(iter(documents)):
        count += _count_tokens(tokenizer, texts, unknown_id)
        lines = [line for text in texts for line in text.split("\n") if line]
        counted, failing = _count_lines(lines, _there_and_back(tokenizer, lines)[1])
        count += counted
        first_failing = failing if first_failing is None else first_failing
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


def _there_and_back(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[list[int]], list[str]]:
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return ids, tokenizer.decode_batch(ids)


def _count_tokens(tokenizer: Tokenizer, texts: list[str], unknown_id: int | None) -> Counter[str]:
    ids, decoded = _there_and_back(tokenizer, texts)
    return Counter(
        documents=len(texts),
        tokens=sum(map(len, ids)),
        unknown=0 if unknown_id is None else sum(line.count(unknown_id) for line in ids),
        raw_bytes=sum(len(text.encode()) for text in texts),
        eojeols=sum(len(text.split()) for text in texts),
        lost_bytes=sum(map(lost_bytes, texts, decoded)),
    )


def _count_lines(lines: list[str], decoded: list[str]) -> tuple[Counter[str], str | None]:
    """How many lines came back, and the first that did not even in NFC."""
    pairs = list(zip(lines, decoded, strict=True))
    failing = [line for line, back in pairs if normalize("NFC", line) != normalize("NFC", back)]
    exact = sum(line == back for line, back in pairs)
    return Counter(lines=len(lines), exact=exact, nfc=len(lines) - len(failing)), next(iter(failing), None)


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
