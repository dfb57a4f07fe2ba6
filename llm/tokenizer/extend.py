"""A BPE tokenizer and text -> the same tokenizer with new tokens, which its own BPE learns by going on with its merges.

The base's tokens keep their ids, and its merges come first: text in which no new token occurs is cut as before, and a
new token is always reached, for it is merged of what the base makes of the text. Appended as whole words, many never
would be (arXiv:2512.03989).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llm.errors import ConfigError, DataError

FIRST_SYMBOL = 0x10000  # the library learns over characters: the token of id n stands as this one and n more
END_OF_WORD = "\n"
WORD_START = "▁"  # of SentencePiece, whose words are not parted before the merges
COVERAGE = 0.9995  # of the characters that the base spells by bytes: the rarer ones stay so
BATCH = 256  # texts


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens, and what they are."""

    tokenizer: Tokenizer
    characters: int  # new tokens that are one character, which the base spells by bytes
    tokens: list[str]  # all new ones, in the order of their ids


def extend(
    base: Tokenizer, texts: Callable[[], Iterator[str]], *, new_tokens: int, min_frequency: int = 2
) -> Extension:
    """`base` with as many new tokens as the text gives, `new_tokens` at most; it is read twice where bytes stand in.

    Raises:
        ConfigError: the base is no BPE that can be gone on with, or there is no room for the characters it lacks.
        DataError: the text gives no new token.
    """
    words = _Words(base)
    words.learn_characters(texts, new_tokens=new_tokens)
    # A few more, for those whose text is a token already: of a base with tokens that its own merges never reach.
    learned = _learn(words, texts(), size=words.size + new_tokens + new_tokens // 50 + 16, min_frequency=min_frequency)
    state: dict[str, Any] = json.loads(base.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    vocab |= {token.content: number for number, token in base.get_added_tokens_decoder().items()}
    made = list(words.characters)
    merges, known = [], set(vocab) | set(made)
    left_out: set[str] = set()
    for pair in learned:
        left, right = map(words.text, pair)
        if left + right in vocab or {left, right} & left_out:
            left_out.add(left + right)
            continue
        if left + right not in known:
            made.append(left + right)
            known.add(left + right)
        merges.append([left, right])
        if len(made) == new_tokens:
            break
    if not made:
        raise DataError(
            "the text gives no new token: the base has one for all that it repeats. Give more, or other text."
        )
    state["model"]["vocab"] = vocab | {token: number for number, token in enumerate(made, words.base_size)}
    state["model"]["merges"] += merges
    return Extension(Tokenizer.from_str(json.dumps(state)), len(words.characters), made)


class _Words:
    """Text -> its words as the base cuts them, a symbol for each token."""

    def __init__(self, base: Tokenizer) -> None:
        state = json.loads(base.to_str())["model"]
        if state["type"] != "BPE" or state.get("continuing_subword_prefix") or state.get("end_of_word_suffix"):
            raise ConfigError(
                f"tokenizer.path: it is {state['type']}, and new tokens are learned by BPE without prefix or suffix "
                "alone. Choose another base, or a tokenizer of its own with model.resize_vocabulary=true."
            )
        self._base = Tokenizer.from_str(base.to_str())
        self._base.encode_special_tokens = True
        self._base.no_truncation()
        self._base.no_padding()
        self._tokens: dict[int, str] = {number: token for token, number in state["vocab"].items()}
        self._bytes = (
            {self._base.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
            if state.get("byte_fallback")
            else {}
        )
        self._parts_words = self._base.pre_tokenizer is not None
        self.base_size = self._base.get_vocab_size()
        self.characters: dict[str, int] = {}  # new ones -> their ids

    @property
    def size(self) -> int:
        """Of the symbols: the base's tokens and the new characters."""
        return self.base_size + len(self.characters)

    def learn_characters(self, texts: Callable[[], Iterator[str]], *, new_tokens: int) -> None:
        """Have the fewest characters that make COVERAGE of those the base lacks be tokens.

        Raises:
            ConfigError: they are more than the new tokens.
        """
        if not self._bytes:
            return
        counts: Counter[str] = Counter()
        for ids, _ in self._encoded(texts()):
            for spelled, run in groupby(ids, key=self._bytes.__contains__):
                if spelled:
                    counts.update(bytes(self._bytes[each] for each in run).decode())
        left = (1 - COVERAGE) * counts.total()
        kept = sorted(counts, key=lambda each: (-counts[each], each))
        while kept and counts[kept[-1]] <= left:
            left -= counts[kept.pop()]
        if len(kept) >= new_tokens:
            raise ConfigError(
                f"tokenizer.new_tokens={new_tokens} leaves no room for merges: the base has no token for {len(kept)} "
                f"characters of this text. Set it to {2 * len(kept)} or more."
            )
        self.characters = {character: number for number, character in enumerate(kept, self.base_size)}

    def symbols(self, texts: Iterable[str]) -> Iterator[str]:
        """The words of each text, one symbol a token, each word with an END_OF_WORD behind it."""
        for ids, words in self._encoded(texts):
            yield "".join(self._symbols_of(ids, words))

    def text(self, symbols: str) -> str:
        """What a string of symbols spells, in the characters of the base's vocabulary."""
        new = {number: character for character, number in self.characters.items()}
        numbers = (ord(symbol) - FIRST_SYMBOL for symbol in symbols)
        return "".join(new[number] if number in new else self._tokens[number] for number in numbers)

    def _encoded(self, texts: Iterable[str]) -> Iterator[tuple[list[int], list[int | None]]]:
        batch: list[str] = []
        for text in texts:
            batch.append(text)
            if len(batch) == BATCH:
                yield from (
                    (each.ids, each.word_ids) for each in self._base.encode_batch(batch, add_special_tokens=False)
                )
                batch = []
        yield from ((each.ids, each.word_ids) for each in self._base.encode_batch(batch, add_special_tokens=False))

    def _symbols_of(self, ids: list[int], words: list[int | None]) -> Iterator[str]:
        before: int | None = -1
        for spelled, run in groupby(zip(ids, words, strict=True), key=lambda each: each[0] in self._bytes):
            if spelled:
                characters = bytes(self._bytes[number] for number, _ in run).decode()
                known = (self.characters.get(character) for character in characters)
                yield from (END_OF_WORD if number is None else chr(FIRST_SYMBOL + number) for number in known)
                continue
            for number, word in run:
                begins = word != before if self._parts_words else self._tokens.get(number, "").startswith(WORD_START)
                if begins or number not in self._tokens:
                    yield END_OF_WORD
                if number in self._tokens:
                    yield chr(FIRST_SYMBOL + number)
                before = word


def _learn(words: _Words, texts: Iterable[str], *, size: int, min_frequency: int) -> list[tuple[str, str]]:
    """The merges of symbols, in their order, of a BPE with `size` tokens in all."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(END_OF_WORD, "removed")
    alphabet = [chr(FIRST_SYMBOL + number) for number in range(words.size)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=min_frequency, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(words.symbols(texts), trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
