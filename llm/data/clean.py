"""Documents and conversations -> the same, cleaned, or dropped with a reason; and an account of what each step did."""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from llm.config.data import CleaningConfig, CleaningLevel
from llm.data.records import Conversation, Document, Rejected
from llm.data.repair import mask_personal_data, remove_markup, repair_characters, repair_spaces

EMPTY = "nothing is left"
SAMPLES = 3  # of what a step dropped for one reason
SAMPLE_CHARACTERS = 200
RUN = 5  # eojeols that count as a repetition when they come again
FEWEST_EOJEOLS = 20  # in fewer a repetition is no sign
PERMUTATIONS = 128  # of MinHash
SHINGLE = 5  # characters, white space left out: an eojeol and a bit
SEED = 42  # the deduplicator's own
MB = 1e6

_HANGUL = re.compile("[가-힣]+")
_LETTERS = re.compile(r"[^\W\d_]+")

Judge = Callable[[str], str | None]  # why a text is to be dropped, if it is

EDITS: dict[str, Callable[[str], str]] = {
    "characters": repair_characters,
    "markup": remove_markup,
    "spaces": repair_spaces,
    "personal_data": mask_personal_data,
}
# In this order: what is repaired is judged, and what is dropped need not be compared.
STEPS = (*EDITS, "length", "hangul", "repetition", "exact_duplicates", "near_duplicates")
_OF_LEVEL = {
    CleaningLevel.off: (),
    CleaningLevel.light: ("characters", "spaces", "personal_data", "exact_duplicates"),
    CleaningLevel.strict: STEPS,
}


def steps_of(config: CleaningConfig) -> list[str]:
    """The steps that a config turns on, by its level or by themselves."""
    level = _OF_LEVEL[config.level]
    return [name for name in STEPS if (name in level if getattr(config, name) is None else getattr(config, name))]


class Cleaner:
    """The steps of one pass over a corpus; it remembers what it has seen, to know duplicates."""

    def __init__(self, config: CleaningConfig) -> None:
        self._steps = [(name, EDITS.get(name), _judge(name, config)) for name in steps_of(config)]
        self._report = {name: _nothing_yet() for name, *_ in self._steps}

    def clean(self, record: Document | Conversation) -> Document | Conversation | Rejected:
        """The record after all steps, or the step that dropped it."""
        if not self._steps:
            return record
        texts = _texts(record)
        size = _size(texts)
        for name, edit, judge in self._steps:
            counts, reason = self._report[name], None
            counts["documents_in"] += 1
            counts["bytes_in"] += size
            if edit is not None:
                edited = [edit(text) for text in texts]
                if edited != texts and not all(text.strip() for text in edited):
                    reason = EMPTY
                elif edited != texts:
                    texts, size = edited, _size(edited)
                    counts["documents_changed"] += 1
            elif judge is not None:
                reason = judge(texts[0] if len(texts) == 1 else "\n".join(texts))
            if reason is not None:
                dropped = Rejected(record.origin, reason, step=name, text="\n".join(texts))
                _count(dropped, counts)
                return dropped
            counts["documents_out"] += 1
            counts["bytes_out"] += size
        return _with(record, texts)

    def report(self) -> dict[str, Any]:
        """What came to each step, in their order, and what became of it, with samples of what was dropped."""
        return self._report


def _nothing_yet() -> dict[str, Any]:
    """The counts of a step. Bytes are those of the texts in UTF-8; both of the last are by reason."""
    names = ("documents_in", "documents_changed", "documents_out", "bytes_in", "bytes_out")
    return dict.fromkeys(names, 0) | {"dropped": {}, "samples": {}}


def _count(dropped: Rejected, counts: dict[str, Any]) -> None:
    counts["dropped"][dropped.reason] = counts["dropped"].get(dropped.reason, 0) + 1
    samples = counts["samples"].setdefault(dropped.reason, [])
    if len(samples) < SAMPLES:
        samples.append({"origin": dropped.origin, "text": (dropped.text or "")[:SAMPLE_CHARACTERS]})


def _size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _texts(record: Document | Conversation) -> list[str]:
    return [record.text] if isinstance(record, Document) else [message["content"] for message in record.messages]


def _with(record: Document | Conversation, texts: list[str]) -> Document | Conversation:
    if isinstance(record, Document):
        return replace(record, text=texts[0])
    messages = [message | {"content": text} for message, text in zip(record.messages, texts, strict=True)]
    return replace(record, messages=messages)


