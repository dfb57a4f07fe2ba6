"""Conversations and a chat tokenizer -> rows whose labels are the assistant's tokens and their end, nothing else."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llm.data.order import MicroBatch
from llm.data.records import Conversation
from llm.data.rows import IGNORED, Array, Batch
from llm.errors import DataError
from llm.tokenizer import Special

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_TO = 8  # rows are padded to a multiple of this


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
    special: Special,
    *,
    sequence_length: int,
) -> tuple[list[Encoded], Counter[str]]:
    """Encode with the chat template; what is longer than `sequence_length` is dropped and counted, by reason.

    Raises:
        DataError: a turn holds the text of a special token, or the template does not say where an answer begins.
    """
    kept: list[Encoded] = []
    dropped: Counter[str] = Counter()
    for conversation in conversations:
        _refuse_special(conversation, special)
        encoded = _encode(conversation, tokenizer)
        if len(encoded.input_ids) > sequence_length:
            dropped[f"longer than data.sequence_length={sequence_length} tokens"] += 1
        else:
            kept.append(encoded)
    return kept, dropped


def _encode(conversation: Conversation, tokenizer: "PreTrainedTokenizerFast") -> Encoded:
    """By the places of tokens in the text: transformers' own mask (return_assistant_tokens_mask) stays empty from the
    first answer on whose first character has no token, as a space has none where white space is split off.
    """
    messages = conversation.messages
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    row = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = np.array([start for start, _ in row["offset_mapping"]])  # (seq,): each token's first character in text
    is_answer = np.zeros(len(starts), dtype=bool)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, whole = (tokenizer.apply_chat_template(messages[:end], tokenize=False) for end in (turn, turn + 1))
            if not (text.startswith(whole) and whole.startswith(prompt) and len(prompt) < len(whole)):
                raise DataError(
                    f"{conversation.origin}: the chat template does not put one turn after another, so that it is not "
                    "known where an answer begins. Use the template that the tokenizer was saved with."
                )
            is_answer |= (starts >= len(prompt)) & (starts < len(whole))
    answers = (message["content"] for message in messages if message["role"] == "assistant")
    return Encoded(
        np.array(row["input_ids"]), is_answer, sum(len(answer.encode()) for answer in answers), conversation.origin
    )


class ConversationRows:
    """One conversation a row, padded on the right to the longest of its micro-batch."""

    lost_bytes = 0  # a tokenizer's losses are not charged to answers: they are compared under one tokenizer

    def __init__(self, conversations: list[Encoded], *, pad_id: int) -> None:
        self._conversations, self._pad_id = conversations, pad_id
        self.num_labels = np.array([int(c.is_answer[1:].sum()) for c in conversations])
        self.raw_bytes = sum(c.answer_bytes for c in conversations)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitems__(self, micro_batch: MicroBatch) -> Batch:
        import torch  # takes seconds, which the stages before training need not wait for

        rows = [self._conversations[row] for row in micro_batch.rows]
        width = max(len(row.input_ids) - 1 for row in rows)
        width += -width % PAD_TO
        input_ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for line, row in enumerate(rows):
            length = len(row.input_ids) - 1
            input_ids[line, :length] = row.input_ids[:-1]
            labels[line, :length] = np.where(row.is_answer[1:], row.input_ids[1:], IGNORED)
        return {
            "input_ids": torch.from_numpy(input_ids),  # (rows, seq)
            "labels": torch.from_numpy(labels),  # (rows, seq)
            "position_ids": torch.arange(width).expand(len(rows), width),
            "num_labels": micro_batch.num_labels,
        }

    def describe(self, rows: Array) -> list[str]:
        return [self._conversations[row].origin for row in rows]


def _refuse_special(conversation: Conversation, special: Special) -> None:
    for message in conversation.messages:
        if found := next((token for token in special.tokens if token in message["content"]), None):
            raise DataError(
                f"{conversation.origin}: a turn holds {found}, which this tokenizer takes for a control token. "
                "Remove or rewrite it."
            )
