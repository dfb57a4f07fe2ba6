"""The jobs of a sweep -> which tokenizers can be cut from the largest of their kind, so that it alone is trained."""

import json
from collections.abc import Sequence
from typing import Any

from llm.config.fields import identity_settings
from llm.config.stages import StageConfig, TokenizerStage


def ladder_overrides(configs: Sequence[StageConfig]) -> list[list[str]]:
    """For each job, what to add to its overrides: tokenizer.ladder where a larger one differs in nothing but size."""
    kinds = [_kind(config) for config in configs]
    largest: dict[str, int] = {}
    for kind, config in zip(kinds, configs, strict=True):
        if kind is not None:
            largest[kind] = max(largest.get(kind, 0), _tokenizer(config).vocab_size)
    return [
        [f"tokenizer.ladder={largest[kind]}"] if kind and _tokenizer(config).vocab_size < largest[kind] else []
        for kind, config in zip(kinds, configs, strict=True)
    ]


def _kind(config: StageConfig) -> str | None:
    """All that determines a job's tokenizer but its size; None if it trains none, or the user said what to cut from."""
    tokenizer = _tokenizer(config)
    if tokenizer is None or tokenizer.ladder is not None:
        return None
    data: Any = config.data  # type: ignore[attr-defined]  # every stage with a tokenizer has data
    own = TokenizerStage(stage="tokenizer", outputs=config.outputs, tokenizer=tokenizer, data=data)
    settings = identity_settings(own)
    settings["tokenizer"]["vocab_size"] = None
    text = identity_settings(data, "documents")
    paths = [data.path, *(data.parts[name].path for name in sorted(data.parts or ()))]
    return json.dumps([settings, text, paths, config.outputs], sort_keys=True)


def _tokenizer(config: StageConfig) -> Any:
    return getattr(config, "tokenizer", None)
