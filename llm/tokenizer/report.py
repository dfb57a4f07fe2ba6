"""A tokenizer and held-out documents -> what it makes of them: how short, how exact, what is lost, how fast."""

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any
from unicodedata import normalize

from tokenizers import Tokenizer

from llm.config.tokenizer import Alphabet, Morphemes
from llm.tokenizer.training import alphabet, analyser, byte_tokens, unknown_token

BATCH = 1000  # texts encoded at once: enough for every core, small enough to hold
MOST_LISTED = 5  # lines that are listed of those that fail; four times as many characters
RENYI_ORDER = 2.5  # Zouhar et al. 2023 (arXiv:2306.16842), section 5: where it tells most of translation quality
ANALYSED_BYTES = 50_000  # of text that the morphemes are compared on: analysers read 0.1 to 0.3 MB/s


def figure(label: str) -> Any:
    """A field of a report that a table shows, under this label."""
    return field(metadata={"label": label})


@dataclass(frozen=True, kw_only=True)
class Report:
    """Counts over held-out documents; rates are shares from 0 to 1."""

    vocab_size: int = figure("vocabulary")
    documents: int
    raw_bytes: int  # UTF-8, before any normalization
    tokens: int
    tokens_per_eojeol: float = figure("tokens per eojeol")  # an eojeol: what stands between white space
    characters_per_token: float = figure("characters per token")
    bytes_per_token: float = figure("bytes per token")
    exact_round_trip: float = figure("lines exact")  # share of non-empty lines that decode to exactly themselves
    nfc_round_trip: float = figure("lines exact in NFC")  # equal to a reader, if not to the byte
    lossless_documents: float = figure("documents lossless")  # share that is the same in NFC, line feeds included
    failing_lines: list[str]  # the first few lines that do not come back, not even in NFC
    lost_characters: dict[str, int]  # the most frequent, and how often each is lost
    lost_bytes: int
    lost_bytes_share: float = figure("bytes lost")
    unknown_rate: float = figure("unknown tokens")  # share of tokens that are the unknown token
    byte_piece_rate: float = figure("byte pieces")  # share of tokens that byte fallback wrote, one for each byte
    single_token_common_syllables: float = figure("of 2,350 syllables one token")  # those of KS X 1001
    single_token_syllables: float = figure("of 11,172 syllables one token")
    vocabulary_used: float = figure("vocabulary used")  # share of the vocabulary that occurs
    renyi_efficiency: float = figure("Rényi efficiency")  # 1: all tokens occur equally often; order RENYI_ORDER
    morpheme_crossing_rate: float | None = figure("tokens crossing a morpheme")  # None without an analyser
    morpheme_analyser: str | None
    encode_megabytes_per_second: float = figure("MB encoded a second")  # of wall time, on the cores that were there

    @property
    def is_lossless(self) -> bool:
        return self.lossless_documents == 1


FIGURES = {each.name: each.metadata["label"] for each in fields(Report) if "label" in each.metadata}


