"""The five stages of a tokenizer, given as in tokenizer.json or by bare type name -> an untrained Tokenizer.

What goes beyond tokenizer.json's own format, and is written out in it: special tokens by name alone (their ids are
their places in tokenizer.special_tokens), a TemplateProcessing as a line of text, and a decoder of type NFC.
"""

import json
from difflib import get_close_matches
from functools import cache
from types import ModuleType
from typing import Any
from unicodedata import normalize

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llm.config.tokenizer import TokenizerConfig
from llm.errors import ConfigError

_MODULES: dict[str, tuple[ModuleType, type]] = {  # with what the components of a stage are all derived from
    "normalizer": (normalizers, normalizers.Normalizer),
    "pre_tokenizer": (pre_tokenizers, pre_tokenizers.PreTokenizer),
    "model": (models, models.Model),
    "post_processor": (processors, processors.PostProcessor),
    "decoder": (decoders, decoders.Decoder),
}
_SEQUENCE_ITEMS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
# Arguments of the components that have some without a default (None here); tokenizer.json writes all.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "Replace": {"pattern": None, "content": None},
    "Split": {"pattern": None, "behavior": None, "invert": False},
    "CharDelimiterSplit": {"delimiter": None},
    "Precompiled": {"precompiled_charsmap": None},
    "BertProcessing": {"sep": None, "cls": None},
    "RobertaProcessing": {"sep": None, "cls": None, "trim_offsets": True, "add_prefix_space": True},
    "TemplateProcessing": {"single": None, "pair": [], "special_tokens": {}},
}
_TEMPLATE_HINT = "Write it as '<s> $A </s>', with $A where the text goes."


def build(config: TokenizerConfig) -> Tokenizer:
    """An untrained tokenizer with the stages of `config`; what a stage leaves out has the library's default.

    Raises:
        ConfigError: a stage that the library does not have, or arguments that it does not take.
    """
    special = config.special_tokens
    stages = {stage: _full(getattr(config, stage), stage, f"tokenizer.{stage}", special) for stage in _MODULES}
    for stage, value in stages.items():  # one at a time, so that an error names its stage
        try:
            assemble(**{stage: value})
        except Exception as error:  # the library raises bare Exception
            reason = str(error).split(" at line")[0]
            raise ConfigError(
                f"tokenizer.{stage}={getattr(config, stage)} is not what tokenizers takes: {reason}. "
                "Write it as tokenizer.json does."
            ) from None
    return assemble(**stages)


def assemble(**stages: dict[str, Any] | None) -> Tokenizer:
    """A tokenizer of these stages as tokenizer.json writes them, without those that are not given."""
    state: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    state |= dict.fromkeys(_MODULES) | {"model": {"type": "BPE", "vocab": {}, "merges": []}} | stages
    return Tokenizer.from_str(json.dumps(state))


def _full(value: Any, stage: str, key: str, special: list[str]) -> dict[str, Any] | None:
    """A stage as tokenizer.json writes it, with the arguments that were left out."""
    if value is None:
        return None
    given = dict(value) if isinstance(value, dict) else {"type": value}
    name = _known_type(given.get("type"), stage, key)
    if name == "Sequence":
        return _sequence(given, stage, key, special)
    needed = [argument for argument, default in _ARGUMENTS.get(name, {}).items() if default is None]
    if missing := [argument for argument in needed if argument not in given]:
        raise ConfigError(f"{key}: {name} needs {missing[0]}. Give it {', '.join(needed)}.")
    is_ours = (stage, name) == ("decoder", "NFC")
    defaults = {"type": name} if is_ours else _defaults(stage, name)
    _take_only(given, defaults, key)
    full = defaults | given
    if name in ("BertProcessing", "RobertaProcessing"):
        return _with_ends(full, key, special)
    if name == "TemplateProcessing":
        return _template(full, key, special)
    return _recomposing() if is_ours else full


def _take_only(given: dict[str, Any], known: dict[str, Any], key: str) -> None:
    """Refuse an argument that a component does not have."""
    if unknown := sorted(set(given) - set(known)):
        takes = ", ".join(sorted(set(known) - {"type"})) or "no arguments"
        raise ConfigError(f"{key}: {given['type']} takes no {unknown[0]}. It takes: {takes}.")


