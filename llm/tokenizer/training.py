"""Texts -> a trained tokenizer."""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, trainers

from llm.config import Alphabet, TokenizerConfig
from llm.errors import ConfigError
from llm.tokenizer.components import build

_TRAINERS: dict[str, Any] = {
    "BPE": trainers.BpeTrainer,
    "WordPiece": trainers.WordPieceTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
}


def train(config: TokenizerConfig, texts: Iterator[str]) -> Tokenizer:
    """A tokenizer trained on `texts`; its vocabulary is at most config.vocab_size, special tokens included.

    Raises:
        ConfigError: the stages do not fit together; known before a text is read.
    """
    tokenizer = build(config)
    trainer = _trainer(config, tokenizer)
    tokenizer.train_from_iterator(texts, trainer)
    return _with_plain_bytes(tokenizer, config)


def unknown_token(tokenizer: Tokenizer) -> str | None:
    """What stands for text that the vocabulary lacks, if anything does."""
    model = _model_state(tokenizer)
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else str(model["vocab"][model["unk_id"]][0])
    return model["unk_token"] if model["unk_token"] is None else str(model["unk_token"])


def alphabet(choice: Alphabet) -> list[str]:
    """Characters that are tokens whether the text has them or not."""
    if choice is Alphabet.bytes:
        return sorted(pre_tokenizers.ByteLevel.alphabet())
    if choice is Alphabet.ks_x_1001:
        syllables = (chr(code) for code in range(ord("가"), ord("힣") + 1))
        # The codec writes the syllables outside the standard in 8 bytes (its annex 3).
        return [syllable for syllable in syllables if len(syllable.encode("euc_kr")) == 2]
    return []


def byte_tokens() -> list[str]:
    """<0x00> to <0xFF>, as byte fallback names them."""
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _model_state(tokenizer: Tokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return state


def _trainer(config: TokenizerConfig, tokenizer: Tokenizer) -> Any:
    model, unknown = _model_state(tokenizer), unknown_token(tokenizer)
    kind = model["type"]
    _check(config, kind, unknown)
    # special_tokens is the only argument that can add the byte tokens; _with_plain_bytes takes them out again.
    special = config.special_tokens + (byte_tokens() if model.get("byte_fallback") else [])
    arguments: dict[str, Any] = {"vocab_size": config.vocab_size, "special_tokens": special, "show_progress": False}
    if kind != "WordLevel":
        arguments["initial_alphabet"] = alphabet(config.initial_alphabet)
    if kind == "Unigram":
        arguments["unk_token"] = unknown
    else:
        arguments["min_frequency"] = config.min_frequency
    if kind in ("BPE", "WordPiece"):
        if config.limit_alphabet is not None:
            arguments["limit_alphabet"] = config.limit_alphabet
        if prefix := model.get("continuing_subword_prefix"):
            arguments["continuing_subword_prefix"] = prefix
    if kind == "BPE" and (suffix := model.get("end_of_word_suffix")):
        arguments["end_of_word_suffix"] = suffix
    return _TRAINERS[kind](**arguments)


def _check(config: TokenizerConfig, kind: str, unknown: str | None) -> None:
    if unknown is not None and unknown not in config.special_tokens:
        raise ConfigError(
            f"tokenizer.model={kind} writes {unknown} for what it does not know, but tokenizer.special_tokens="
            f"{config.special_tokens} lacks it. Add it there."
        )
    if kind == "Unigram" and unknown is None:
        raise ConfigError(
            "tokenizer.model.unk_id is null, but Unigram cannot do without. Write tokenizer.model=Unigram."
        )
    if kind == "WordLevel" and config.initial_alphabet is not Alphabet.none:
        raise ConfigError("tokenizer.initial_alphabet is not used by WordLevel, which has words only. Set it to none.")
    if kind in ("Unigram", "WordLevel") and config.limit_alphabet is not None:
        raise ConfigError(f"tokenizer.limit_alphabet is not used by {kind}. Set it to null.")


def _with_plain_bytes(tokenizer: Tokenizer, config: TokenizerConfig) -> Tokenizer:
    """The byte tokens as ordinary vocabulary: as special ones, decode() would silently delete what they spell."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in config.special_tokens]
    return Tokenizer.from_str(json.dumps(state))
