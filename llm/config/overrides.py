"""Text as a value of a typed override: quoted where Hydra's grammar needs it, and the whole for a shell.

The grammar takes no Hangul and no bracket outside of quotes, which a shell takes away: `data.path="내 글"` arrives as
`data.path=내 글`.
"""

import re
import shlex
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

_SIGNS = r""",:=(){}\[\]'\""""
_WORDS = re.compile(rf"[^\s{_SIGNS}]([^{_SIGNS}]*[^\s{_SIGNS}])?")

_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")


def readable(argument: str) -> str:
    """A typed override whose value Hydra cannot read, with the quotes that it lacks; any other as it is.

    Words in letters that the grammar does not have get quotes, so that a list, a dict or a sweep of them stays one;
    where that is not enough, the whole value does, if it has no sign of a list, a dict or quotes.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-") or _is_read(argument):
        return argument
    tries = [_WORDS.sub(lambda words: words[0] if words[0].isascii() else _quoted(words[0]), value)]
    if not set(_INTERPOLATION.sub("", value)) & set(",{}'\""):
        tries.append(_quoted(value))
    return next((found for each in tries if _is_read(found := f"{key}={each}")), argument)


@lru_cache
def as_value(text: str) -> str:
    """A text as the value of an override that is this very text, in quotes where it would be read otherwise."""
    return text if _is_read(f"key={text}") and _value(text) == text else _quoted(text)


def to_paste(key: str, text: str) -> str:
    """The override that sets a key to a text, as a shell needs it."""
    return shlex.quote(f"{key}={as_value(text)}")


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _is_read(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _value(text: str) -> object:
    return OverridesParser.create().parse_override(f"key={text}").value()
