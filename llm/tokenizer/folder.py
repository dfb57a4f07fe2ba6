"""A tokenizer <-> a folder that transformers' AutoTokenizer loads too, ours or one that was there already.

Ours has a digest beside it, by which a damaged one is known. Any other may lack that, and whatever else its tokenizer
can be used without.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from llm.config.tokenizer import TokenizerConfig
from llm.errors import ConfigError, DamagedError, first_line, is_panic
from llm.run.files import digest_of, naming, whole_folder, write_text
from llm.run.models import TOKENIZER, opening, read_json
from llm.tokenizer.chat import PLAIN, end_of_answers
from llm.tokenizer.training import byte_tokens, unknown_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DIGEST_FILE = "tokenizer.sha256"
SETTINGS_FILE = "tokenizer_config.json"
ROLES = ("bos_token", "eos_token", "pad_token")
_BYTES = frozenset(byte_tokens())
_PROBE = "가나다 라마바 <0x41>\nabc 😀"  # what a damaged model stumbles over, it should when it is loaded
_NEEDED = re.compile(r"<\|[^|<>\s'\"{}]{1,40}\|>")  # the form of control tokens that a template may bring


@dataclass(frozen=True)
class Special:
    """Token ids with a meaning of their own."""

    bos_id: int
    eos_id: int
    pad_id: int
    tokens: tuple[str, ...]  # every special token's text: none of it may come from a user


def save(tokenizer: Tokenizer, roles: dict[str, str], folder: Path) -> None:
    """Write tokenizer.json, its digest, and what transformers wants beside it: roles and the chat template."""
    from transformers import PreTrainedTokenizerFast  # 2.6 s to import

    unknown = unknown_token(tokenizer)
    if unknown is not None and tokenizer.token_to_id(unknown) is not None:
        roles = roles | {"unk_token": unknown}
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    chat.chat_template = PLAIN
    _write(chat, tokenizer, folder)


def _write(chat: "PreTrainedTokenizerFast", tokenizer: Tokenizer, folder: Path) -> None:
    """What transformers writes, then `tokenizer` itself, to which it may have added, and its digest."""
    path, content = folder / TOKENIZER, tokenizer.to_str(pretty=True)
    with naming(path):
        chat.save_pretrained(folder)
    write_text(path, content)
    write_text(folder / DIGEST_FILE, digest(folder) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer for raw text: a special token's name in it is ordinary text, and nothing is added.

    Raises:
        DamagedError: its files are not what was saved, or are no tokenizer.
    """
    tokenizer = _tokenizer(folder)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_chat(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer as transformers sees it, with the chat template beside it; no code that it names is run.

    Raises:
        DamagedError: its files are not what was saved, or transformers cannot use them.
    """
    from transformers import PreTrainedTokenizerFast

    _tokenizer(folder)
    with opening(folder, as_a="tokenizer"):
        chat: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        chat.init_kwargs.pop("auto_map", None)  # which would be saved with it, and its code would not
    chat.verbose = False  # of texts longer than a model reads, which here are cut, left out or refused, and counted
    return chat


def save_with_template(base: Path, template: str, target: Path, *, name: str) -> list[int]:
    """Write the tokenizer of `base` with this template and the tokens that it needs to `target`; give their ids.

    Tokens of the form <|...|> in the template that the tokenizer lacks are added as special ones; the token that ends
    an answer becomes the tokenizer's eos, for it is where a model stops.

    Raises:
        ConfigError: the template cannot be rendered, trains nothing, or an answer has no end token in it.
    """
    from transformers import AddedToken

    chat = load_chat(base)
    known = chat.get_vocab()
    needed = [token for token in dict.fromkeys(_NEEDED.findall(template)) if token not in known]
    chat.add_tokens([AddedToken(token, special=True, normalized=False) for token in needed])
    chat.chat_template = template
    chat.eos_token = end_of_answers(chat, name)
    chat.save_pretrained(target)
    ids = [int(chat.convert_tokens_to_ids(token)) for token in needed]
    state = read_json(base / TOKENIZER)
    as_text = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"] += [{"id": id, "content": token, **as_text} for id, token in zip(ids, needed, strict=True)]
    write_text(target / TOKENIZER, json.dumps(state, ensure_ascii=False, indent=2))
    write_text(target / DIGEST_FILE, digest(target) + "\n")
    return sorted(ids)


def read_special(folder: Path) -> Special:
    """The special tokens of a saved tokenizer."""
    config, state = read_json(folder / SETTINGS_FILE), read_json(folder / TOKENIZER)
    try:
        added = {token["content"]: token["id"] for token in state["added_tokens"]}
        bos, eos, pad = (added[config[role]] for role in ROLES)
    except (KeyError, TypeError) as error:
        raise _damaged(folder / SETTINGS_FILE, error) from None
    return Special(bos_id=bos, eos_id=eos, pad_id=pad, tokens=tuple(added))


def digest(folder: Path) -> str:
    """SHA-256 of tokenizer.json in canonical form and of the roles of its special tokens.

    Two trainings that gave the same tokenizer have one digest, however their files are laid out.
    """
    state, config = read_json(folder / TOKENIZER), read_json(folder / SETTINGS_FILE)
    try:
        return digest_of([state, [config.get(role) for role in ROLES]])
    except ValueError as error:  # no number, half a character
        raise _damaged(folder / TOKENIZER, error) from None


# Of any origin


def read_pretrained(folder: Path, config: TokenizerConfig) -> tuple[Tokenizer, dict[str, str]]:
    """(the tokenizer in a folder, the token of each role, bos and pad being eos where it has none).

    Raises:
        ConfigError: it is no tokenizer, has no end of a text, or lacks a token that the config names.
        DamagedError: it cannot be read.
    """
    key = f"tokenizer.path={config.path}"
    tokenizer, roles = _with_roles(folder, key, config)
    if max(tokenizer.get_vocab().values()) >= tokenizer.get_vocab_size():
        raise ConfigError(f"{key}: its ids have gaps. Choose another.")
    return tokenizer, roles


def require_chat(folder: Path, *, template: str | None = None) -> None:
    """Refuse, before any work, a base whose tokenizer cannot say a conversation; a `template` is in place of its own.

    Raises:
        ConfigError: it has no chat template, or no token that ends a text.
        DamagedError: the tokenizer cannot be read.
    """
    _with_roles(folder, key := f"base={folder}")
    if not (template or load_chat(folder).chat_template):
        raise ConfigError(f"{key}: its tokenizer has no chat template. Choose one, as chat_template=chatml.")


def convert_tokenizer(source: Path, target: Path, *, key: str) -> Path:
    """`target`, with the tokenizer of `source` as our own runs have it.

    What ends a text also pads and begins one, where nothing else does. Padding is never trained on: its labels are left
    out of the loss by their place, not by their token. `key` is how the user named the folder.

    Raises:
        ConfigError: it is no tokenizer, or has no end of a text.
        DamagedError: it cannot be read.
    """
    tokenizer, roles = _with_roles(source, key)
    chat = load_chat(source)
    for role, token in roles.items():
        setattr(chat, role, token)
    with whole_folder(target) as folder:
        _write(chat, tokenizer, folder)
    return target


def gives_same_ids(folder: Path, other: Path) -> bool:
    """Whether the tokenizers of two folders make the same ids of any text: what frames, cuts or pads does not count."""
    states = [read_json(each / TOKENIZER) for each in (folder, other)]
    with opening(folder, as_a="tokenizer"):
        added = [{each["content"]: each["id"] for each in state.get("added_tokens") or []} for state in states]
    parts = [[state.get(part) for part in ("normalizer", "pre_tokenizer", "model")] for state in states]
    return added[0] == added[1] and parts[0] == parts[1]


def tokens_of(folder: Path) -> dict[str, int]:
    """Every token and its id, of the tokenizer in a folder."""
    return dict(_tokenizer(folder).get_vocab())


def pieces_of(folder: Path, tokens: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """(id, length) of the pieces that the tokenizer in a folder makes of each token, written as its vocabulary does.

    A token that it cannot spell is left out.
    """
    model: Any = _tokenizer(folder).model
    unknown, found = getattr(model, "unk_token", None), {}
    for token in tokens:
        pieces = model.tokenize(token)
        spelled = "".join(piece.value for piece in pieces)
        if spelled == token or (getattr(model, "byte_fallback", False) and unknown not in [p.value for p in pieces]):
            found[token] = [(p.id, 1 if p.value in _BYTES else len(p.value)) for p in pieces]
    return found


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, without what would cut or pad a text, once it is known to be what it was and to work.

    Its file must be what the digest beside it, where there is one, was taken of.
    """
    path, recorded = folder / TOKENIZER, folder / DIGEST_FILE
    state = read_json(path) | {"truncation": None, "padding": None}
    if recorded.exists() and recorded.read_text(encoding="utf-8", errors="replace").strip() != digest(folder):
        raise _damaged(path, ValueError(f"{recorded.name} beside it says otherwise"))
    try:
        with _without_panic_text():
            tokenizer = Tokenizer.from_str(json.dumps(state))  # what a digest is taken of, each key once
            tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False).ids)
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):  # the library's own errors are bare
            raise
        raise _damaged(path, error) from None
    return tokenizer


