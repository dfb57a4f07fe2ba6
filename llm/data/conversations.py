"""Conversations and a chat tokenizer -> rows whose labels are the assistant's tokens and their end, nothing else."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np

from llm.config.data import Overlong, Packing
from llm.data.order import MicroBatch
from llm.data.records import Conversation
from llm.data.rows import IGNORED, Batch, best_fit
from llm.data.shards import Array
from llm.errors import DataError
from llm.tokenizer.chat import Renderer, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TO = 8  # rows of one conversation are padded to a multiple of this
BATCH = 256  # conversations that are rendered at once
OTHER_TEMPLATE = "Use the template that the tokenizer was saved with, or chat_template=chatml"


@dataclass(frozen=True)
class Encoded:
    """One conversation: token ids, which of them are the assistant's, and the bytes of what the assistant says."""

    input_ids: Array  # (seq,)
    is_answer: Array  # (seq,) bool
    answer_bytes: int
    origin: str  # file:line


def encode_conversations(
    conversations: Iterable[Conversation],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    sequence_length: int,
    overlong: Overlong = Overlong.drop,
) -> tuple[list[Encoded], Counter[str]]:
    """Encode with the chat template; what is longer than `sequence_length` is dropped or cut, and counted, by reason.

    Cut means: the oldest questions and answers go, the system prompt stays; a last answer that does not fit whole is
    dropped with its question, for half an answer teaches a model to stop anywhere.

    Raises:
        DataError: the template does not say where an answer begins.
    """
    kept: list[Encoded] = []
    counts: Counter[str] = Counter()
    renderer = Renderer(tokenizer)
    for conversation, encoded in _encoded(conversations, renderer):
        if len(encoded.input_ids) <= sequence_length:
            kept.append(encoded)
        elif overlong is Overlong.drop:
            counts[f"longer than data.sequence_length={sequence_length} tokens"] += 1
        elif shorter := _cut(conversation, renderer, sequence_length):
            kept.append(shorter)
            counts["oldest turns cut (kept)"] += 1
        else:
            counts[f"last question and answer longer than data.sequence_length={sequence_length} tokens"] += 1
    return kept, counts


def show_trained(encoded: Encoded, tokenizer: "PreTrainedTokenizerFast") -> str:
    """A row as text in one line, with ⟦ ⟧ around what is trained."""
    pieces = []
    for is_answer, places in groupby(range(len(encoded.input_ids)), lambda place: bool(encoded.is_answer[place])):
        text = str(tokenizer.decode(encoded.input_ids[list(places)]))
        pieces.append(f"⟦{text}⟧" if is_answer else text)
    return " / ".join("".join(pieces).split("\n"))


def _encoded(conversations: Iterable[Conversation], renderer: Renderer) -> Iterator[tuple[Conversation, Encoded]]:
    remaining = iter(conversations)
    while some := list(islice(remaining, BATCH)):
        try:
            rendered = renderer.answered([conversation.messages for conversation in some])
        except TemplateError as error:
            said = f"refuses it: {error}" if error.is_refusal else f"{error}. {OTHER_TEMPLATE}"
            raise DataError(f"{some[error.index].origin}: the chat template {said}.") from None
        for conversation, (text, answers) in zip(some, rendered, strict=True):
            yield conversation, _tokens(conversation, renderer, text, answers)


def _tokens(conversation: Conversation, renderer: Renderer, text: str, learned: list[tuple[int, int]]) -> Encoded:
    """By the places of tokens in the text: transformers' own mask (return_assistant_tokens_mask) stays empty from the
    first answer on whose first character has no token, as a space has none where white space is split off.
    """
    ids, places = renderer.encode(text)
    starts = np.array(places)  # (seq,): each token's first character in text
    is_answer = np.zeros(len(starts), dtype=bool)
    for start, end in learned:
        here = (starts >= start) & (starts < end)
        if not here.any():
            raise DataError(f"{conversation.origin}: an answer has no token, not even its end. Correct the template.")
        is_answer |= here
    answers = (message["content"] for message in conversation.messages if message["role"] == "assistant")
    return Encoded(np.array(ids), is_answer, sum(len(answer.encode()) for answer in answers), conversation.origin)


