"""What every source gives: documents and conversations with their origin, or what is left out and why.

An origin is file:line; in an archive file!member:line; of a table or a list in one JSON value, which have no lines of
their own, file[index of the record]. It reads file alone where the whole of it is meant.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol


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


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record, a member or a file that is left out.

    With a fix it is wrong, and data.bad_records says whether it is refused or dropped; without one the config leaves it
    out, as it does files of another suffix, and it is counted.
    """

    origin: str
    reason: str  # a few words: what is left out is counted by them
    fix: str | None = None  # what to do about it

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}. {self.fix}."


class RejectedError(Exception):
    """Why something is left out, from where that is found to where its origin is known."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason, fix)
        self.reason, self.fix = reason, fix

    def at(self, origin: str) -> Rejected:
        return Rejected(origin, self.reason, self.fix)


def check_text(text: Any, what: str) -> None:
    """Refuse what is no text to learn from.

    Raises:
        RejectedError: it is none, by what is wrong with it.
    """
    if not isinstance(text, str):
        raise RejectedError(f"{what} is {type(text).__name__}, not text", "Make it a string, or remove the record")
    if not text.strip():
        raise RejectedError(f"{what} is empty", "Remove the record, or set data.bad_records=drop")
    if len(text) < 8 and text.strip().lower() == "nan":  # what pandas writes for an empty cell
        raise RejectedError(f"{what} is nan", "Remove the record, or set data.bad_records=drop")
    if "\0" in text:
        raise RejectedError(f"{what} holds a NUL", "Convert it to UTF-8, or set data.bad_records=drop")
    try:
        text.encode()
    except UnicodeEncodeError:
        fix = "Repair it, or set data.bad_records=drop"
        raise RejectedError(f"{what} holds half a character (a lone surrogate)", fix) from None


Record = Document | Conversation | Rejected


class Source(Protocol):
    """Where records come from."""

    rights: str | None

    def digest(self) -> str:
        """SHA-256 over all that is read."""
        ...

    def state(self) -> str:
        """What is another one where what is read may be another: cheap to know, unlike the digest."""
        ...

    def records(self) -> Iterator[Record]:
        """Every record in a fixed order."""
        ...