def _judge(name: str, config: CleaningConfig) -> Judge | None:
    if rule := RULES.get(name):
        return lambda text: rule(text, config)
    if name == "exact_duplicates":
        return exact_duplicates()
    return near_duplicates(config.near_duplicate_similarity) if name == "near_duplicates" else None


def judge_length(text: str, config: CleaningConfig) -> str | None:
    """Too short, too long, or neither."""
    if len(text) < config.min_characters:
        return f"shorter than {config.min_characters} characters"
    return f"longer than {config.max_characters} characters" if len(text) > config.max_characters else None


def judge_hangul(text: str, config: CleaningConfig) -> str | None:
    """Too little Hangul among the letters, or none of them."""
    letters = sum(map(len, _LETTERS.findall(text)))
    hangul = sum(map(len, _HANGUL.findall(text)))
    if hangul < config.min_hangul_share * letters or not letters:
        return f"less Hangul than {config.min_hangul_share:g} of the letters"
    return None


def judge_repetition(text: str, config: CleaningConfig) -> str | None:
    """Too much of it came before, in lines or in runs of eojeols."""
    if _repeated_lines(text) > config.max_repetition or _repeated_runs(text) > config.max_repetition:
        return f"repeats more than {config.max_repetition:g} of itself"
    return None


def _repeated_lines(text: str) -> float:
    """The share of characters in lines that came before (Rae et al. 2021, arXiv:2112.11446, table A1)."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2:
        return 0.0
    return 1 - sum(map(len, set(lines))) / sum(map(len, lines))


def _repeated_runs(text: str) -> float:
    """The share of eojeols that begin a run which came before."""
    words = text.split()
    if len(words) < FEWEST_EOJEOLS:
        return 0.0
    runs = list(zip(*(words[start:] for start in range(RUN)), strict=False))
    return 1 - len(set(runs)) / len(runs)


RULES = {"length": judge_length, "hangul": judge_hangul, "repetition": judge_repetition}


def key(text: str) -> str:
    """What makes two texts the same: their characters in NFC, white space left out."""
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return "".join(text.split())


def exact_duplicates() -> Judge:
    """Drops texts that are the same but for white space, each after the first; about 90 bytes of memory a document."""
    seen: set[int] = set()

    def judge(text: str) -> str | None:
        number = int.from_bytes(hashlib.blake2b(key(text).encode(), digest_size=8).digest(), "little")
        if number in seen:
            return "the same text came before"
        seen.add(number)
        return None

    return judge


def near_duplicates(similarity: float) -> Judge:
    """Drops texts whose sets of shingles are alike, by MinHash and locality-sensitive hashing (Broder 1997).

    About 2,500 bytes of memory a document.
    """
    import rensa

    index = rensa.RMinHashDeduplicator(similarity, PERMUTATIONS, True, _bands(similarity))
    numbers = count(1)

    def judge(text: str) -> str | None:
        letters, minhash = key(text), rensa.RMinHash(PERMUTATIONS, SEED)
        minhash.update({letters[at : at + SHINGLE] for at in range(max(1, len(letters) - SHINGLE + 1))})
        return None if index.add(str(next(numbers)), minhash) else "nearly the same text came before"

    return judge


def _bands(similarity: float) -> int:
    """The fewest bands that find nine of ten pairs of that similarity: 1 - (1 - s^rows)^bands."""
    for bands in (1, 2, 4, 8, 16, 32, 64):
        if 1 - (1 - similarity ** (PERMUTATIONS // bands)) ** bands >= 0.9:
            return bands
    return PERMUTATIONS


def as_table(report: dict[str, Any], *, width: int = 100) -> str:
    """The report of a Cleaner for a terminal: a line for each step, then one for each reason with its samples."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", *("documents in", "changed", "dropped", "out", "MB in", "MB out"), title="cleaning")
    lines = []
    for name, step in report.items():
        counts = [step["documents_in"], step["documents_changed"], sum(step["dropped"].values()), step["documents_out"]]
        table.add_row(name, *map(str, counts), f"{step['bytes_in'] / MB:.2f}", f"{step['bytes_out'] / MB:.2f}")
        for reason, times in step["dropped"].items():
            lines.append(f"{name} dropped {times}: {reason}")
            lines += [f"  {s['origin']}: {' / '.join(s['text'].splitlines())[:80]}" for s in step["samples"][reason]]
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get() + "\n".join(lines)
