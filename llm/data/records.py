"""What every source gives: documents and conversations with their origin, or the fault of a record.

An origin is file:line; in an archive file!member:line; of a table or a list in one JSON value, which have no lines of
their own, file[index of the record]. It reads file alone where the whole of it is meant.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it is from."""

    text: str
    origin: str
    size: int = field(default=0, compare=False)  # bytes that it takes in its file, where that has lines


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as chat templates take them ({role, content}), and where they are from."""

    messages: list[dict[str, str]]
    origin: str
    size: int = field(default=0, compare=False)
    shape: str = field(default="", compare=False)  # that its record has: messages, pairs or tagged
    repairs: tuple[str, ...] = field(default=(), compare=False)  # what was put right, a few words each

    @property
    def text(self) -> str:
        """What stands before the first answer: held-out conversations are chosen by it."""
        return next(message["content"] for message in self.messages if message["role"] == "user")


@dataclass(frozen=True, slots=True)
class Fault:
    """A record that cannot be used: refused or dropped and counted, as the config says."""

    origin: str
    reason: str  # a few words: what dropped records are counted by
    fix: str  # what to do about it
    size: int = field(default=0, compare=False)


Record = Document | Conversation | Fault


class Source(Protocol):
    """Where records come from."""

    rights: str | None

    def digest(self) -> str:
        """SHA-256 over all that is read."""
        ...

    def records(self) -> Iterator[Document | Conversation | Fault]:
        """Every record in a fixed order."""
        ...