def _known_type(name: Any, stage: str, key: str) -> str:
    module, base = _MODULES[stage]
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, base)]
    known = sorted({kind.__name__ for kind in classes if kind is not base} | ({"NFC"} if stage == "decoder" else set()))
    if name in known:
        return str(name)
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
    raise ConfigError(f"{key}: there is no {stage} of type {name}. {hint}")


def _sequence(given: dict[str, Any], stage: str, key: str, special: list[str]) -> dict[str, Any]:
    items = _SEQUENCE_ITEMS[stage]
    if not isinstance(given.get(items), list):
        raise ConfigError(f"{key}: a Sequence needs the list {items}. Write {{type: Sequence, {items}: [...]}}.")
    _take_only(given, {"type": None, items: None}, key)
    return given | {items: [_full(item, stage, f"{key}.{items}[{i}]", special) for i, item in enumerate(given[items])]}


def _defaults(stage: str, name: str) -> dict[str, Any]:
    """The type and arguments of a component as tokenizer.json writes them, each with its default."""
    if name in _ARGUMENTS:
        return {"type": name} | _ARGUMENTS[name]
    state: dict[str, Any] = json.loads(getattr(_MODULES[stage][0], name)().__getstate__())
    return state


# Special tokens by name


def _with_ends(full: dict[str, Any], key: str, special: list[str]) -> dict[str, Any]:
    """BERT's and RoBERTa's processing: {sep: "</s>"} as tokenizer.json's {sep: ["</s>", 2]}."""
    ends = {end: full[end] for end in ("sep", "cls") if isinstance(full[end], str)}
    return full | {end: [token, _id(token, f"{key}.{end}", special)] for end, token in ends.items()}


def _template(full: dict[str, Any], key: str, special: list[str]) -> dict[str, Any]:
    """A template as a line of text ("<s> $A </s>"), as the library parses it; or all of tokenizer.json's long form."""
    if full["special_tokens"]:
        return full
    single = str(full["single"])
    second = " ".join(word.rpartition(":")[0] or word for word in single.split()).replace("$A", "$B")
    pair = str(full["pair"] or f"{single} " + " ".join(f"{word}:1" for word in second.split()))
    words = dict.fromkeys(word.rpartition(":")[0] or word for word in f"{single} {pair}".split())
    named = [(word, _id(word, key, special)) for word in words if not word.startswith("$")]
    try:
        made = processors.TemplateProcessing(single=single, pair=pair, special_tokens=named)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}. {_TEMPLATE_HINT}") from None
    if single.count("$A") != 1 or pair.count("$A") != 1 or pair.count("$B") != 1:
        raise ConfigError(f"{key}: single={single!r} must hold $A once, and pair={pair!r} $A and $B. {_TEMPLATE_HINT}")
    state: dict[str, Any] = json.loads(made.__getstate__())
    return state


def _id(token: str, key: str, special: list[str]) -> int:
    """A special token's id: the trainers of the library give them the first ids, in order."""
    if token in special:
        return special.index(token)
    raise ConfigError(f"{key} names {token}, which tokenizer.special_tokens={special} lacks. Add it there.")


@cache
def _recomposing() -> dict[str, Any]:
    """A decoder that writes text in NFC, which the library lacks: a rule for each character that NFD takes apart.

    Longer ones first, so that a syllable's last letter is not left over. What remains apart (marks that do not stand
    side by side) is the same text to Unicode. 12,000 rules cost 1 MB and 20 ms per 1,000 characters.
    """
    parts = {chr(code): normalize("NFD", chr(code)) for code in range(0x110000) if not 0xD800 <= code < 0xE000}
    composed = [(apart, char) for char, apart in parts.items() if apart != char and normalize("NFC", apart) == char]
    rules: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": apart}, "content": char} for apart, char in composed
    ]
    rules.sort(key=lambda rule: -len(rule["pattern"]["String"]))
    return {"type": "Sequence", "decoders": [{"type": "Fuse"}, *rules]}
