"""Conversations and a chat tokenizer -> rows whose labels are the assistant's tokens and their end, nothing else."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from llm.config.data import Overlong, Packing
from llm.data.order import MicroBatch
from llm.data.packing import best_fit
from llm.data.records import Conversation
from llm.data.rows import IGNORED, Array, Batch
from llm.errors import DataError
from llm.tokenizer import Renderer, TemplateError, answers_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TO = 8  # rows of one conversation are padded to a multiple of this
BATCH = 256  # conversations that are rendered at once


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
    for some in _in_batches(conversations):
        prompts = [_before_answers(conversation) for conversation in some]
        try:
            texts = renderer.whole([conversation.messages for conversation in some])
        except TemplateError as error:
            raise DataError(f"{some[error.index].origin}: {renderer.name} {_says(error)}.") from None
        flat = [turns for each in prompts for turns in each]
        owners = [conversation for conversation, each in zip(some, prompts, strict=True) for _ in each]
        try:
            begun = iter(renderer.prompts(flat))
        except TemplateError as error:
            raise DataError(f"{owners[error.index].origin}: {renderer.name} {_says(error)}.") from None
        for conversation, rendered, each in zip(some, texts, prompts, strict=True):
            try:
                learned = answers_of(conversation.messages, rendered, [next(begun) for _ in each])
            except ValueError as error:
                fix = "Use the template that the tokenizer was saved with, or chat_template=chatml"
                raise DataError(f"{conversation.origin}: {renderer.name} {error}. {fix}.") from None
            yield conversation, _tokens(conversation, renderer, rendered.text, learned)


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


def _before_answers(conversation: Conversation) -> list[list[dict[str, str]]]:
    messages = conversation.messages
    return [messages[:turn] for turn, message in enumerate(messages) if message["role"] == "assistant"]


def _says(error: TemplateError) -> str:
    return f"refuses it: {error}" if error.is_refusal else str(error)


class ConversationRows:
    """One conversation a row, padded on the right to the longest of its micro-batch, to `sequence_length` at most."""

    lost_bytes = 0  # a tokenizer's losses are not charged to answers: they are compared under one tokenizer

    def __init__(self, conversations: list[Encoded], *, pad_id: int, sequence_length: int) -> None:
        self._conversations, self._pad_id, self.sequence_length = conversations, pad_id, sequence_length
        self.num_labels = np.array([int(c.is_answer[1:].sum()) for c in conversations])
        self.num_conversations = len(conversations)
        self.raw_bytes = sum(c.answer_bytes for c in conversations)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        rows = [self._conversations[row] for row in micro_batch.rows]
        width = _width([len(row.input_ids) - 1 for row in rows], self.sequence_length)
        return _batch([[row] for row in rows], width, self._pad_id, micro_batch.num_labels)

    def describe(self, rows: Array) -> list[str]:
        return [self._conversations[row].origin for row in rows]


class PackedConversationRows:
    """Whole conversations in rows of `sequence_length` tokens, each where it fits best; what is left is padding.

    Positions start again with each conversation, which is what keeps them apart.
    """

    lost_bytes = 0

    def __init__(self, conversations: list[Encoded], *, pad_id: int, sequence_length: int) -> None:
        sizes = np.array([len(c.input_ids) - 1 for c in conversations])
        lines, offsets = best_fit(sizes, sequence_length)
        self._rows: list[list[Encoded]] = [[] for _ in range(int(lines.max()) + 1)]
        for place in np.lexsort((offsets, lines)):
            self._rows[lines[place]].append(conversations[place])
        self._pad_id, self.sequence_length = pad_id, sequence_length
        self.num_conversations = len(conversations)
        self.num_labels = np.array([sum(int(c.is_answer[1:].sum()) for c in row) for row in self._rows])
        self.raw_bytes = sum(c.answer_bytes for c in conversations)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        rows = [self._rows[row] for row in micro_batch.rows]
        return _batch(rows, self.sequence_length, self._pad_id, micro_batch.num_labels)

    def describe(self, rows: Array) -> list[str]:
        return [", ".join(each.origin for each in self._rows[row]) for row in rows]


def conversation_rows(
    conversations: list[Encoded], *, pad_id: int, packing: Packing, sequence_length: int
) -> ConversationRows | PackedConversationRows:
    """The rows that data.packing asks for."""
    if packing is Packing.best_fit:
        return PackedConversationRows(conversations, pad_id=pad_id, sequence_length=sequence_length)
    return ConversationRows(conversations, pad_id=pad_id, sequence_length=sequence_length)


def padding_share(
    conversations: list[Encoded], rows: ConversationRows | PackedConversationRows, *, micro_batch_size: int
) -> float:
    """Of the positions that go through the model in a pass over the rows, in order, those that are padding."""
    sizes = [len(conversation.input_ids) - 1 for conversation in conversations]
    if isinstance(rows, PackedConversationRows):
        return 1 - sum(sizes) / (len(rows) * rows.sequence_length)
    cut = [sizes[first : first + micro_batch_size] for first in range(0, len(sizes), micro_batch_size)]
    return 1 - sum(sizes) / sum(len(some) * _width(some, rows.sequence_length) for some in cut)


def _width(sizes: list[int], sequence_length: int) -> int:
    """Of rows with so many inputs: a multiple of PAD_TO, but no more than a model may have positions for."""
    return min(-(-max(sizes) // PAD_TO) * PAD_TO, sequence_length)


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


def _in_batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    some: list[Conversation] = []
    for conversation in conversations:
        some.append(conversation)
        if len(some) == BATCH:
            yield some
            some = []
    if some:
        yield some
