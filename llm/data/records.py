"""What every source gives: documents and conversations with their origin, or the fault of a record."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it is from."""

    text: str
    origin: str  # file:line


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as chat templates take them ({role, content}), and where they are from."""

    messages: list[dict[str, str]]
    origin: str  # file:line

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


class Source(Protocol):
    """Where records come from."""

    rights: str | None

    def digest(self) -> str:
        """SHA-256 over all that is read."""
        ...

    def records(self) -> Iterator[Document | Conversation | Fault]:
        """Every record in a fixed order."""
        ...
