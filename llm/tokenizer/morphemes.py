"""Text -> where its morphemes begin, by an optional analyser: Kiwi (kiwipiepy) or MeCab-ko (python-mecab-ko)."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

from llm.config.tokenizer import Morphemes
from llm.errors import ConfigError

MARK = "\ue0ff"  # of a private use area: set between morphemes while training, and taken out of what it is set in

_PACKAGES = {Morphemes.kiwi: ("kiwipiepy", "kiwipiepy"), Morphemes.mecab: ("mecab", "python-mecab-ko")}

Cuts = Callable[[str], list[int]]


def installed_analyser() -> Morphemes:
    """The analyser that is there, Kiwi if both are; none if neither is."""
    return next((kind for kind, (module, _) in _PACKAGES.items() if find_spec(module)), Morphemes.none)


@cache
def analyser(kind: Morphemes) -> Cuts:
    """A function that gives the places (characters from the text's start) within words at which a morpheme begins.

    Raises:
        ConfigError: its package is not installed.
    """
    module, package = _PACKAGES[kind]
    try:
        loaded = import_module(module)
    except ImportError:
        raise ConfigError(
            f"tokenizer.morphemes={kind.name} needs the package {package}, which is not installed. Install it with "
            "pip install 'ttukttak[morph]', or set tokenizer.morphemes=none."
        ) from None
    return _kiwi(loaded) if kind is Morphemes.kiwi else _mecab(loaded)


def marked(texts: Iterable[str], cuts: Cuts) -> Iterator[str]:
    """Each text with MARK between its morphemes."""
    for text in texts:
        plain = text.replace(MARK, "")
        yield MARK.join(plain[start:end] for start, end in pairwise([0, *cuts(plain), len(plain)]))


def _kiwi(module: object) -> Cuts:
    analyse = module.Kiwi(num_workers=1)  # type: ignore[attr-defined]  # no stubs

    def cuts(text: str) -> list[int]:
        return _inner(text, ((token.start, token.end) for token in analyse.tokenize(text)))

    return cuts


def _mecab(module: object) -> Cuts:
    analyse = module.MeCab()  # type: ignore[attr-defined]  # no stubs

    def cuts(text: str) -> list[int]:
        return _inner(text, ((token.span.start, token.span.end) for token in analyse.parse(text)))

    return cuts


def _inner(text: str, spans: Iterable[tuple[int, int]]) -> list[int]:
    """Beginnings of spans that stand in a word. Spans that overlap, as of a contraction (했: 하 + 었), stay one."""
    cuts, reached = [], 0
    for start, end in spans:
        if reached <= start and 0 < start < len(text) and not text[start - 1].isspace() and not text[start].isspace():
            cuts.append(start)
        reached = max(reached, end)
    return cuts
