"""A tokenizer from its config: built, trained on text, saved beside a report, loaded again.

components.py   the five stages, in tokenizer.json's own format, checked by name
training.py     texts -> a trained tokenizer
folder.py       a trained tokenizer <-> a folder that AutoTokenizer loads too
report.py       what a tokenizer keeps of held-out text, and what it loses
"""

from llm.tokenizer.folder import Special, digest, load, load_chat, save, special
from llm.tokenizer.report import Report, lost_bytes, report
from llm.tokenizer.training import train

__all__ = ["Report", "Special", "digest", "load", "load_chat", "lost_bytes", "report", "save", "special", "train"]
