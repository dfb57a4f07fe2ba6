"""Raw text and conversations -> documents, shards of token ids, and the rows that a training step takes.

corpus.py        config -> documents or conversations, each with its origin, cleaned, split, and what was dropped
files.py         a path -> the files there -> documents or conversations; it names the modules that do it
records.py       what is read: documents and conversations with their origin, or what is left out and why
sample.py        the first records of what lies at a path, and which choice of conf/data reads them
paths.py         path expressions such as document[].form, and which of them has the text of a record
clean.py         documents cleaned and dropped by configured steps, with an account; repair.py: the edits of a text
overlap.py       how much of the held-out text stands in the training text
documents.py     a corpus -> its cleaned documents on disk, written once, and back
sharding.py      documents -> shards, one for each file, going on where a killed attempt ended
shards.py        a folder of shards: its manifest, its files, and how they are checked and read
rows.py          shards -> packed rows of tokens that keep documents apart
conversations.py messages -> rows whose labels are the assistant's tokens
mixture.py       the texts and the rows of several data sets in proportion, and what their shards come to
order.py         which rows a step takes: a function of seed, step and rank
"""
