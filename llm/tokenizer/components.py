"""The five stages of a tokenizer, given as in tokenizer.json or by bare type name -> an untrained Tokenizer."""

import json
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llm.config import TokenizerConfig
from llm.errors import ConfigError

_MODULES: dict[str, ModuleType] = {
    "normalizer": normalizers,
    "pre_tokenizer": pre_tokenizers,
    "model": models,
    "post_processor": processors,
    "decoder": decoders,
}
_SEQUENCE_ITEMS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
_NEEDED = {  # what a component that has no defaults must be given
    "Replace": "pattern, content",
    "Split": "pattern, behavior, invert",
    "CharDelimiterSplit": "delimiter",
    "Precompiled": "precompiled_charsmap",
    "BertProcessing": "sep, cls",
    "RobertaProcessing": "sep, cls, trim_offsets, add_prefix_space",
}
_NOT_COMPONENTS = {"DecodeStream", "Decoder", "Model", "NORMALIZERS", "Normalizer", "PostProcessor", "PreTokenizer"}


def build(config: TokenizerConfig) -> Tokenizer:
    """An untrained tokenizer with the stages of `config`; what a stage leaves out has the library's default.

    Raises:
        ConfigError: a stage that the library does not have, or arguments that it does not take.
    """
    stages = {stage: _full(getattr(config, stage), stage, f"tokenizer.{stage}") for stage in _MODULES}
    frame: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    for stage, value in stages.items():  # one at a time, so that an error names its stage
        alone = dict.fromkeys(_MODULES) | {"model": _full("BPE", "model", "")} | {stage: value}
        try:
            Tokenizer.from_str(json.dumps(frame | alone))
        except Exception as error:  # the library raises bare Exception
            reason = str(error).split(" at line")[0]
            raise ConfigError(
                f"tokenizer.{stage}={getattr(config, stage)} is not what tokenizers takes: {reason}. "
                "Write it as tokenizer.json does."
            ) from None
    return Tokenizer.from_str(json.dumps(frame | stages))


def _full(value: Any, stage: str, key: str) -> dict[str, Any] | None:
    """A stage as tokenizer.json writes it, with the arguments that were left out."""
    if value is None:
        return None
    given = dict(value) if isinstance(value, dict) else {"type": value}
    name = _known_type(given.get("type"), stage, key)
    if name == "Sequence":
        return _sequence(given, stage, key)
    if missing := [argument for argument in _NEEDED.get(name, "").split(", ") if argument and argument not in given]:
        raise ConfigError(f"{key}: {name} needs {missing[0]}. Give it {_NEEDED[name]}.")
    defaults = _defaults(stage, name)
    if defaults is not None and (unknown := sorted(set(given) - set(defaults))):
        raise ConfigError(f"{key}: {name} takes no {unknown[0]}. It takes: {_arguments(defaults)}.")
    return (defaults or {}) | given


def _known_type(name: Any, stage: str, key: str) -> str:
    known = sorted(n for n in vars(_MODULES[stage]) if n[0].isupper() and n not in _NOT_COMPONENTS)
    if name in known:
        return str(name)
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
    raise ConfigError(f"{key}: there is no {stage} of type {name}. {hint}")


def _sequence(given: dict[str, Any], stage: str, key: str) -> dict[str, Any]:
    items = _SEQUENCE_ITEMS[stage]
    if not isinstance(given.get(items), list):
        raise ConfigError(f"{key}: a Sequence needs the list {items}. Write {{type: Sequence, {items}: [...]}}.")
    return given | {items: [_full(item, stage, f"{key}.{items}[{i}]") for i, item in enumerate(given[items])]}


def _arguments(defaults: dict[str, Any]) -> str:
    return ", ".join(sorted(set(defaults) - {"type"})) or "no arguments"


def _defaults(stage: str, name: str) -> dict[str, Any] | None:
    """The state of a component that is made without arguments; None for one that cannot be."""
    try:
        state: dict[str, Any] = json.loads(getattr(_MODULES[stage], name)().__getstate__())
    except TypeError:
        return None
    return state
