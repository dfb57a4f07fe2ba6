"""A tokenizer -> a function from texts to ids: by tiktoken where it is installed and proved to give the same, else not.

tiktoken merges the pair whose joined bytes have the lowest id, the library the pair that comes first in its list. Both
give the same ids where each token is made by one pair, pairs and ids are in one order, and each token by itself is
encoded as itself. For let x and y be neighbours that spell a token t. No merge has crossed t's edges, or x and y would
not end there; so within t the same merges were made, in the same order, as when t stands alone; alone it comes to its
one pair before it becomes t; so x and y are that pair. These conditions are checked here, for each tokenizer.
"""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from llm.environment import variables
from llm.run.console import log
from llm.tokenizer.components import assemble

Encoder = Callable[[list[str]], list[list[int]]]

# How words are cut. The two regex engines were compared on every character of Unicode: tests/test_tokenizer_fast.py.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_HEAD, _TAIL = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
GPT4, QWEN2 = rf"{_HEAD}\p{{N}}{{1,3}}{_TAIL}", rf"{_HEAD}\p{{N}}{_TAIL}"


def batch_encoder(tokenizer: Tokenizer) -> Encoder:
    """Encodes texts as the tokenizer does, with no special token added and none looked for in the text."""
    reason = why_not_fast(tokenizer)
    if reason is None:
        log.debug("encodes with tiktoken")
        return _with_tiktoken(tokenizer)
    log.debug("encodes with tokenizers: %s", reason)
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def why_not_fast(tokenizer: Tokenizer) -> str | None:
    """What keeps tiktoken from giving the same ids, or from being used; None if nothing does."""
    if not hasattr(tokenizer, "to_str"):
        return "it is not one of the library's"
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    model = state["model"]
    if not find_spec("tiktoken"):
        return "tiktoken is not installed"
    if not tokenizer.encode_special_tokens:
        return "it looks for special tokens in the text"
    if not all(token["special"] for token in state["added_tokens"]):
        return "it looks for added tokens in the text"
    marks = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(mark) for mark in marks):
        return "its model is not plain BPE"
    if state["normalizer"] not in (None, {"type": "NFC"}) or word_rule(state["pre_tokenizer"]) is None:
        return "it cuts or normalizes text in its own way"
    return _why_not_provable(model)


def word_rule(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The regex by which words are cut, if it is one of those that were compared."""
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


def _why_not_provable(model: dict[str, Any]) -> str | None:
    if not all(symbol in model["vocab"] for symbol in pre_tokenizers.ByteLevel.alphabet()):
        return "it lacks a byte"
    return why_not_by_ids(model)


def why_not_by_ids(model: dict[str, Any]) -> str | None:
    """What keeps joining by the lowest id of the joined from being joining by the list of pairs; None if nothing does.

    `model` is BPE as tokenizer.json has it.
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


def _with_tiktoken(tokenizer: Tokenizer) -> Encoder:
    import tiktoken

    state = json.loads(tokenizer.to_str())
    bytes_of, vocab = symbol_bytes(), state["model"]["vocab"]
    made = {vocab["".join(pair)] for pair in state["model"]["merges"]}
    used = {token: number for token, number in vocab.items() if token in bytes_of or number in made}
    encoding = tiktoken.Encoding(
        "ttukttak",
        pat_str=str(word_rule(state["pre_tokenizer"])),
        mergeable_ranks={bytes(bytes_of[symbol] for symbol in token): number for token, number in used.items()},
        special_tokens={},
    )
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    threads = (os.cpu_count() or 1) if variables().get("TOKENIZERS_PARALLELISM") != "false" else 1
    return lambda texts: encoding.encode_ordinary_batch([normalize(text) for text in texts], num_threads=threads)


def symbol_bytes() -> dict[str, int]:
    """The symbols of a byte-level vocabulary, each with its byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2 writes these as themselves,
    others = [byte for byte in range(256) if byte not in printable]  # and the rest as U+0100 and on
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
