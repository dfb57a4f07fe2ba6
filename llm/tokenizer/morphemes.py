"""Text -> where its morphemes begin, by an optional analyser: Kiwi (kiwipiepy) or MeCab-ko (python-mecab-ko)."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from llm.config.tokenizer import Morphemes
from llm.errors import ConfigError

MARK = "\ue0ff"  # of a private use area: set between morphemes while training, and taken out of what it is set in

Cuts = Callable[[str], list[int]]
Spans = Callable[[str], Iterable[tuple[int, int]]]  # (first character, end) of each morpheme of a text


def _kiwi(module: Any) -> Spans:
    kiwi = module.Kiwi(num_workers=1)
    return lambda text: ((token.start, token.end) for token in kiwi.tokenize(text))


def _mecab(module: Any) -> Spans:
    mecab = module.MeCab()
    return lambda text: ((token.span.start, token.span.end) for token in mecab.parse(text))


_ANALYSERS: dict[Morphemes, tuple[str, str, Callable[[Any], Spans]]] = {  # (module, its package, how it is asked)
    Morphemes.kiwi: ("kiwipiepy", "kiwipiepy", _kiwi),
    Morphemes.mecab: ("mecab", "python-mecab-ko", _mecab),
}


def installed_analyser() -> Morphemes:
    """The analyser that is there, Kiwi if both are; none if neither is."""
    return next((kind for kind, (module, *_) in _ANALYSERS.items() if find_spec(module)), Morphemes.none)


@cache
def analyser(kind: Morphemes) -> Cuts:
    """A function that gives the places (characters from the text's start) within words at which a morpheme begins.

    Raises:
        ConfigError: its package is not installed.
    """
    module, package, spans_by = _ANALYSERS[kind]
    try:
        spans = spans_by(import_module(module))
    except ImportError:
        raise ConfigError(
            f"tokenizer.morphemes={kind.name} needs the package {package}, which is not installed. Install it with "
            "pip install -e '.[morph]', or set tokenizer.morphemes=none."
        ) from None
    return lambda text: _inner(text, spans(text))


def marked(texts: Iterable[str], cuts: Cuts) -> Iterator[str]:
    """Each text with MARK between its morphemes."""
    for text in texts:
        plain = text.replace(MARK, "")
        yield MARK.join(plain[start:end] for start, end in pairwise([0, *cuts(plain), len(plain)]))


def _inner(text: str, spans: Iterable[tuple[int, int]]) -> list[int]:
    """Beginnings of spans that stand in a word. Spans that overlap, as of a contraction (했: 하 + 었), stay one."""
    cuts, reached = [], 0
    for start, end in spans:
        if reached <= start and 0 < start < len(text) and not text[start - 1].isspace() and not text[start].isspace():
            cuts.append(start)
        reached = max(reached, end)
    return cuts
