"""A tokenizer from its config: built, trained on text, saved beside a report, loaded again.

components.py   the five stages, in tokenizer.json's own format, checked by name
morphemes.py    where morphemes begin, by an optional analyser
training.py     texts, or a sample of them -> a trained tokenizer; a trained one -> a smaller one
fast.py         a tokenizer -> a function that encodes, by a faster library where that is proved to be the same
llama_cpp.py    a tokenizer -> the one of llama.cpp's that gives the same tokens, or why there is none
folder.py       a tokenizer <-> a folder that AutoTokenizer loads too, ours or one that was there already
chat.py         a chat template -> the text of conversations, and the tokens that it needs
rendering.py    the same in a process with limits, where the template is not ours
report.py       what a tokenizer keeps of held-out text, what it loses, how short and how fast it is
"""

from llm.tokenizer.chat import TEMPLATES, Renderer, answers_of, check_template, read_template, save_with_template
from llm.tokenizer.fast import batch_encoder
from llm.tokenizer.folder import (
    Special,
    convert,
    digest,
    digest_of_pretrained,
    gives_same_ids,
    load,
    load_chat,
    read_pretrained,
    require_chat,
    save,
    special,
    tokens_of,
)
from llm.tokenizer.llama_cpp import LlamaCppForm, llama_cpp_form
from llm.tokenizer.morphemes import installed_analyser
from llm.tokenizer.rendering import TemplateError
from llm.tokenizer.report import Report, lost_bytes, lost_characters, report
from llm.tokenizer.training import Sample, cut, has_merges, train, why_not_reproducible

__all__ = [
    "TEMPLATES",
    "LlamaCppForm",
    "Renderer",
    "Report",
    "Sample",
    "Special",
    "TemplateError",
    "answers_of",
    "batch_encoder",
    "check_template",
    "convert",
    "cut",
    "digest",
    "digest_of_pretrained",
    "gives_same_ids",
    "has_merges",
    "installed_analyser",
    "llama_cpp_form",
    "load",
    "load_chat",
    "lost_bytes",
    "lost_characters",
    "read_pretrained",
    "read_template",
    "report",
    "require_chat",
    "save",
    "save_with_template",
    "special",
    "tokens_of",
    "train",
    "why_not_reproducible",
]
