"""A trained tokenizer <-> a folder that transformers' AutoTokenizer loads too."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from llm.config import TokenizerConfig
from llm.errors import DamagedError
from llm.run import digest_of, write_text
from llm.tokenizer.training import unknown_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    """Write tokenizer.json and what transformers wants beside it: the special tokens' roles and the chat template."""
    from transformers import PreTrainedTokenizerFast  # 2.6 s to import

    end = config.special_tokens[0]
    unknown = unknown_token(tokenizer)
    roles = {"bos_token": end, "eos_token": end, "pad_token": config.pad_token or end}
    if unknown is not None and tokenizer.token_to_id(unknown) is not None:
        roles["unk_token"] = unknown
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))  # transformers had added a post-processor


def load(folder: Path) -> Tokenizer:
    """The tokenizer for raw text: a special token's name in it is ordinary text, and nothing is added."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise DamagedError(
            f"{folder / 'tokenizer.json'} cannot be read ({error}). Remove its run's folder to make it again."
        ) from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_chat(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer as transformers sees it, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def special(folder: Path) -> Special:
    """The special tokens of a saved tokenizer."""
    config, state = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
    try:
        added = {token["content"]: token["id"] for token in state["added_tokens"]}
        bos, eos, pad = (added[config[role]] for role in ("bos_token", "eos_token", "pad_token"))
    except KeyError as error:
        raise DamagedError(
            f"{folder / 'tokenizer_config.json'} cannot be read: {error} is missing. Remove its run's folder to make "
            "it again."
        ) from None
    return Special(bos_id=bos, eos_id=eos, pad_id=pad, tokens=tuple(added))


def digest(folder: Path) -> str:
    """SHA-256 of tokenizer.json in canonical form: two trainings that gave the same tokenizer have one digest."""
    return digest_of(_read(folder / "tokenizer.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({error}). Remove its run's folder to make it again.") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path} cannot be read (no JSON object). Remove its run's folder to make it again.")
    return value
