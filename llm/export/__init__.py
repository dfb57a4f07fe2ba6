"""A trained model -> a folder that others load without us, after it was shown to be that model.

tokenizer.py  a run's tokenizer -> the files that transformers wants, which begin a text as training did
proof.py      two models -> how far apart their logits are, and whether they write the same
weights.py    a model -> its files; what is read back is what was written, bit for bit
gguf.py       the same folder -> one file for llama.cpp
card.py       a run and its lineage -> README.md, and the pictures in it
plot.py       losses -> a picture
"""

from llm.export.card import Facts, card
from llm.export.proof import Trial, try_out
from llm.export.tokenizer import write_tokenizer
from llm.export.weights import export_adapter, export_model

__all__ = ["Facts", "Trial", "card", "export_adapter", "export_model", "try_out", "write_tokenizer"]