@contextmanager
def _without_panic_text() -> Iterator[None]:
    """Keep off the terminal what Rust prints when it panics, which ends in one line of ours."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _with_roles(folder: Path, key: str, config: TokenizerConfig | None = None) -> tuple[Tokenizer, dict[str, str]]:
    """(the tokenizer in a folder, the token of each role: as the config names it, else as its files say)."""
    if "model" not in read_json(path := folder / TOKENIZER):
        raise ConfigError(f"{path} is no tokenizer of the tokenizers library. Give a folder that has one.")
    tokenizer = _tokenizer(folder)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    way = "Set tokenizer.{}." if config else f"Name one in its {SETTINGS_FILE} as {{}}."
    found: dict[str, str] = {}
    for role in ("eos_token", "bos_token", "pad_token"):
        named = getattr(config, role) if config else None
        token = named or _role_of_folder(folder, role, tokenizer) or found.get("eos_token")
        if token is None:
            raise ConfigError(f"{key}: it names no eos_token, which ends a text. {way.format(role)}")
        if token not in added:
            raise ConfigError(f"{key}: its {role} {token} is none of its special tokens. {way.format(role)}")
        found[role] = token
    return tokenizer, {role: found[role] for role in ROLES}


def _role_of_folder(folder: Path, role: str, tokenizer: Tokenizer) -> str | None:
    """What the files beside tokenizer.json say, the likeliest first."""
    for name in (SETTINGS_FILE, "special_tokens_map.json"):
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


def _damaged(path: Path, error: BaseException) -> DamagedError:
    reason = f"{first_line(error)} is missing" if isinstance(error, KeyError) else first_line(error)
    return DamagedError(f"{path} cannot be read ({reason}). Put it back as it was, or have its run made again.")
