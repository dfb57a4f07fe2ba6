"""A tokenizer from its config: built, trained on text, saved beside a report, loaded again.

components.py   the five stages, in tokenizer.json's own format, checked by name
training.py     texts, or a sample of them -> a trained tokenizer; a trained one -> a smaller one
folder.py       a tokenizer <-> a folder that AutoTokenizer loads too, ours or one that was there already
chat.py         chat templates, by name or file; conversations -> text and tokens by one
llama_cpp.py    a tokenizer -> the one of llama.cpp's that gives the same tokens, or why there is none
report.py       what a tokenizer keeps of held-out text, what it loses, how short and how fast it is
"""

from llm.tokenizer.chat import TEMPLATES as TEMPLATES
from llm.tokenizer.chat import Renderer as Renderer
from llm.tokenizer.chat import TemplateError as TemplateError
from llm.tokenizer.chat import check_template as check_template
from llm.tokenizer.chat import read_template as read_template
from llm.tokenizer.folder import Special as Special
from llm.tokenizer.folder import convert as convert
from llm.tokenizer.folder import digest as digest
from llm.tokenizer.folder import gives_same_ids as gives_same_ids
from llm.tokenizer.folder import load as load
from llm.tokenizer.folder import load_chat as load_chat
from llm.tokenizer.folder import pieces_of as pieces_of
from llm.tokenizer.folder import read_pretrained as read_pretrained
from llm.tokenizer.folder import require_chat as require_chat
from llm.tokenizer.folder import save as save
from llm.tokenizer.folder import save_with_template as save_with_template
from llm.tokenizer.folder import special as special
from llm.tokenizer.folder import tokens_of as tokens_of
from llm.tokenizer.llama_cpp import LlamaCppForm as LlamaCppForm
from llm.tokenizer.llama_cpp import llama_cpp_form as llama_cpp_form
from llm.tokenizer.report import Report as Report
from llm.tokenizer.report import lost_bytes as lost_bytes
from llm.tokenizer.report import lost_characters as lost_characters
from llm.tokenizer.report import report as report
from llm.tokenizer.training import Sample as Sample
from llm.tokenizer.training import cut as cut
from llm.tokenizer.training import installed_analyser as installed_analyser
from llm.tokenizer.training import train as train
from llm.tokenizer.training import why_not_reproducible as why_not_reproducible
