"""A chat template for a tokenizer: chosen, checked by what it renders, saved with the tokens that it needs.

A template is one of TEMPLATES, by name, or a file of Jinja.
"""

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from llm.errors import ConfigError
from llm.run.files import write_text
from llm.tokenizer.folder import DIGEST_FILE, digest, load_chat
from llm.tokenizer.rendering import Renderer, TemplateError, answers_of
from llm.tokenizer.templates import TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
MAX_TEMPLATE = 2**20  # characters
WAY = "Choose one: chat_template=chatml, plain or blog, or a .jinja file."
_NEEDED = re.compile(r"<\|[^|<>\s'\"{}]{1,40}\|>")  # the form of control tokens that a template may bring
_SAID = ("물음", "대답", "또 물음", "또 대답")
_ROLES = (("user", "assistant"), ("user", "assistant", "user", "assistant"), ("system", "user", "assistant"))
_PROBES = [[{"role": role, "content": text} for role, text in zip(roles, _SAID, strict=False)] for roles in _ROLES]


def read_template(choice: str) -> str:
    """The text of a template by name, or of a file.

    Raises:
        ConfigError: there is no such choice, or the file is none that could be trained with.
    """
    if choice in TEMPLATES:
        return TEMPLATES[choice]
    path, key = Path(choice), f"chat_template={choice}"
    if not path.is_file():
        close = get_close_matches(choice, TEMPLATES, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Choose {', '.join(TEMPLATES)}, or give a .jinja file."
        raise ConfigError(f"{key} is no template, nor a file. {hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{key} is not UTF-8. Convert it, for example with iconv -f cp949 -t utf-8.") from None
    if len(text) > MAX_TEMPLATE:
        raise ConfigError(f"{key} has {len(text)} characters; a template has {MAX_TEMPLATE} at most. Give another.")
    if not MARKS.search(text):
        raise ConfigError(
            f"{key} does not mark what the assistant says, so that nothing could be trained. Put "
            "{% generation %} and {% endgeneration %} around the answer and its end token."
        )
    return text


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
    chat.eos_token = _check(chat, name)
    chat.save_pretrained(target)
    ids = [int(chat.convert_tokens_to_ids(token)) for token in needed]
    state = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    as_text = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"] += [{"id": id, "content": token, **as_text} for id, token in zip(ids, needed, strict=True)]
    write_text(target / "tokenizer.json", json.dumps(state, ensure_ascii=False, indent=2))
    write_text(target / DIGEST_FILE, digest(target) + "\n")
    return sorted(ids)


def check_template(chat: "PreTrainedTokenizerFast", *, name: str, way: str = WAY) -> None:
    """Refuse a tokenizer whose own template cannot be trained with; `way` says what can be done about it.

    Raises:
        ConfigError: it has none, or it is as `save_with_template` says.
    """
    if not isinstance(chat.chat_template, str):
        raise ConfigError(f"{name} has no chat template. {way}")
    if not MARKS.search(chat.chat_template):
        raise ConfigError(f"the chat template of {name} has no {{% generation %}} around what is to be trained. {way}")
    if (end := _check(chat, f"the chat template of {name}")) != chat.eos_token:
        raise ConfigError(
            f"the chat template of {name} ends an answer with {end}, and it stops at {chat.eos_token}. {way}"
        )


def _check(chat: "PreTrainedTokenizerFast", name: str) -> str:
    """The token that ends an answer, after looking at how a few conversations are rendered."""
    renderer, end = Renderer(chat), ""
    for messages in _PROBES:
        turns = [messages[:turn] for turn, message in enumerate(messages) if message["role"] == "assistant"]
        try:
            [rendered] = renderer.whole([messages])
            learned = answers_of(messages, rendered, renderer.prompts(turns))
        except TemplateError as error:
            if error.is_refusal and messages[0]["role"] == "system":  # some have no place for one
                break
            raise ConfigError(f"{name}: {error}. Correct it, or choose chatml, plain or blog.") from None
        except ValueError as error:
            raise ConfigError(f"{name} {error}. Correct it, or choose chatml, plain or blog.") from None
        end = _end_of(rendered.text[slice(*learned[-1])], chat, name)
    return end


def _end_of(answer: str, chat: "PreTrainedTokenizerFast", name: str) -> str:
    special = [token.content for token in chat.added_tokens_decoder.values()]
    ends = [token for token in special if answer.rstrip().endswith(token)]
    if not ends:
        raise ConfigError(
            f"{name} ends an answer with no special token inside {{% generation %}}: the model would never learn to "
            "stop. Put eos_token or another <|token|> at its end."
        )
    return max(ends, key=len)
