"""Sentences -> the particles in them that come in two forms, and the same sentence with the other form.

Which form is right is told by the syllable before it: 은 after a final consonant, 는 after a vowel.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PAIRS = (("은", "는"), ("이", "가"), ("을", "를"), ("과", "와"), ("으로", "로"))  # after a consonant, after a vowel
OTHERS = ("에서", "에게", "까지", "부터", "의", "에", "도", "만")  # of one form: they tell a noun by
RIEUL = 8  # ㄹ's number among the final consonants: 로 follows it, not 으로 (Unicode, section 3.12)

_NAMES = {form: f"{pair[0]}/{pair[1]}" for pair in PAIRS for form in pair}
_FORMS = sorted(_NAMES, key=len, reverse=True)
_ANY = re.compile(rf"(?<![가-힣])([가-힣]{{2,}}?)({'|'.join([*_FORMS, *OTHERS])})(?![가-힣])")
_BEFORE_MORE = re.compile(r"[ ,]")  # what follows a particle that is asked about: the sentence goes on


@dataclass(frozen=True, slots=True)
class Particle:
    """A particle in a sentence, and the sentence with the other form in its place."""

    pair: str  # such as 은/는
    stem: str  # the word that it follows
    after_consonant: bool  # whether the form in the text is the one that follows a consonant
    right: str
    wrong: str


def expected(stem: str, pair: tuple[str, str]) -> str:
    """The form of a pair that follows a stem of Hangul."""
    final = (ord(stem[-1]) - ord("가")) % 28
    is_consonant = final > 0 and not (pair == ("으로", "로") and final == RIEUL)
    return pair[0] if is_consonant else pair[1]


def attested(texts: Iterable[str]) -> set[str]:
    """The stems that stand with two different particles somewhere: nouns, by and large.

    Without it endings of verbs and parts of words pass for particles: 규정하는, 어린이.
    """
    particles: defaultdict[str, set[str]] = defaultdict(set)
    for text in texts:
        for stem, form in _ANY.findall(text):
            if form not in _NAMES or _agrees(stem, form):
                particles[stem].add(_NAMES.get(form, form))
    return {stem for stem, names in particles.items() if len(names) > 1}


def particles(sentence: str, nouns: set[str]) -> Iterator[Particle]:
    """The particles of a sentence that follow one of `nouns`, have two forms, and are not its last word."""
    for match in _ANY.finditer(sentence):
        stem, form = match.groups()
        more = _BEFORE_MORE.match(sentence, match.end())
        if form in _NAMES and stem in nouns and _agrees(stem, form) and more:
            pair = _pair(form)
            other = pair[1] if form == pair[0] else pair[0]
            wrong = sentence[: match.start(2)] + other + sentence[match.end(2) :]
            yield Particle(_NAMES[form], stem, form == pair[0], sentence, wrong)


def _agrees(stem: str, form: str) -> bool:
    """Whether the form is the one that the rule asks for; where it is not, it is no particle."""
    return expected(stem, _pair(form)) == form


def _pair(form: str) -> tuple[str, str]:
    return next(pair for pair in PAIRS if form in pair)
