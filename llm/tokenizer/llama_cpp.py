"""A tokenizer -> the one of llama.cpp's that cuts text into the same tokens, or why there is none.

Byte-level BPE is its "gpt2": the same merges, words cut by a rule that it has under a name. BPE over characters with
bytes for the rest is its "llama", which has no merges and no words: it joins the neighbours whose joined token has the
best score. With an earlier merge as a better score that is the same where each token is made by one pair, pairs and ids
are in one order, and each token by itself is encoded as itself (see _why_not_by_ids), and where no token could cross a
word. It normalizes nothing: text must come in NFC where the tokenizer would have made it so.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from llm.tokenizer.components import assemble
from llm.tokenizer.training import byte_tokens, prefixed

SPACE = "▁"
# How words are cut
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_HEAD, _TAIL = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
GPT4, QWEN2 = rf"{_HEAD}\p{{N}}{{1,3}}{_TAIL}", rf"{_HEAD}\p{{N}}{_TAIL}"
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
    rule = _word_rule(state["pre_tokenizer"])
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
    if reason := _why_not_by_ids(model):
        return reason
    return LlamaCppForm(model="llama", pre="default", needs_nfc=_NFC in steps)


def _word_rule(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The regex by which words are cut, if it is one that llama.cpp has."""
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    plain = {"type": "ByteLevel", "add_prefix_space": False}
    last = {key: value for key, value in (parts[-1] or {}).items() if key != "trim_offsets"} if parts else {}
    if len(parts) == 1 and last == plain | {"use_regex": True}:
        return GPT2
    if len(parts) != 2 or last != plain | {"use_regex": False}:
        return None
    rule = parts[0].get("pattern", {}).get("Regex") if isinstance(parts[0].get("pattern"), dict) else None
    is_cut = parts[0] == {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
    return rule if is_cut and rule in (GPT4, QWEN2) else None


def _why_not_by_ids(model: dict[str, Any]) -> str | None:
    """What keeps joining by the lowest id of the joined from being joining by the list of pairs; None if nothing does.

    Both give the same ids where each token is made by one pair, pairs and ids are in one order, and each token by
    itself is encoded as itself. For let x and y be neighbours that spell a token t. No merge has crossed t's edges, or
    x and y would not end there; so within t the same merges were made, in the same order, as when t stands alone; alone
    it comes to its one pair before it becomes t; so x and y are that pair.
    """
    vocab: dict[str, int] = model["vocab"]
    made = [vocab["".join(pair)] for pair in model["merges"]]
    if made != sorted(set(made)):
        return "a token is made by two pairs, or not in the order of the ids"
    alone = assemble(model=model)
    tokens = [token for token, number in vocab.items() if number in set(made)]
    if any(e.ids != [vocab[token]] for token, e in zip(tokens, alone.encode_batch_fast(tokens), strict=True)):
        return "a token by itself is encoded as others"
    return None
