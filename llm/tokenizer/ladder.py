"""A trained BPE -> the one that training to a smaller vocabulary would have given."""

import json
from typing import Any

from tokenizers import Tokenizer

from llm.config.tokenizer import TokenizerConfig
from llm.tokenizer.training import why_not_reproducible


def why_not_cut(config: TokenizerConfig) -> str | None:
    """Why a smaller tokenizer of this config cannot be cut from a larger one; None if it can.

    BPE adds one merge after the other, and stops at the size that was asked for: the smaller vocabulary is the
    beginning of the larger. That holds where training is reproducible. WordPiece is trained in the same way but numbers
    its pieces anew; Unigram starts large and throws away.
    """
    return why_not_reproducible(config)


def cut(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """A BPE with the tokens of the first `vocab_size` ids, characters at least, and the merges that make them."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    made = [vocab["".join(pair)] for pair in state["model"]["merges"]]
    size = max(vocab_size, min(made, default=0))
    if size < len(vocab):
        # A merge can give a token that is there already: training ends at the one that fills the vocabulary.
        merges = made.index(size - 1) + 1 if size - 1 in made else 0
        state["model"]["vocab"] = {token: number for token, number in vocab.items() if number < size}
        state["model"]["merges"] = state["model"]["merges"][:merges]
    return Tokenizer.from_str(json.dumps(state))