def _cut(conversation: Conversation, renderer: Renderer, sequence_length: int) -> Encoded | None:
    """The conversation without as many of its oldest questions and answers as it takes; None where none is left."""
    first = int(conversation.messages[0]["role"] == "system")
    for begin in range(first + 2, len(conversation.messages), 2):
        shorter = replace(conversation, messages=conversation.messages[:first] + conversation.messages[begin:])
        ((_, encoded),) = _encoded([shorter], renderer)
        if len(encoded.input_ids) <= sequence_length:
            return encoded
    return None


class ConversationRows:
    """Conversations in rows, padded on the right.

    One a row, as wide as the longest of its micro-batch needs; or, with data.packing=best_fit, whole ones in rows of
    `sequence_length` tokens, each where it fits best. Positions start again with each, which is what keeps them apart.
    """

    lost_bytes = 0  # a tokenizer's losses are not charged to answers: they are compared under one tokenizer

    def __init__(
        self, conversations: list[Encoded], *, pad_id: int, sequence_length: int, packing: Packing = Packing.padded
    ) -> None:
        self._is_packed, self._pad_id, self.sequence_length = packing is Packing.best_fit, pad_id, sequence_length
        sizes = np.array([len(each.input_ids) - 1 for each in conversations])
        lines, offsets = np.arange(len(sizes)), np.zeros_like(sizes)
        if self._is_packed:
            lines, offsets = best_fit(sizes, sequence_length)
        self._rows: list[list[Encoded]] = [[] for _ in range(int(lines.max()) + 1)]
        for place in np.lexsort((offsets, lines)):
            self._rows[lines[place]].append(conversations[place])
        self.num_labels = np.array([sum(int(each.is_answer[1:].sum()) for each in row) for row in self._rows])
        self.num_conversations = len(conversations)
        self.raw_bytes = sum(each.answer_bytes for each in conversations)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        rows = [self._rows[row] for row in micro_batch.rows]
        return _batch(rows, self._width(rows), self._pad_id, micro_batch.num_labels)

    def describe(self, rows: Array) -> list[str]:
        return [", ".join(each.origin for each in self._rows[row]) for row in rows]

    def padding_share(self, micro_batch_size: int) -> float:
        """Of the positions that go through the model in a pass over the rows, in order, those that are padding."""
        cut = [self._rows[first : first + micro_batch_size] for first in range(0, len(self), micro_batch_size)]
        inputs = sum(len(each.input_ids) - 1 for row in self._rows for each in row)
        return 1 - inputs / sum(len(rows) * self._width(rows) for rows in cut)

    def _width(self, rows: list[list[Encoded]]) -> int:
        """A multiple of PAD_TO, but no more than a model may have positions for."""
        longest = max(len(row[0].input_ids) - 1 for row in rows)
        return self.sequence_length if self._is_packed else min(-(-longest // PAD_TO) * PAD_TO, self.sequence_length)


def _batch(rows: list[list[Encoded]], width: int, pad_id: int, num_labels: int) -> Batch:
    """Rows of conversations, one after the other from the left, in tensors of (rows, width)."""
    import torch  # takes seconds, which the stages before training need not wait for

    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    position_ids = np.zeros((len(rows), width), dtype=np.int64)
    for line, row in enumerate(rows):
        start = 0
        for conversation in row:
            end = start + len(conversation.input_ids) - 1
            input_ids[line, start:end] = conversation.input_ids[:-1]
            labels[line, start:end] = np.where(conversation.is_answer[1:], conversation.input_ids[1:], IGNORED)
            position_ids[line, start:end] = np.arange(end - start)
            start = end
        # of a row of one conversation padding is the rest of it, of several one more: it has no labels either way
        position_ids[line, start:] = np.arange(width - start) + (start if len(row) == 1 else 0)
    return {
        "input_ids": torch.from_numpy(input_ids),  # (rows, seq)
        "labels": torch.from_numpy(labels),  # (rows, seq)
        "position_ids": torch.from_numpy(position_ids),  # (rows, seq)
        "num_labels": num_labels,
    }
