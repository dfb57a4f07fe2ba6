"""What the readers give: documents and conversations with their origin, or what is left out; and paths into records.

An origin is file:line; in an archive file!member:line; of a table or a list in one JSON value, which have no lines of
their own, file[index of the record]. It reads file alone where the whole of it is meant.

A path such as `document[].paragraph[].form` finds values in a JSON value: `a.b` is key b of key a; `a[]` is each item
of the list at a (a value that is no list counts as a list of one: some sets have one object where others have a list);
`a|b` is the first of the two that finds more than blanks. In a csv without a header the keys are the numbers of the
columns: 0, 1, 2. A key that holds the path's own signs is found as it stands.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from llm.credentials import without_secrets

EACH = "[]"

DROP = "or set data.bad_records=drop"


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it is from."""

    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as chat templates take them ({role, content}), and where they are from."""

    messages: list[dict[str, str]]
    origin: str
    shape: str = field(default="", compare=False)  # that its record has: messages, pairs or tagged
    repairs: tuple[str, ...] = field(default=(), compare=False)  # what was put right, a few words each

    @property
    def text(self) -> str:
        """What stands before the first answer: held-out conversations are chosen by it."""
        return next(message["content"] for message in self.messages if message["role"] == "user")


@dataclass
class Rejected(Exception):
    """A record, a member or a file that is left out; raised where it is found, and given where records are.

    With a fix it is wrong, and data.bad_records says whether it is refused or dropped; with a step cleaning dropped it;
    with neither the config leaves it out, as it does files of another suffix.
    """

    origin: str
    reason: str  # a few words: what is left out is counted by them
    fix: str | None = None  # what to do about it
    step: str | None = None  # of cleaning
    text: str | None = None  # as it came to that step

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}. {self.fix}."


Record = Document | Conversation | Rejected


def unreadable(origin: str, error: Exception) -> Rejected:
    """What any library raised of a file or an archive that is damaged, cut, encrypted or not to be opened."""
    if isinstance(error, Rejected):
        return error
    said = without_secrets((str(error) or type(error).__name__).splitlines()[0].rstrip("."))
    return Rejected(origin, "cannot be read", f"Fetch it again, unpack it yourself, or remove it ({said})")


def check_text(text: Any, what: str, origin: str) -> None:
    """Refuse what is no text to learn from.

    Raises:
        Rejected: it is none, by what is wrong with it.
    """
    if not isinstance(text, str):
        raise Rejected(origin, f"{what} is {type(text).__name__}, not text", "Make it a string, or remove the record")
    if not text.strip() or (len(text) < 8 and text.strip().lower() == "nan"):  # as pandas writes an empty cell
        raise Rejected(origin, f"{what} is empty", f"Remove the record, {DROP}")
    try:
        text.encode()
    except UnicodeEncodeError:  # a reader leaves wrong bytes as lone surrogates, and JSON may hold one
        raise Rejected(origin, f"{what} holds a wrong byte or half a character", f"Make it UTF-8, {DROP}") from None
    if "\0" in text:
        raise Rejected(origin, f"{what} holds a NUL", f"Make it UTF-8, {DROP}")


# Paths


def values(record: Any, path: str) -> list[Any]:
    """What a path finds in a record; none where a key is missing."""
    if isinstance(record, dict) and path in record:
        return [record[path]]
    best: list[Any] = []
    for choice in path.split("|"):
        as_it_stands = isinstance(record, dict) and choice in record
        found = [record[choice]] if as_it_stands else list(_follow(record, _steps(choice)))
        if any(value is not None and value != "" for value in found):
            return found
        best = best or found
    return best


def first(record: Any, path: str) -> Any:
    """The first value that a path finds; None where it finds none."""
    return next(iter(values(record, path)), None)


def head(path: str) -> list[str]:
    """The top-level keys that a path can begin with, or be."""
    return [path, *(key for choice in path.split("|") for key in (choice, _steps(choice)[0]))]


@lru_cache(maxsize=256)
def _steps(choice: str) -> list[str]:
    """The keys of a path without alternatives, and EACH where the items of a list are meant."""
    found: list[str] = []
    for part in choice.split("."):
        found += [part.rstrip("[]"), *[EACH] * part.count(EACH)]
    return found


def _follow(value: Any, path: list[str]) -> Iterator[Any]:
    if not path:
        yield value
    elif path[0] == EACH:
        for item in value if isinstance(value, list) else [value]:
            yield from _follow(item, path[1:])
    elif isinstance(value, dict) and path[0] in value:
        yield from _follow(value[path[0]], path[1:])
