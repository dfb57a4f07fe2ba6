"""A run's key: what determines its content, hashed. Runs of one identity hold the same thing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llm.config.fields import identity_settings
from llm.config.stages import StageConfig
from llm.run.files import digest_of

KEY_DIGITS = (8, 16, 64)  # the next where a run of another identity has the key: of 2**32 some two may share one


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before it is made: its config, what it is made from, and how it is named."""

    config: StageConfig
    default_name: str  # where the user gave none
    format_version: int  # of what the stage makes; raised when a change to the code alters that
    parents: dict[str, str] = field(default_factory=dict)  # what it is made from -> SHA-256 digest of that
    folders: dict[str, str] = field(default_factory=dict)  # what it is made from -> where that lies
    key_digits: int = KEY_DIGITS[0]

    @property
    def stage(self) -> str:
        return self.config.stage

    @property
    def name(self) -> str:
        return self.config.name or self.default_name

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that change the content, the digests of the parents, the format."""
        return {
            "stage": self.stage,
            "format_version": self.format_version,
            "settings": identity_settings(self.config),
            "parents": self.parents,
        }

    @property
    def key(self) -> str:
        """The first hex digits of the identity's SHA-256."""
        return key_of(self.identity, digits=self.key_digits)

    def is_of(self, record: dict[str, Any]) -> bool:
        """Whether the run that a run.json is of is this one."""
        return digest_of(record.get("identity")) == digest_of(self.identity)


def key_of(identity: dict[str, Any], *, digits: int) -> str:
    """So many hex digits of the SHA-256 of what determines a run."""
    return digest_of(identity)[:digits]


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) for each leaf in which two nested dicts differ; None where one lacks it."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new
