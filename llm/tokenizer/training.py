"""Texts, or a random sample of them -> a trained tokenizer; a trained BPE -> a smaller one.

Texts may be cut at their morphemes first, by an optional analyser: Kiwi (kiwipiepy) or MeCab-ko (python-mecab-ko).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers

from llm.config.tokenizer import Alphabet, Morphemes, TokenizerConfig
from llm.errors import ConfigError, DataError, is_panic
from llm.run.console import log
from llm.tokenizer.components import assemble, build
from llm.tokenizer.extend import extend

_SYMBOLS = ("min_frequency", "initial_alphabet", "limit_alphabet", "continuing_subword_prefix")
_TRAINERS: dict[str, tuple[Any, tuple[str, ...]]] = {  # with the arguments that each takes
    "BPE": (trainers.BpeTrainer, (*_SYMBOLS, "end_of_word_suffix")),
    "WordPiece": (trainers.WordPieceTrainer, _SYMBOLS),
    "Unigram": (trainers.UnigramTrainer, ("unk_token", "initial_alphabet")),
    "WordLevel": (trainers.WordLevelTrainer, ("min_frequency",)),
}
_UNUSED = {"initial_alphabet": Alphabet.none, "limit_alphabet": None}  # what says so, to a trainer that takes none

MARK = "\ue0ff"  # of a private use area: set between morphemes while training, and taken out of what it is set in
_PACKAGES = {Morphemes.kiwi: ("kiwipiepy", "kiwipiepy"), Morphemes.mecab: ("mecab", "python-mecab-ko")}  # by module

MAX_GROWTH = 100  # characters for one; Unicode's own forms make 18 at most, U+FDFA in NFKD
MAX_CONTENT = 1000  # characters that one replacement puts in
PIECE = 1000  # characters that are normalized at once to see whether they grow: some 100 MB at the worst


@dataclass
class Sample:
    """A random sample of about `num_bytes` (UTF-8) of texts, in their order, with what was read of them so far.

    A first pass measures the whole; a text is then taken or not by a hash of seed and text, so that nothing but one
    text is held, a larger sample holds the smaller one, and the same seed takes the same texts.
    """

    texts: Callable[[], Iterator[str]]
    num_bytes: int | None  # None: all
    seed: int
    documents: int = 0
    raw_bytes: int = 0
    total_bytes: int | None = None  # of all texts; None where all are taken, for they are not measured then

    def __iter__(self) -> Iterator[str]:
        self.documents, self.raw_bytes, share = 0, 0, 1.0
        if self.num_bytes is not None:
            self.total_bytes = sum(len(text.encode()) for text in self.texts())
            share = self.num_bytes / max(self.total_bytes, 1)
        for text in self.texts():
            if share < 1 and self._draw(text) >= share:
                continue
            self.documents += 1
            self.raw_bytes += len(text.encode())
            yield text
        log.info("learns from %.1f MB in %d documents", self.raw_bytes / 1e6, self.documents)

    def _draw(self, text: str) -> float:
        """A number from 0 to 1 that looks random, and has nothing to do with which texts are held out."""
        digest = hashlib.sha256(f"tokenizer sample {self.seed}\n{text}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer trained on `texts`; its vocabulary is at most config.vocab_size, special tokens included.

    With tokenizer.superword_share they are read a second time, and so are no iterator.

    Raises:
        ConfigError: the stages do not fit together, or an analyser is missing; known before a text is read.
        DataError: nothing can be learned from the texts.
    """
    if config.superword_share is not None:
        return _with_superwords(config, texts, share=config.superword_share)
    tokenizer = build(config)
    untrained = json.loads(tokenizer.to_str())
    trainer = _trainer(config, tokenizer)
    if config.morphemes is not Morphemes.none:
        texts = marked(texts, analyser(config.morphemes))
        parts = [pre_tokenizers.Split(MARK, "removed"), *filter(None, [tokenizer.pre_tokenizer])]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    _learn(tokenizer, _bounded(texts, _steps(untrained["normalizer"])), trainer)
    return _finished(tokenizer, untrained, config)


