"""Documents and conversations -> the same, cleaned, or dropped with a reason; every byte is accounted for."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from llm.config.documents import CleaningConfig
from llm.data.cleaning.characters import repair_characters, repair_spaces
from llm.data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from llm.data.cleaning.levels import steps_of
from llm.data.cleaning.markup import remove_markup
from llm.data.cleaning.personal import mask_personal_data
from llm.data.cleaning.quality import judge_hangul, judge_length, judge_repetition
from llm.data.records import Conversation, Document

EMPTY = "nothing is left"
SAMPLES = 3  # of what a step dropped for one reason
SAMPLE_CHARACTERS = 200

Edit = Callable[[str], str]
Judge = Callable[[str], str | None]

EDITS: dict[str, Edit] = {
    "characters": repair_characters,
    "markup": remove_markup,
    "spaces": repair_spaces,
    "personal_data": mask_personal_data,
}


@dataclass(slots=True)
class StepCounts:
    """What came to a step and what became of it. Bytes are those of the texts in UTF-8."""

    documents_in: int = 0
    documents_out: int = 0
    documents_changed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_edited_away: int = 0  # less than none where masks are longer than what they hide
    bytes_dropped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> documents
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # reason -> origin and text

    def check(self, name: str) -> None:
        """Nothing came or went that is not counted."""
        documents = self.documents_out + self.dropped.total()
        size = self.bytes_out + self.bytes_dropped + self.bytes_edited_away
        assert (self.documents_in, self.bytes_in) == (documents, size), f"cleaning step {name} does not add up"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that a step left out, as it came to it."""

    record: Document | Conversation
    step: str
    reason: str


class Cleaner:
    """The steps of one pass over a corpus; it remembers what it has seen, to know duplicates."""

    def __init__(self, config: CleaningConfig) -> None:
        self.counts = {name: StepCounts() for name in steps_of(config)}
        self._steps = [(name, EDITS.get(name), _judge(name, config), counts) for name, counts in self.counts.items()]

    def clean(self, record: Document | Conversation) -> Document | Conversation | Dropped:
        """The record after all steps, or the step that dropped it."""
        texts = _texts(record)
        size = sum(len(text.encode()) for text in texts)
        for name, edit, judge, counts in self._steps:
            counts.documents_in += 1
            counts.bytes_in += size
            reason = None
            if edit is not None:
                edited = [edit(text) for text in texts]
                if edited != texts:
                    reason = None if all(text.strip() for text in edited) else EMPTY
                    if reason is None:
                        texts, size = edited, _account(counts, edited, size)
            elif judge is not None:
                reason = judge(texts[0] if len(texts) == 1 else "\n".join(texts))
            if reason is not None:
                return self._drop(_with(record, texts), name, reason, size)
            counts.documents_out += 1
            counts.bytes_out += size
        return _with(record, texts)

    def check(self) -> None:
        """What one step gave is what the next one took, and nothing is lost in any."""
        before: StepCounts | None = None
        for name, counts in self.counts.items():
            counts.check(name)
            if before is not None:
                given, taken = (before.documents_out, before.bytes_out), (counts.documents_in, counts.bytes_in)
                assert given == taken, f"cleaning step {name} did not get what the step before it gave"
            before = counts

    def _drop(self, record: Document | Conversation, name: str, reason: str, size: int) -> Dropped:
        counts = self.counts[name]
        counts.dropped[reason] += 1
        counts.bytes_dropped += size
        samples = counts.samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append({"origin": record.origin, "text": "\n".join(_texts(record))[:SAMPLE_CHARACTERS]})
        return Dropped(record, name, reason)


def _account(counts: StepCounts, edited: list[str], size: int) -> int:
    new = sum(len(text.encode()) for text in edited)
    counts.documents_changed += 1
    counts.bytes_edited_away += size - new
    return new


def _judge(name: str, config: CleaningConfig) -> Judge | None:
    rules = {"length": judge_length, "hangul": judge_hangul, "repetition": judge_repetition}
    if name in rules:
        rule = rules[name]
        return lambda text: rule(text, config)
    if name == "exact_duplicates":
        return ExactDuplicates().judge
    return NearDuplicates(config.near_duplicate_similarity).judge if name == "near_duplicates" else None


def _texts(record: Document | Conversation) -> list[str]:
    if isinstance(record, Document):
        return [record.text]
    return [message["content"] for message in record.messages]


def _with(record: Document | Conversation, texts: list[str]) -> Document | Conversation:
    if isinstance(record, Document):
        return record if texts[0] is record.text else replace(record, text=texts[0])
    messages = [message | {"content": text} for message, text in zip(record.messages, texts, strict=True)]
    return record if messages == record.messages else replace(record, messages=messages)
