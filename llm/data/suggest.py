"""Some records -> the settings that read their longest text, or a question and its answer."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Any

from llm.config.data import is_path
from llm.config.overrides import as_value
from llm.data.records import EACH, values

DEEPEST = 12  # levels of a record that are looked into
FEW = 10  # files; where there are fewer, the items of a list inside are the records
LARGEST = 20_000  # characters; a document that is longer is rather a list of them


def examples(records: Sequence[Any]) -> dict[str, Any]:
    """The first value at each path, in the order in which they come."""
    found: dict[str, Any] = {}
    for path, value in (leaf for record in records for leaf in _leaves(record)):
        if found.get(path) in (None, ""):
            found[path] = value
    return found


def overrides(records: Sequence[Any], *, are_files: bool) -> list[str]:
    """What reads the longest text of the records: data.text_field, and data.layout.records where it is needed; or none.

    `are_files`: each record is the one JSON value of a file, whose records may be in a list inside.
    """
    best = next(iter(_longest_texts(records)), None)
    if best is None:
        return []
    place = _records_of(records, best) if are_files else None
    field = "text" if place == best else best.removeprefix(f"{place}.")  # a text in a list is a record by itself
    typed = [f"data.text_field={as_value(field)}"]
    return typed if place is None else [*typed, f"data.layout.records={as_value(place)}"]


def to_set(record: Any, *, is_file: bool) -> str | None:
    """The words of a fix that has the longest text of a record read; None where it has no text."""
    found = overrides([record], are_files=is_file)
    return f"Set {shlex.join(found)}" if found else None


def question_and_answer(records: Sequence[Any]) -> str | None:
    """The override that takes the two columns with the longest texts for a question and, after it, its answer."""
    columns = [path for path in _longest_texts(records) if "." not in path and EACH not in path][:2]
    order = [path for path in examples(records) if path in columns]
    if len(order) < 2:
        return None
    return f"+data.map={{question: {as_value(order[0])}, answer: {as_value(order[1])}}}"


def _leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(path, value) of all that is no object and no list, in the order in which it stands; of a list each item."""
    if isinstance(value, dict) and depth < DEEPEST:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and path and depth < DEEPEST:
        for item in value:
            yield from _leaves(item, f"{path}[]", depth + 1)
    else:
        yield path, value


def _longest_texts(records: Sequence[Any]) -> list[str]:
    """The paths at which records have text, the longest first: by the median of its characters in a record.

    What is one word in ASCII (a number, a date, an id, a URL) counts only where there is nothing else.
    """
    texts = [_characters(record, of_words=False) for record in records]
    words = [_characters(record, of_words=True) for record in records]
    ranks = {}
    for path in dict.fromkeys(path for counts in words for path in +counts):
        found = [counts[path] for counts in texts]
        ranks[path] = (median(found), fmean(found), fmean(counts[path] for counts in words))
    return [path for path in sorted(ranks, key=lambda path: ranks[path], reverse=True) if _is_text(records, path)]


def _characters(record: Any, *, of_words: bool) -> Counter[str]:
    """Characters by path, of what has a letter in it."""
    found: Counter[str] = Counter()
    for path, value in _leaves(record):
        if isinstance(value, str) and (of_words or not value.isascii() or len(value.split(None, 1)) > 1):
            found[path] += len(value) if any(map(str.isalpha, value)) else 0
    return found


def _is_text(records: Sequence[Any], path: str) -> bool:
    """Whether this very path finds text, and text alone: a key may hold the signs of a path."""
    found = [value for record in records for value in values(record, path)] if is_path(path) else []
    return any(isinstance(value, str) for value in found) and all(isinstance(v, str | None) for v in found)


def _records_of(files: Sequence[Any], path: str) -> str | None:
    """The outermost list on the way to a text whose items are documents; None: the files themselves are."""
    if len(files) >= FEW and median(_characters(file, of_words=True)[path] for file in files) <= LARGEST:
        return None
    steps = path.split(EACH)[:-1]
    lists = [EACH.join(steps[: number + 1]) + EACH for number in range(len(steps))]
    several = [place for place in lists if sum(len(values(file, place)) for file in files) > 1]
    for place in several:
        inside = path.removeprefix(place).lstrip(".")
        items = [item for file in files for item in values(file, place)]
        if all(isinstance(item, dict | str) for item in items) and (
            median(_characters(item, of_words=True)[inside] for item in items) <= LARGEST
        ):
            return place
    return several[-1] if several else None
