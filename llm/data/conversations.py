"""Conversations and a chat tokenizer -> rows whose labels are the assistant's tokens and their end, nothing else."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

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


def encode_conversations(
    conversations: Iterable[Conversation],
    tokenizer: "PreTrainedTokenizerFast",
    special: Special,
    *,
    sequence_length: int,
) -> tuple[list[Encoded], Counter[str]]:
    """Encode with the chat template; what is longer than `sequence_length` is dropped and counted, by reason.

    Raises:
        DataError: a turn holds the text of a special token, or the template marks no answer.
    """
    kept: list[Encoded] = []
    dropped: Counter[str] = Counter()
    for conversation in conversations:
        _refuse_special(conversation, special)
        row = tokenizer.apply_chat_template(
            conversation.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        input_ids, is_answer = np.array(row["input_ids"]), np.array(row["assistant_masks"], dtype=bool)
        if not is_answer.any():
            raise DataError(
                f"{conversation.origin}: the chat template marks no token as the assistant's. Put {{% generation %}} "
                "around the assistant's turn in it."
            )
        if len(input_ids) > sequence_length:
            dropped[f"longer than data.sequence_length={sequence_length} tokens"] += 1
            continue
        answers = (m["content"] for m in conversation.messages if m["role"] == "assistant")
        kept.append(Encoded(input_ids, is_answer, sum(len(answer.encode()) for answer in answers)))
    return kept, dropped


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


def _refuse_special(conversation: Conversation, special: Special) -> None:
    for message in conversation.messages:
        if found := next((token for token in special.tokens if token in message["content"]), None):
            raise DataError(
                f"{conversation.origin}: a turn holds {found}, which this tokenizer takes for a control token. "
                "Remove or rewrite it."
            )