def measure(tokenizer: Tokenizer, documents: Iterable[str], *, morphemes: Morphemes = Morphemes.none) -> Report:
    """Measure a tokenizer, as load_tokenizer gives it, on held-out documents; against `morphemes` if one is given.

    Raises:
        ConfigError: the analyser's package is not installed.
    """
    count: Counter[str] = Counter()
    used: Counter[int] = Counter()  # token id -> times
    lost: Counter[str] = Counter()  # character -> times
    failing: list[str] = []
    analysed: list[str] = []  # documents whose morphemes are looked at
    seconds, remaining = 0.0, iter(documents)
    while texts := list(islice(remaining, BATCH)):
        started = time.perf_counter()
        encoded = _encode(tokenizer, texts)
        seconds += time.perf_counter() - started
        for text, back, ids in zip(texts, tokenizer.decode_batch(encoded), encoded, strict=True):
            if count["raw_bytes"] < ANALYSED_BYTES:
                analysed.append(text)
            lost += lost_characters(text, back)
            used.update(ids)
            count["documents"] += 1
            count["lossless"] += normalize("NFC", text) == normalize("NFC", back)
            count["raw_bytes"] += len(text.encode())
            count["characters"] += len(text)
            count["eojeols"] += len(text.split())
        lines = [line for text in texts for line in text.split("\n") if line]
        backs = tokenizer.decode_batch(_encode(tokenizer, lines))
        differing = [
            line for line, back in zip(lines, backs, strict=True) if normalize("NFC", line) != normalize("NFC", back)
        ]
        count["lines"] += len(lines)
        count["exact"] += sum(line == back for line, back in zip(lines, backs, strict=True))
        count["nfc"] += len(lines) - len(differing)
        failing += differing[: MOST_LISTED - len(failing)]
    size, tokens = tokenizer.get_vocab_size(), used.total()
    return Report(
        vocab_size=size,
        documents=count["documents"],
        raw_bytes=count["raw_bytes"],
        tokens=tokens,
        tokens_per_eojeol=_share(tokens, count["eojeols"]),
        characters_per_token=_share(count["characters"], tokens),
        bytes_per_token=_share(count["raw_bytes"], tokens),
        exact_round_trip=_share(count["exact"], count["lines"]),
        nfc_round_trip=_share(count["nfc"], count["lines"]),
        lossless_documents=_share(count["lossless"], count["documents"]),
        failing_lines=failing,
        lost_characters=dict(lost.most_common(4 * MOST_LISTED)),
        lost_bytes=_bytes_of(lost),
        lost_bytes_share=_share(_bytes_of(lost), count["raw_bytes"]),
        unknown_rate=_share(_times(tokenizer, used, [unknown_token(tokenizer)]), tokens),
        byte_piece_rate=_share(_times(tokenizer, used, byte_tokens()), tokens),
        single_token_common_syllables=_single_tokens(tokenizer, alphabet(Alphabet.ks_x_1001)),
        single_token_syllables=_single_tokens(tokenizer, [chr(code) for code in range(ord("가"), ord("힣") + 1)]),
        vocabulary_used=_share(len(used), size),
        renyi_efficiency=renyi_efficiency(used, vocab_size=size),
        morpheme_crossing_rate=_crossing_rate(tokenizer, analysed, morphemes),
        morpheme_analyser=None if morphemes is Morphemes.none else morphemes.name,
        encode_megabytes_per_second=_share(count["raw_bytes"] / 1e6, seconds),
    )


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def renyi_efficiency(used: Counter[int], *, vocab_size: int, order: float = RENYI_ORDER) -> float:
    """Rényi entropy of the token frequencies over the most that `vocab_size` tokens can have (arXiv:2306.16842)."""
    total = used.total()
    if total == 0 or vocab_size < 2:
        return 0.0
    power_sum = math.fsum((times / total) ** order for times in used.values())
    return math.log(power_sum) / (1 - order) / math.log(vocab_size)


def lost_bytes(text: str, decoded: str) -> int:
    """UTF-8 bytes of the characters of `text` that `decoded` lacks, both in NFC, wherever they stand.

    Order is not looked at, so this is a lower bound; what `decoded` has in addition (spaces around punctuation) costs
    nothing, for the reader of the tokens can be told the rule that adds it.
    """
    return _bytes_of(lost_characters(text, decoded))


def lost_characters(text: str, decoded: str) -> Counter[str]:
    """The characters of `text` that `decoded` lacks, both in NFC, wherever they stand, and how often."""
    text, decoded = normalize("NFC", text), normalize("NFC", decoded)
    return Counter() if text == decoded else Counter(text) - Counter(decoded)


def _bytes_of(characters: Counter[str]) -> int:
    return sum(len(character.encode()) * times for character, times in characters.items())


def _times(tokenizer: Tokenizer, used: Counter[int], tokens: Iterable[str | None]) -> int:
    """How often those of the tokens occur that the vocabulary has."""
    ids = [tokenizer.token_to_id(token) for token in tokens if token is not None]
    return sum(used[number] for number in ids if number is not None)


def _single_tokens(tokenizer: Tokenizer, characters: list[str]) -> float:
    """Share of the characters that are one token which says them: not the unknown one, and not two (a mark first)."""
    encoded = _encode(tokenizer, characters)
    single = [(char, ids) for char, ids in zip(characters, encoded, strict=True) if len(ids) == 1]
    backs = tokenizer.decode_batch([ids for _, ids in single])
    same = sum(normalize("NFC", back).strip() == char for (char, _), back in zip(single, backs, strict=True))
    return _share(same, len(characters))


def _crossing_rate(tokenizer: Tokenizer, texts: list[str], kind: Morphemes) -> float | None:
    """Share of tokens within which a morpheme begins, by the analyser, and by the tokens' places in the raw text."""
    if kind is Morphemes.none:
        return None
    cuts_of = analyser(kind)
    crossing = tokens = 0
    for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        cuts = set(cuts_of(text))
        for start, end in encoding.offsets:
            tokens += 1
            crossing += any(place in cuts for place in range(start + 1, end))
    return _share(crossing, tokens)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
