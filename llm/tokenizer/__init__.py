"""A tokenizer from its config: built, trained on text, saved beside a report, loaded again.

components.py   the five stages, in tokenizer.json's own format, checked by name
training.py     texts, or a sample of them -> a trained tokenizer; a trained one -> a smaller one
extend.py       a BPE and text -> the same with new tokens, which its own merges go on to
folder.py       a tokenizer <-> a folder that AutoTokenizer loads too, ours or one that was there already
chat.py         chat templates, by name or file; conversations -> text and tokens by one
llama_cpp.py    a tokenizer -> the one of llama.cpp's that gives the same tokens, or why there is none
report.py       what a tokenizer keeps of held-out text, what it loses, how short and how fast it is
"""
