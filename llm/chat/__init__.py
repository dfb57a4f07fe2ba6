"""Talk to a run: in the terminal, in a page of the browser, or with many prompts at once.

command.py   the command line -> one of the ways to talk
talker.py    a model and its tokenizer -> the answer to a conversation
batch.py     a file of prompts -> a file of answers
page.py      the same conversation in the browser, on this machine alone
"""
