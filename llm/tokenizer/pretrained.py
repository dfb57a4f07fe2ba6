"""The folder of a tokenizer that is there already -> that tokenizer, the roles of its special tokens, and their digest.

Two tokenizers are the same where they give the same text the same ids: what frames, truncates or pads does not count.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llm.config import TokenizerConfig
from llm.errors import ConfigError
from llm.run import digest_of
from llm.tokenizer.folder import ROLES
from llm.tokenizer.training import is_panic

_OF_A_CALL = ("truncation", "padding")  # of how it was last called: they would cut documents
_OF_IDS = ("normalizer", "pre_tokenizer", "model")


def read_pretrained(folder: Path, config: TokenizerConfig) -> tuple[Tokenizer, dict[str, str]]:
    """(the tokenizer in a folder, the token of each role, bos and pad being eos where it has none).

    Raises:
        ConfigError: it is no tokenizer, has no end of a text, or lacks a token that the config names.
    """
    state = _state(folder)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(state))
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):  # the library's own errors are bare
            raise
        raise _not_usable(config, f"its tokenizer.json cannot be read ({_first_line(error)})") from None
    if max(tokenizer.get_vocab().values()) >= tokenizer.get_vocab_size():
        raise _not_usable(config, "its ids have gaps")
    return tokenizer, _roles(folder, config, tokenizer, state)


def digest_of_pretrained(folder: Path, config: TokenizerConfig) -> str:
    """SHA-256 of what is taken from the folder: the tokenizer and the roles of its special tokens."""
    tokenizer, roles = read_pretrained(folder, config)
    return digest_of([json.loads(tokenizer.to_str()), roles])


def gives_same_ids(folder: Path, other: Path) -> bool:
    """Whether the tokenizers of two folders make the same ids of any text."""
    return _of_ids(_state(folder)) == _of_ids(_state(other))


def tokens_of(folder: Path) -> dict[str, int]:
    """Every token and its id, of the tokenizer in a folder."""
    return dict(Tokenizer.from_str(json.dumps(_state(folder))).get_vocab())


def _of_ids(state: dict[str, Any]) -> Any:
    added = {token["content"]: token["id"] for token in state.get("added_tokens") or []}
    return {key: state.get(key) for key in _OF_IDS} | {"added": added}


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({_first_line(error)}). Give a folder whose tokenizer can.") from None
    if not isinstance(state, dict) or "model" not in state:
        raise ConfigError(f"{path} is no tokenizer of the tokenizers library. Give a folder that has one.")
    return state | dict.fromkeys(_OF_A_CALL)


def _roles(folder: Path, config: TokenizerConfig, tokenizer: Tokenizer, state: dict[str, Any]) -> dict[str, str]:
    added = {token["content"] for token in state.get("added_tokens") or []}
    found: dict[str, str] = {}
    for role in ("eos_token", "bos_token", "pad_token"):
        typed: str | None = getattr(config, role)
        token = typed or _role_of_folder(folder, role, tokenizer) or found.get("eos_token")
        if token is None:
            raise _not_usable(config, "it names no eos_token, which ends a document", "Set tokenizer.eos_token to one.")
        if token not in added:
            raise _not_usable(config, f"its {role} {token} is none of its special tokens", f"Set tokenizer.{role}.")
        found[role] = token
    return {role: found[role] for role in ROLES}


def _role_of_folder(folder: Path, role: str, tokenizer: Tokenizer) -> str | None:
    """What the files beside tokenizer.json say, the likeliest first."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = _json(folder / name).get(role)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            return value
    number = _json(folder / "config.json").get(f"{role.removesuffix('_token')}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return tokenizer.id_to_token(number) if isinstance(number, int) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # transformers can do without, and so can this: the roles are then asked for
    return value if isinstance(value, dict) else {}


def _not_usable(config: TokenizerConfig, reason: str, fix: str = "Choose another.") -> ConfigError:
    return ConfigError(f"tokenizer.path={config.path}: {reason}. {fix}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
