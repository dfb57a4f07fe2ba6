"""Raw text and conversations -> documents, shards of token ids, and the rows that a training step takes.

The way of a document, from a zip of JSON to a batch, and the types that it passes:

files.py         a path -> the files there -> records
archives.py      a file, packed or not -> its members: Member
parse.py         a member -> records as it has them: Raw
layout.py        such a record -> a document, or by turns.py a conversation
records.py       what these are: Document, Conversation, Rejected with the reason; and paths into records
corpus.py        a config -> its records, cleaned, split, and what was left out: Corpus
clean.py         what is cleaned and dropped by which step, with an account: Cleaner; repair.py: the edits of a text
documents.py     a corpus -> its cleaned documents on disk, written once, and back
shards.py        documents -> shards and back: Encoder, Shard, Split, Manifest
rows.py          shards -> rows of tokens that keep documents apart: TokenRows, Packed
order.py         which rows a step takes, by seed, step and rank: TrainingBatches, Share, MicroBatch

Beside it:

turns.py         a record of any shape -> a conversation
conversations.py conversations -> rows whose labels are the assistant's tokens
mixture.py       the texts and the rows of several data sets in proportion, and what their shards come to
overlap.py       how much of the held-out text stands in the training text
sample.py        the first records of what lies at a path, and which choice of conf/data reads them
suggest.py       records -> the settings that read their longest text
"""
