"""The tokenizer of a model that was not made here -> a folder as the tokenizers of our own runs have it, checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from llm.errors import ConfigError
from llm.run import whole_folder, write_text
from llm.tokenizer.folder import DIGEST_FILE, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def require_chat(folder: Path, *, template: str | None = None) -> None:
    """Refuse, before any work, a folder whose tokenizer cannot say a conversation; a `template` is in place of its own.

    Raises:
        ConfigError: it has no tokenizer, no chat template, or no token that ends a text.
    """
    _open(folder, template)


def adopt(source: Path, target: Path, *, template: str | None = None) -> Path:
    """`target`, with the tokenizer of `source`, and `template` as its own where it is given.

    What ends a text also pads and begins one, where nothing else does.

    Padding is never trained on: its labels are left out of the loss by their place, not by their token.
    """
    chat = _open(source, template)
    chat.chat_template = template or chat.chat_template
    if chat.pad_token is None:
        chat.pad_token = chat.eos_token
    if chat.bos_token is None:
        chat.bos_token = chat.eos_token
    with whole_folder(target) as folder:
        chat.save_pretrained(folder)
        write_text(folder / DIGEST_FILE, digest(folder) + "\n")
    return target


def _open(folder: Path, template: str | None) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer  # takes seconds

    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"base={folder} has no tokenizer.json. Put the model's tokenizer beside its weights.")
    try:
        chat: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
    except Exception as error:  # the library's own are bare
        if isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"base={folder}: its tokenizer cannot be read ({reason}). Put a whole one there.") from None
    if not (chat.chat_template or template):
        raise ConfigError(f"base={folder}: its tokenizer has no chat template. Choose one, as chat_template=chatml.")
    if chat.eos_token is None:
        raise ConfigError(f"base={folder}: its tokenizer has no eos_token, which ends an answer. Name one.")
    return chat
