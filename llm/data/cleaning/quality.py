"""A text -> why it is no running Korean text, if it is none."""

import re

from llm.config.documents import CleaningConfig

_HANGUL = re.compile("[가-힣]+")
_LETTERS = re.compile(r"[^\W\d_]+")
RUN = 5  # eojeols that count as a repetition when they come again
SHORTEST = 20  # eojeols; in fewer a repetition is no sign


def judge_length(text: str, config: CleaningConfig) -> str | None:
    """Too short, too long, or neither."""
    if len(text) < config.min_characters:
        return f"shorter than {config.min_characters} characters"
    if len(text) > config.max_characters:
        return f"longer than {config.max_characters} characters"
    return None


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
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        repeated += len(line) if line in seen else 0
        seen.add(line)
    return repeated / sum(map(len, lines))


def _repeated_runs(text: str) -> float:
    """The share of eojeols that begin a run which came before."""
    words = text.split()
    if len(words) < SHORTEST:
        return 0.0
    runs = list(zip(*(words[start:] for start in range(RUN)), strict=False))
    return 1 - len(set(runs)) / len(runs)
