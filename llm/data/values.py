"""Path expressions: `document[].paragraph[].form` and a JSON value -> the values found there.

`a.b` is key b of key a; `a[]` is each item of the list at a (a value that is no list counts as a list of one: some sets
have one object where others have a list); `a|b` is the first of the two that finds more than blanks. In a csv without a
header the keys are the numbers of the columns: 0, 1, 2.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

EACH = "[]"


def values(record: Any, path: str) -> list[Any]:
    """What a path finds in a record; none where a key is missing.

    A key that holds the path's own signs (`a.b`) is found as it stands.
    """
    if isinstance(record, dict) and path in record:
        return [record[path]]
    best: list[Any] = []
    for choice in path.split("|"):
        as_it_stands = isinstance(record, dict) and choice in record
        found = [record[choice]] if as_it_stands else list(follow(record, steps(choice)))
        if any(value is not None and value != "" for value in found):
            return found
        best = best or found
    return best


def first(record: Any, path: str) -> Any:
    """The first value that a path finds; None where it finds none."""
    return next(iter(values(record, path)), None)


def head(path: str) -> list[str]:
    """The top-level keys that a path can begin with, or be."""
    return [path, *(key for choice in path.split("|") for key in (choice, steps(choice)[0]))]


@lru_cache(maxsize=256)
def steps(choice: str) -> list[str]:
    """The keys of a path without alternatives, and EACH where the items of a list are meant."""
    found: list[str] = []
    for part in choice.split("."):
        key = part.rstrip("[]")
        found += [key, *[EACH] * part.count(EACH)]
    return found


def follow(value: Any, path: list[str]) -> Iterator[Any]:
    """What the steps of a path lead to."""
    if not path:
        yield value
    elif path[0] == EACH:
        for item in value if isinstance(value, list) else [value]:
            yield from follow(item, path[1:])
    elif isinstance(value, dict) and path[0] in value:
        yield from follow(value[path[0]], path[1:])
