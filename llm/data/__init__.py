"""Raw text and conversations -> documents, shards of token ids, and the rows that a training step takes.

corpus.py        config -> documents or conversations, each with its origin, what was dropped, and a digest
files.py         the files of a path, of any format, in archives or not; it names the modules that do it
records.py       what is read: documents and conversations with their origin, or what is left out and why
sample.py        the first records of what lies at a path, and which choice of conf/data reads them
suggest.py       the settings that read the longest text of a record
cleaning/        documents repaired, masked and dropped by configured steps, with an account of every byte
quarantine.py    what was left out, with origin and reason
leaks.py         how much of the held-out text stands in the training text
copies.py        the same by token ids, of shards
korean_law.py    Korean statutes, and questions and answers about them, from a package
split.py         which documents are held out: by hash of their text
encoding.py      documents -> token ids, by several processes, in order
sharding.py      a corpus -> shards, going on where a killed attempt ended
partial.py       what such an attempt left
shards.py        a folder of shards: its manifest, its files, and how they are checked and read
rows.py          shards -> packed rows of tokens that keep documents apart; packing.py: which tokens lie in which row
conversations.py messages -> rows whose labels are the assistant's tokens
mixture.py       several corpora and their rows in proportion
mixed_shards.py  the shards of several corpora: what they come to, and their rows
order.py         which rows a step takes: a function of seed, step and rank
"""

from llm.data.conversations import (
    ConversationRows,
    Encoded,
    PackedConversationRows,
    conversation_rows,
    encode_conversations,
    padding_share,
    show_trained,
)
from llm.data.copies import Copies, count_copies
from llm.data.corpus import Conversation, Corpus, open_corpus
from llm.data.encoding import available_cores
from llm.data.mixture import MixedCorpus, MixedRows, corpus_notes, open_parts, open_texts, share_out
from llm.data.order import EvaluationBatches, MicroBatch, TrainingBatches
from llm.data.rows import Rows, TokenRows
from llm.data.sharding import write_shards
from llm.data.shards import Manifest, read_manifest

__all__ = [
    "Conversation",
    "ConversationRows",
    "Copies",
    "Corpus",
    "Encoded",
    "EvaluationBatches",
    "Manifest",
    "MicroBatch",
    "MixedCorpus",
    "MixedRows",
    "PackedConversationRows",
    "Rows",
    "TokenRows",
    "TrainingBatches",
    "available_cores",
    "conversation_rows",
    "corpus_notes",
    "count_copies",
    "encode_conversations",
    "open_corpus",
    "open_parts",
    "open_texts",
    "padding_share",
    "read_manifest",
    "share_out",
    "show_trained",
    "write_shards",
]
