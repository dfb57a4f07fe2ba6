"""A tokenizer -> the one of llama.cpp's that cuts text into the same tokens, or why there is none.

Byte-level BPE is its "gpt2": the same merges, words cut by a rule that it has under a name. BPE over characters with
bytes for the rest is its "llama", which has no merges and no words: it joins the neighbours whose joined token has the
best score. With an earlier merge as a better score that is the same where each token is made by one pair, pairs and ids
are in one order, and each token by itself is encoded as itself (why: fast.py), and where no token could cross a word.
It normalizes nothing: text must come in NFC where the tokenizer would have made it so.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from llm.tokenizer.fast import GPT2, GPT4, QWEN2, why_not_by_ids, word_rule
from llm.tokenizer.training import byte_tokens, prefixed

SPACE = "▁"
_RULES = {GPT2: "gpt-2", GPT4: "dbrx", QWEN2: "qwen2"}  # its names for how words are cut
_NFC, _MARK_SPACES = {"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_WORDS = {"type": "Split", "pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False}


@dataclass(frozen=True, kw_only=True)
class LlamaCppForm:
    """What llama.cpp is told of a tokenizer."""

    model: str  # tokenizer.ggml.model
    pre: str  # tokenizer.ggml.pre: how words are cut
    needs_nfc: bool  # text has to be normalized before it is given


def llama_cpp_form(tokenizer: Tokenizer) -> LlamaCppForm | str:
    """The form that gives the same tokens, or in a few words why there is none."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        return f"llama.cpp has no {model['type']} that gives the same tokens"
    if prefixed(model) or model.get("dropout"):
        return "llama.cpp knows no prefix, suffix or dropout of pieces"
    if model.get("byte_fallback"):
        return _as_llama(state)
    rule = word_rule(state["pre_tokenizer"])
    if rule is None or model.get("unk_token"):
        return "llama.cpp has no rule that cuts words in this way"
    if state["normalizer"] not in (None, _NFC):
        return "llama.cpp does not normalize text in this way"
    return LlamaCppForm(model="gpt2", pre=_RULES[rule], needs_nfc=state["normalizer"] is not None)


def _as_llama(state: dict[str, Any]) -> LlamaCppForm | str:
    """BPE over characters, with spaces marked and bytes for what the vocabulary lacks."""
    model, vocab = state["model"], state["model"]["vocab"]
    steps = (state["normalizer"] or {}).get("normalizers", [state["normalizer"]])
    if steps not in ([_MARK_SPACES], [_NFC, _MARK_SPACES]):
        return "llama.cpp does not normalize text in this way"
    if state["pre_tokenizer"] != _WORDS:
        return "llama.cpp has no rule that cuts words in this way"
    if not all(token in vocab for token in byte_tokens()):
        return "it lacks a byte"
    added = {token["content"] for token in state["added_tokens"]}
    if any(SPACE in token[1:] for token in vocab if token not in added):
        return "a token goes on past a space"
    if any(token[:place] in vocab and token[place:] in vocab for token in byte_tokens() for place in range(1, 6)):
        return "text could be read as the byte that it names"
    if reason := why_not_by_ids(model):
        return reason
    return LlamaCppForm(model="llama", pre="default", needs_nfc=_NFC in steps)
