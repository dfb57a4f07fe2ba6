"""Raw text and conversations -> documents, shards of token ids, and the rows that a training step takes.

corpus.py        config -> documents or conversations, each with its origin, cleaned, split, and what was dropped
files.py         a path -> the files there -> documents or conversations; it names the modules that do it
records.py       what is read: documents and conversations with their origin, or what is left out and why
sample.py        the first records of what lies at a path, and which choice of conf/data reads them
paths.py         path expressions such as document[].form, and which of them has the text of a record
clean.py         documents cleaned and dropped by configured steps, with an account; repair.py: the edits of a text
overlap.py       how much of the held-out text stands in the training text
split.py         which documents are held out: by hash of their text
documents.py     a corpus -> its cleaned documents on disk, written once, and back
sharding.py      documents -> shards, one for each file, going on where a killed attempt ended
shards.py        a folder of shards: its manifest, its files, and how they are checked and read
rows.py          shards -> packed rows of tokens that keep documents apart; packing.py: which tokens lie in which row
conversations.py messages -> rows whose labels are the assistant's tokens
mixture.py       the texts and the rows of several data sets in proportion
mixed_shards.py  the shards of a mixture's parts: what they come to, and their rows
order.py         which rows a step takes: a function of seed, step and rank
"""

from llm.data.conversations import (
    ConversationRows,
    Encoded,
    encode_conversations,
    show_trained,
)
from llm.data.corpus import Corpus, open_corpus
from llm.data.mixture import MixedRows
from llm.data.order import EvaluationBatches, MicroBatch, TrainingBatches
from llm.data.records import Conversation
from llm.data.rows import Rows, TokenRows
from llm.data.sharding import available_cores, write_shards
from llm.data.shards import Manifest, read_manifest

__all__ = [
    "Conversation",
    "ConversationRows",
    "Corpus",
    "Encoded",
    "EvaluationBatches",
    "Manifest",
    "MicroBatch",
    "MixedRows",
    "Rows",
    "TokenRows",
    "TrainingBatches",
    "available_cores",
    "encode_conversations",
    "open_corpus",
    "read_manifest",
    "show_trained",
    "write_shards",
]