def _with_superwords(config: TokenizerConfig, texts: Iterable[str], *, share: float) -> Tokenizer:
    """BPE that learns all but a share of its tokens as ever, and then goes on within what the second cutting leaves."""
    superwords = round(share * config.vocab_size)
    first = replace(
        config, vocab_size=config.vocab_size - superwords, superword_share=None, superword_pre_tokenizer=None
    )
    words = train(first, texts)
    words.pre_tokenizer = build(replace(config, pre_tokenizer=config.superword_pre_tokenizer)).pre_tokenizer
    made = extend(words, lambda: iter(texts), new_tokens=superwords, min_frequency=config.min_frequency)
    log.info("%d superwords, the first %r", len(made.tokens), made.tokens[:5])
    return made.tokenizer


def cut(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """A BPE with the tokens of the first `vocab_size` ids, characters at least, and the merges that make them.

    Training adds one merge after the other, and stops at the size that was asked for: where it is reproducible
    (`why_not_reproducible`), the smaller vocabulary is the beginning of the larger.
    """
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


def _bounded(texts: Iterable[str], steps: list[dict[str, Any]]) -> Iterator[str]:
    """The texts, each looked at before the library normalizes it: replacements that feed each other fill the memory.

    Raises:
        ConfigError: a piece of text becomes more than MAX_GROWTH times as long.
    """
    if all(len(step.get("content", "")) <= 1 for step in steps):
        yield from texts
        return
    if longest := max((step["content"] for step in steps if len(step.get("content", "")) > MAX_CONTENT), default=None):
        raise ConfigError(f"tokenizer.normalizer replaces by {len(longest)} characters. Use {MAX_CONTENT} at most.")
    made: list[normalizers.Normalizer] = [assemble(normalizer=step).normalizer for step in steps]
    for text in texts:
        for start in range(0, len(text), PIECE):
            piece = grown = text[start : start + PIECE]
            for step in made:
                grown = step.normalize_str(grown)
                if len(grown) > MAX_GROWTH * len(piece):
                    raise ConfigError(
                        f"tokenizer.normalizer makes more than {MAX_GROWTH} characters of one, as in {piece[:20]!r}. "
                        "Correct the steps that replace what others have put in."
                    )
        yield text


def _steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, those of a Sequence in a Sequence too."""
    if normalizer is None or normalizer["type"] != "Sequence":
        return [normalizer] if normalizer else []
    return [step for each in normalizer["normalizers"] for step in _steps(each)]


def _learn(tokenizer: Tokenizer, texts: Iterable[str], trainer: Any) -> None:
    """Have the library train; what a text's source raises goes through, and what the library does is one line."""
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):  # the library's own errors are bare
            raise
        raise DataError(
            f"the tokenizer cannot be trained on this text: {error}. Give it more, or other text."
        ) from None


def prefixed(model: Any) -> bool:
    """Whether a model marks the pieces of a word by a prefix or a suffix."""
    return isinstance(model, dict) and bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))


def why_not_reproducible(config: TokenizerConfig) -> str | None:
    """Why the library may give another tokenizer for the same text, measured with tokenizers 0.23; None if it does not.

    It goes through hash maps whose order differs from one process to the next wherever it lists words or pieces.
    """
    model = config.model if isinstance(config.model, dict) else {"type": config.model}
    if model["type"] != "BPE":
        return f"the library's {model['type']} training is not"
    if prefixed(config.model):
        return "the library numbers symbols with a prefix or suffix in no fixed order"
    if config.limit_alphabet is not None:
        return "the library cuts characters that are equally frequent in no fixed order"
    return None


def why_not_cut(config: TokenizerConfig) -> str | None:
    """Why a smaller tokenizer is not the beginning of a larger one; None if it is."""
    superwords = "its superwords come after merges that a smaller one does not have" if config.superword_share else None
    return why_not_reproducible(config) or superwords


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
    if choice is Alphabet.jamo:
        first, vowel, last = (0x1100, 0x1113), (0x1161, 0x1176), (0x11A8, 0x11C3)  # Unicode, section 3.12
        return [chr(code) for letters in (first, vowel, last) for code in range(*letters)]
    return []


