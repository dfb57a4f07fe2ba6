"""The folder of a tokenizer that is there already -> that tokenizer, the roles of its special tokens, and their digest.

And such a folder as the tokenizers of our own runs have it, with a chat template where there is one.

Two tokenizers are the same where they give the same text the same ids: what frames, truncates or pads does not count.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llm.config.tokenizer import TokenizerConfig
from llm.errors import ConfigError, DamagedError
from llm.run.files import digest_of, whole_folder, write_text
from llm.run.models import TOKENIZER, opening, read_json
from llm.tokenizer.folder import DIGEST_FILE, ROLES, as_transformers, digest

_OF_A_CALL = ("truncation", "padding")  # of how it was last called: they would cut documents
_OF_IDS = ("normalizer", "pre_tokenizer", "model")


def read_pretrained(folder: Path, config: TokenizerConfig) -> tuple[Tokenizer, dict[str, str]]:
    """(the tokenizer in a folder, the token of each role, bos and pad being eos where it has none).

    Raises:
        ConfigError: it is no tokenizer, has no end of a text, or lacks a token that the config names.
        DamagedError: it cannot be read.
    """
    key, named = f"tokenizer.path={config.path}", {role: getattr(config, role) for role in ROLES}
    tokenizer, roles = _read(folder, key, named)
    if max(tokenizer.get_vocab().values()) >= tokenizer.get_vocab_size():
        raise _not_usable(key, "its ids have gaps")
    return tokenizer, roles


def require_chat(folder: Path, *, template: str | None = None) -> None:
    """Refuse, before any work, a base whose tokenizer cannot say a conversation; a `template` is in place of its own.

    Raises:
        ConfigError: it has no chat template, or no token that ends a text.
        DamagedError: the tokenizer cannot be read.
    """
    _read(folder, key := f"base={folder}", {})
    if not (template or as_transformers(folder).chat_template):
        raise ConfigError(f"{key}: its tokenizer has no chat template. Choose one, as chat_template=chatml.")


def adopt(source: Path, target: Path, *, key: str, template: str | None = None) -> Path:
    """`target`, with the tokenizer of `source` as our own runs have it, and `template` as its own where it is given.

    What ends a text also pads and begins one, where nothing else does. Padding is never trained on: its labels are left
    out of the loss by their place, not by their token. `key` is how the user named the folder.

    Raises:
        ConfigError: it is no tokenizer, or has no end of a text.
        DamagedError: it cannot be read.
    """
    tokenizer, roles = _read(source, key, {})
    chat = as_transformers(source)
    chat.chat_template = template or chat.chat_template
    for role, token in roles.items():
        setattr(chat, role, token)
    with whole_folder(target) as folder:
        chat.save_pretrained(folder)
        write_text(folder / TOKENIZER, tokenizer.to_str(pretty=True))  # transformers may have added to it
        write_text(folder / DIGEST_FILE, digest(folder) + "\n")
    return target


def digest_of_pretrained(folder: Path, config: TokenizerConfig) -> str:
    """SHA-256 of what is taken from the folder: the tokenizer and the roles of its special tokens."""
    tokenizer, roles = read_pretrained(folder, config)
    return digest_of([json.loads(tokenizer.to_str()), roles])


def gives_same_ids(folder: Path, other: Path) -> bool:
    """Whether the tokenizers of two folders make the same ids of any text."""
    with opening(folder, as_a="tokenizer"):
        return _of_ids(_state(folder)) == _of_ids(_state(other))


def tokens_of(folder: Path) -> dict[str, int]:
    """Every token and its id, of the tokenizer in a folder."""
    return dict(_tokenizer(folder, _state(folder)).get_vocab())


def _read(folder: Path, key: str, named: Mapping[str, str | None]) -> tuple[Tokenizer, dict[str, str]]:
    """(the tokenizer in a folder, the token of each role: as `named`, else as its files say)."""
    state = _state(folder)
    tokenizer = _tokenizer(folder, state)
    return tokenizer, _roles(folder, key, named, tokenizer, state)


def _tokenizer(folder: Path, state: dict[str, Any]) -> Tokenizer:
    with opening(folder, as_a="tokenizer"):
        return Tokenizer.from_str(json.dumps(state))


def _of_ids(state: dict[str, Any]) -> Any:
    added = {token["content"]: token["id"] for token in state.get("added_tokens") or []}
    return {key: state.get(key) for key in _OF_IDS} | {"added": added}


def _state(folder: Path) -> dict[str, Any]:
    path = folder / TOKENIZER
    state = read_json(path)
    if "model" not in state:
        raise ConfigError(f"{path} is no tokenizer of the tokenizers library. Give a folder that has one.")
    return state | dict.fromkeys(_OF_A_CALL)


def _roles(
    folder: Path, key: str, named: Mapping[str, str | None], tokenizer: Tokenizer, state: dict[str, Any]
) -> dict[str, str]:
    added = {token["content"] for token in state.get("added_tokens") or []}
    way = "Set tokenizer.{}." if named else "Name one in its tokenizer_config.json as {}."
    found: dict[str, str] = {}
    for role in ("eos_token", "bos_token", "pad_token"):
        token = named.get(role) or _role_of_folder(folder, role, tokenizer) or found.get("eos_token")
        if token is None:
            raise _not_usable(key, "it names no eos_token, which ends a text", way.format(role))
        if token not in added:
            raise _not_usable(key, f"its {role} {token} is none of its special tokens", way.format(role))
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
        return read_json(path)
    except DamagedError:
        return {}  # transformers can do without, and so can this: the roles are then asked for


def _not_usable(key: str, reason: str, fix: str = "Choose another.") -> ConfigError:
    return ConfigError(f"{key}: {reason}. {fix}")
