"""Texts -> how much repeats, how varied it is, whether it is whole Hangul; counts -> intervals of their shares."""

import re
import unicodedata
from collections.abc import Sequence
from math import sqrt

Z = 1.959964  # of a 95 % interval

_LETTER = re.compile(r"[^\W\d_]")
_HANGUL = re.compile("[가-힣]")
# What no whole syllable leaves: a character that lacks bytes, or conjoining letters that NFC could not compose.
_BROKEN = re.compile("[\ufffd\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")


def interval(count: int, of: int) -> tuple[float, float]:
    """(low, high): the 95 % interval of Wilson (1927) for a share; nothing of nothing may be any share."""
    if not of:
        return 0.0, 1.0
    share, weight = count / of, Z * Z / of
    middle = (share + weight / 2) / (1 + weight)
    half = Z * sqrt(share * (1 - share) / of + weight / (4 * of)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def describe(texts: Sequence[str]) -> dict[str, float | None]:
    """Statistics over texts taken together; None where there is nothing to count. N-grams are of eojeols.

    repeated_4grams   share of a text's 4-grams that came before in it (Welleck et al. 2020, arXiv:1908.04319)
    distinct_1, _2    different n-grams among all (Li et al. 2016, arXiv:1510.03055); it falls with the amount of text
    hangul_share      of the letters, those that are Hangul syllables
    broken_share      of the texts, those with half a character or a syllable in pieces
    """
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    fours = [_ngrams(text, 4) for text in texts]
    letters = sum(len(_LETTER.findall(text)) for text in texts)
    return {
        "repeated_4grams": over(sum(len(grams) - len(set(grams)) for grams in fours), sum(map(len, fours))),
        "distinct_1": _distinct(texts, 1),
        "distinct_2": _distinct(texts, 2),
        "hangul_share": over(sum(len(_HANGUL.findall(text)) for text in texts), letters),
        "broken_share": over(sum(bool(_BROKEN.search(text)) for text in texts), len(texts)),
        "empty_share": over(sum(not text.strip() for text in texts), len(texts)),
    }


def over(count: int, of: int) -> float | None:
    """The share, if there is anything to have one of."""
    return count / of if of else None


def _distinct(texts: Sequence[str], size: int) -> float | None:
    grams = [gram for text in texts for gram in _ngrams(text, size)]
    return over(len(set(grams)), len(grams))


def _ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[start:] for start in range(size)), strict=False))
