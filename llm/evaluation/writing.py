"""Prompts -> what a model writes after them, and its statistics: how much repeats, how varied, whether whole Hangul."""

import re
import unicodedata
from collections.abc import Sequence
from math import sqrt
from typing import Any

from llm.config.evaluation import EvaluationConfig, Sampling
from llm.evaluation.scoring import Scorer
from llm.model import generate
from llm.run.console import log

Z = 1.959964  # of a 95 % interval
AT_ONCE = 20  # prompts

_LETTER = re.compile(r"[^\W\d_]")
_HANGUL = re.compile("[가-힣]")
# What no whole syllable leaves: a character that lacks bytes, or conjoining letters that NFC could not compose.
_BROKEN = re.compile("[\ufffd\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")


def write(
    prompts: Sequence[tuple[str, list[int]]], scorer: Scorer, asked: EvaluationConfig, *, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(statistics of what the model writes after prompts, each a text and its token ids; a record of each text)."""
    new_tokens = asked.tokens_to_write(scorer.positions)
    fitting = [(shown, ids) for shown, ids in prompts if len(ids) + new_tokens <= scorer.positions]
    left_out, fitting = len(prompts) - len(fitting), fitting[: asked.num_prompts]
    if left_out or not fitting:
        log.warning("%d prompts leave no room for %d tokens, %d are written on", left_out, new_tokens, len(fitting))
    sampling = Sampling(
        max_new_tokens=new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=0,
        repetition_penalty=1.0,
        seed=seed,
    )
    written = generate(
        scorer.model,
        [ids for _, ids in fitting],
        scorer.tokenizer,
        sampling=sampling,
        pad_id=scorer.special.pad_id,
        eos_ids=[scorer.special.eos_id],
        batch_size=AT_ONCE,
    )
    records = [
        {"prompt": shown, "text": each.text, "has_ended": each.end == "eos", "tokens": each.num_tokens}
        for (shown, _), each in zip(fitting, written, strict=True)
    ]
    numbers = {"prompts": len(written), "left_out": left_out, **describe([each.text for each in written])}
    if written:
        ended = sum(each.end == "eos" for each in written)
        low, high = interval(ended, len(written))
        numbers |= {"stop_rate": ended / len(written), "stop_rate_low": low, "stop_rate_high": high}
        numbers["tokens_mean"] = sum(each.num_tokens for each in written) / len(written)
    return numbers, records


def interval(count: int, of: int) -> tuple[float, float]:
    """(low, high): the 95 % interval of Wilson (1927) for a share."""
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
        "repeated_4grams": _share(sum(len(grams) - len(set(grams)) for grams in fours), sum(map(len, fours))),
        "distinct_1": _distinct(texts, 1),
        "distinct_2": _distinct(texts, 2),
        "hangul_share": _share(sum(len(_HANGUL.findall(text)) for text in texts), letters),
        "broken_share": _share(sum(bool(_BROKEN.search(text)) for text in texts), len(texts)),
        "empty_share": _share(sum(not text.strip() for text in texts), len(texts)),
    }


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _distinct(texts: Sequence[str], size: int) -> float | None:
    grams = [gram for text in texts for gram in _ngrams(text, size)]
    return _share(len(set(grams)), len(grams))


def _ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[start:] for start in range(size)), strict=False))
