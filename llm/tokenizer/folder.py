"""A trained tokenizer <-> a folder that transformers' AutoTokenizer loads too."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from llm.config.tokenizer import TokenizerConfig
from llm.errors import DamagedError, first_line, is_panic
from llm.run.files import digest_of, naming, write_text
from llm.run.models import opening
from llm.tokenizer.training import unknown_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DIGEST_FILE = "tokenizer.sha256"
ROLES = ("bos_token", "eos_token", "pad_token")
_PROBE = "가나다 라마바 <0x41>\nabc 😀"  # what a damaged model stumbles over, it should when it is loaded

# Plain words mark the turns, and the end of a turn is the end of a document, so that every tokenizer can say it and a
# pretrained model already knows its tokens. A prompt ends before a space, where no tokenizer here joins pieces.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- '지시: ' + message['content'] + '\n' -}}
{%- elif message['role'] == 'user' -%}{{- '질문: ' + message['content'] + '\n답변:' -}}
{%- elif message['role'] == 'assistant' -%}
{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}{{- raise_exception('the role ' + message['role'] + ' is not system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True)
class Special:
    """Token ids with a meaning of their own."""

    bos_id: int
    eos_id: int
    pad_id: int
    tokens: tuple[str, ...]  # every special token's text: none of it may come from a user


def save(tokenizer: Tokenizer, config: TokenizerConfig, folder: Path) -> None:
    """Write tokenizer.json, its digest, and what transformers wants beside it: roles and the chat template."""
    first = config.special_tokens[0]
    end = config.eos_token or first
    roles = {"bos_token": config.bos_token or first, "eos_token": end, "pad_token": config.pad_token or end}
    save_with_roles(tokenizer, roles, folder)


def save_with_roles(tokenizer: Tokenizer, roles: dict[str, str], folder: Path) -> None:
    """The same for any tokenizer, whose special tokens have these roles."""
    from transformers import PreTrainedTokenizerFast  # 2.6 s to import

    unknown = unknown_token(tokenizer)
    if unknown is not None and tokenizer.token_to_id(unknown) is not None:
        roles = roles | {"unk_token": unknown}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    wrapped.chat_template = CHAT_TEMPLATE
    path, content = folder / "tokenizer.json", tokenizer.to_str(pretty=True)
    with naming(path, num_bytes=len(content.encode())):
        wrapped.save_pretrained(folder)
    write_text(path, content)  # transformers had added a post-processor
    write_text(folder / DIGEST_FILE, digest(folder) + "\n")


def load(folder: Path) -> Tokenizer:
    """The tokenizer for raw text: a special token's name in it is ordinary text, and nothing is added.

    Raises:
        DamagedError: its files are not what was saved, or are no tokenizer.
    """
    path = _checked(folder)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(_read(path)))  # what the digest was taken of, each key once
        tokenizer.encode_special_tokens = True
        tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False).ids)
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):  # the library's own errors are bare
            raise
        raise _damaged(path, error) from None
    return tokenizer


def load_chat(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer as transformers sees it, with its chat template.

    Raises:
        DamagedError: its files are not what was saved, or are no tokenizer.
    """
    _checked(folder)
    chat = as_transformers(folder)
    chat.verbose = False  # of texts longer than a model reads, which here are cut, left out or refused, and counted
    return chat


def as_transformers(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer with its settings beside it, whosever it is; no code that it names is run.

    Raises:
        DamagedError: transformers cannot use it, or it cannot be used on text.
    """
    from transformers import PreTrainedTokenizerFast

    with opening(folder, as_a="tokenizer"):
        chat: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        chat.init_kwargs.pop("auto_map", None)  # which would be saved with it, and its code would not
        chat.decode(chat(_PROBE, add_special_tokens=False)["input_ids"])
    return chat


def special(folder: Path) -> Special:
    """The special tokens of a saved tokenizer."""
    config, state = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
    try:
        added = {token["content"]: token["id"] for token in state["added_tokens"]}
        bos, eos, pad = (added[config[role]] for role in ROLES)
    except (KeyError, TypeError) as error:
        raise _damaged(folder / "tokenizer_config.json", error) from None
    return Special(bos_id=bos, eos_id=eos, pad_id=pad, tokens=tuple(added))


def digest(folder: Path) -> str:
    """SHA-256 of tokenizer.json in canonical form and of the roles of its special tokens.

    Two trainings that gave the same tokenizer have one digest, however their files are laid out.
    """
    path = folder / "tokenizer.json"
    config = _read(folder / "tokenizer_config.json")
    try:
        return digest_of([_read(path), [config.get(role) for role in ROLES]])
    except DamagedError:
        raise
    except ValueError as error:  # no number, half a character
        raise _damaged(path, error) from None


def _checked(folder: Path) -> Path:
    """The tokenizer.json of a folder, after checking it against the digest that was saved beside it, if one was."""
    path, recorded = folder / "tokenizer.json", folder / DIGEST_FILE
    found = digest(folder)
    if recorded.exists() and recorded.read_text(encoding="utf-8", errors="replace").strip() != found:
        raise _damaged(path, ValueError(f"{recorded.name} beside it says otherwise"))
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(value, dict):
        raise _damaged(path, ValueError("no JSON object"))
    return value


def _damaged(path: Path, error: BaseException) -> DamagedError:
    reason = f"{first_line(error)} is missing" if isinstance(error, KeyError) else first_line(error)
    return DamagedError(f"{path} cannot be read ({reason}). Put it back as it was, or have its run made again.")