def byte_tokens() -> list[str]:
    """<0x00> to <0xFF>, as byte fallback names them."""
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _model_state(tokenizer: Tokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return state


def _trainer(config: TokenizerConfig, tokenizer: Tokenizer) -> Any:
    model, unknown = _model_state(tokenizer), unknown_token(tokenizer)
    trainer, takes = _TRAINERS[model["type"]]
    _check(config, model["type"], unknown)
    known = {
        "min_frequency": config.min_frequency,
        "initial_alphabet": alphabet(config.initial_alphabet),
        "limit_alphabet": config.limit_alphabet,
        "unk_token": unknown,
        "continuing_subword_prefix": model.get("continuing_subword_prefix") or None,
        "end_of_word_suffix": model.get("end_of_word_suffix") or None,
    }
    # special_tokens is the only argument that can add the byte tokens; _finished takes them out again.
    special = config.special_tokens + (byte_tokens() if model.get("byte_fallback") else [])
    arguments = {name: known[name] for name in takes if known[name] is not None}
    return trainer(vocab_size=config.vocab_size, special_tokens=special, show_progress=False, **arguments)


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
    for name, unused in _UNUSED.items():
        if name not in _TRAINERS[kind][1] and getattr(config, name) is not unused:
            unset = "null" if unused is None else unused.name
            raise ConfigError(f"tokenizer.{name} is not used by {kind}. Set it to {unset}.")
    if config.morphemes is not Morphemes.none and (kind != "BPE" or prefixed(config.model)):
        raise ConfigError(
            f"tokenizer.morphemes={config.morphemes.name} needs tokenizer.model=BPE without prefix or suffix: the "
            "others would take each morpheme for a word. Set tokenizer.morphemes=none, or change the model."
        )


def _finished(tokenizer: Tokenizer, untrained: dict[str, Any], config: TokenizerConfig) -> Tokenizer:
    """The trained model in the stages that the config asks for.

    The byte tokens become ordinary vocabulary: as special ones, decode() would silently delete what they spell. The
    marks between morphemes are gone, and Unigram has byte fallback again, which its trainer forgets.
    """
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in config.special_tokens]
    state["pre_tokenizer"] = untrained["pre_tokenizer"]
    if "byte_fallback" in untrained["model"]:
        state["model"]["byte_fallback"] = untrained["model"]["byte_fallback"]
    return Tokenizer.from_str(json.dumps(state))


# Morphemes


def installed_analyser() -> Morphemes:
    """The analyser that is there, Kiwi if both are; none if neither is."""
    return next((kind for kind, (module, _) in _PACKAGES.items() if find_spec(module)), Morphemes.none)


@cache
def analyser(kind: Morphemes) -> Callable[[str], list[int]]:
    """A function that gives the places (characters from the text's start) within words at which a morpheme begins.

    Raises:
        ConfigError: its package is not installed.
    """
    module, package = _PACKAGES[kind]
    try:
        library: Any = import_module(module)
    except ImportError:
        raise ConfigError(
            f"tokenizer.morphemes={kind.name} needs the package {package}, which is not installed. Install it with "
            "pip install -e '.[morph]', or set tokenizer.morphemes=none."
        ) from None
    if kind is Morphemes.kiwi:
        kiwi = library.Kiwi(num_workers=1)
        return lambda text: _beginnings(text, ((token.start, token.end) for token in kiwi.tokenize(text)))
    mecab = library.MeCab()
    return lambda text: _beginnings(text, ((token.span.start, token.span.end) for token in mecab.parse(text)))


def marked(texts: Iterable[str], cuts: Callable[[str], list[int]]) -> Iterator[str]:
    """Each text with MARK between its morphemes."""
    for text in texts:
        plain = text.replace(MARK, "")
        yield MARK.join(plain[start:end] for start, end in pairwise([0, *cuts(plain), len(plain)]))


def _beginnings(text: str, spans: Iterable[tuple[int, int]]) -> list[int]:
    """Beginnings of spans that stand in a word. Spans that overlap, as of a contraction (했: 하 + 었), stay one."""
    cuts, reached = [], 0
    for start, end in spans:
        if reached <= start and 0 < start < len(text) and not text[start - 1].isspace() and not text[start].isspace():
            cuts.append(start)
        reached = max(reached, end)
    return cuts
