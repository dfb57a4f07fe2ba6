"""The schema of a tokenizer: its five stages, and how it is trained."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from llm.config.fields import HOW, check_settings, label_of, setting
from llm.errors import ConfigError


class Alphabet(Enum):
    none = "none"
    bytes = "bytes"  # the 256 symbols of a byte-level tokenizer
    ks_x_1001 = "ks_x_1001"  # the 2,350 Hangul syllables of the KS X 1001 standard
    jamo = "jamo"  # the 67 conjoining letters that modern Hangul decomposes into


TRAINED = ("path", (None,))  # not one that is taken as it is
ALPHABET_SIZES = {Alphabet.none: 0, Alphabet.bytes: 256, Alphabet.ks_x_1001: 2350, Alphabet.jamo: 67}


class Morphemes(Enum):
    none = "none"
    kiwi = "kiwi"
    mecab = "mecab"


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """A tokenizer: its five stages in the format of tokenizer.json, and how it is trained."""

    name: str = setting(MISSING, HOW)
    path: str | None = setting(None, HOW, is_file=True)  # a folder with a tokenizer.json, or a hub id: taken as it is,
    # and none of what follows is set, but for the roles of its special tokens; its digest is in the identity
    # that the BPE of `path` learns from the text on top of its own; None: it is taken as it is
    new_tokens: int | None = setting(None, at_least=1, only_with=("path", bool), only_where_set=True)
    # special tokens included; a small corpus may give fewer
    vocab_size: int = setting(8192, only_with=TRAINED)
    # a component of tokenizers, as in tokenizer.json: {type: NFC}, or just its type: NFC
    normalizer: Any = setting(None, only_with=TRAINED)
    pre_tokenizer: Any = setting(None, only_with=TRAINED)
    model: Any = MISSING
    post_processor: Any = setting(None, only_with=TRAINED)
    decoder: Any = setting(None, only_with=TRAINED)
    special_tokens: list[str] = setting(["<|endoftext|>"])  # their ids are 0, 1, 2, ...
    bos_token: str | None = None  # one of special_tokens; None: the first
    eos_token: str | None = None  # one of special_tokens; None: the first
    pad_token: str | None = None  # one of special_tokens; None pads with eos
    # symbols that are in the vocabulary whether the text has them or not
    initial_alphabet: Alphabet = setting(Alphabet.none, only_with=TRAINED)
    # characters kept as single tokens; None keeps all
    limit_alphabet: int | None = setting(None, at_least=1, only_with=TRAINED)
    min_frequency: int = setting(2, at_least=0, only_with=TRAINED)  # how often a pair must occur to be merged
    # whose morphemes no token may cross in training; encoding needs none of it
    morphemes: Morphemes = setting(Morphemes.none, only_with=TRAINED)
    # of the vocabulary, what BPE learns in a second phase, in which superword_pre_tokenizer cuts in place of
    # pre_tokenizer, as it does from then on: merges across spaces (SuperBPE, arXiv:2503.13423)
    superword_share: float | None = setting(None, above=0, below=1, only_with=TRAINED, only_where_set=True)
    superword_pre_tokenizer: Any = setting(None, only_with=("superword_share", bool), only_where_set=True)
    # of text, taken at random by document; None takes all
    sample_bytes: int | None = setting(None, at_least=1)
    sample_seed: int = setting(0, at_least=0)
    # cut from the tokenizer of this size, or of so many new tokens, where that is the same
    ladder: int | None = setting(None, HOW, at_least=1)
    allow_lossy: bool = setting(False, HOW)  # keep a tokenizer that does not give held-out text back

    def __post_init__(self) -> None:
        check_settings(self, "tokenizer")
        if self.ladder is not None and self.ladder < self.size:
            raise ConfigError(
                f"tokenizer.ladder={self.ladder} is smaller than tokenizer.{self.size_name}={self.size}, which is cut "
                "from it. Set it to the largest vocabulary of the sweep, or to null."
            )
        if self.path is not None:
            return
        if self.model is None and not self.special_tokens:
            raise ConfigError("tokenizer.path is missing. Set it to a folder with a tokenizer.json, or to a hub id.")
        if self.model is None:
            raise ConfigError("tokenizer.model is null. Set it to BPE, WordPiece, Unigram or WordLevel.")
        if not self.special_tokens or len(set(self.special_tokens)) < len(self.special_tokens):
            raise ConfigError(
                f"tokenizer.special_tokens={self.special_tokens} is empty or names one twice. Set it to "
                "['<|endoftext|>'], for example: documents need an end."
            )
        for role in ("bos_token", "eos_token", "pad_token"):
            if (token := getattr(self, role)) is not None and token not in self.special_tokens:
                raise ConfigError(f"tokenizer.{role}={token} is not one of tokenizer.special_tokens. Add it there.")
        kind = self.model.get("type") if isinstance(self.model, dict) else self.model
        if self.superword_share is not None and (kind != "BPE" or self.superword_pre_tokenizer is None):
            raise ConfigError(
                f"tokenizer.superword_share={self.superword_share} needs tokenizer.model=BPE, and a "
                "tokenizer.superword_pre_tokenizer that cuts more rarely than pre_tokenizer. Set both, or take "
                "tokenizer=superword_bpe."
            )
        byte_fallback = isinstance(self.model, dict) and bool(self.model.get("byte_fallback"))
        least = len(self.special_tokens) + ALPHABET_SIZES[self.initial_alphabet] + 256 * byte_fallback + 1
        if self.vocab_size < least:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size} is too small: special tokens, alphabet and bytes take "
                f"{least - 1}. Set tokenizer.vocab_size to {least} or more."
            )

    @property
    def size_name(self) -> str:
        """The setting that says how many tokens are learned."""
        return "vocab_size" if self.path is None else "new_tokens"

    @property
    def size(self) -> int:
        """Its value; 0 of a tokenizer that is taken as it is."""
        return getattr(self, self.size_name) or 0

    @property
    def roles(self) -> dict[str, str]:
        """The token of each role, of a tokenizer that is trained."""
        first = self.special_tokens[0]
        end = self.eos_token or first
        return {"bos_token": self.bos_token or first, "eos_token": end, "pad_token": self.pad_token or end}

    @property
    def label(self) -> str:
        """What a run of it is called, unless the user says."""
        if self.path is None:
            return f"{self.name}-{self.vocab_size}"
        label = label_of(self.path, otherwise=self.name)
        return f"{label}+{self.new_tokens}" if self.new_tokens else label
