"""Talk to a run: in the terminal, in a local page, or many prompts at once.

command.py   the command line -> one of the ways to talk
talker.py    a model and its tokenizer -> the answer to a conversation, in pieces of whole characters
settings.py  how the next token is chosen, as a person sets it -> checked
terminal.py  a conversation with a person, with one model or with two side by side
batch.py     a file of prompts -> a file of answers
server.py    the same conversation over HTTP on this machine alone; page.html is what the browser shows
"""

from llm.chat.talker import Talker, open_talker

__all__ = ["Talker", "open_talker"]
