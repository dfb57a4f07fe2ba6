"""A chat template -> conversations as text and as tokens, with what the assistant says, and the tokens that it needs.

A template is one of TEMPLATES, by name, or a file of Jinja. What is not ours is rendered by a process of its own, with
a limit of time, of memory and of what it writes: templates come with models from anywhere.
"""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from llm.errors import ConfigError
from llm.run.files import write_text
from llm.tokenizer import folder as folders
from llm.tokenizer.rendering import Helper, Rendered, TemplateError, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]

# ChatML, after a bos as every document of a base has one. After a question the answer is opened, asked to or not.
CHATML = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}
{%- elif message['role'] in ('system', 'user') -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- else -%}{{- raise_exception('the role ' + message['role'] + ' is not system, user or assistant') -}}
{%- endif -%}
{%- if loop.last and message['role'] == 'user' -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
{%- endfor -%}
"""

# For tokenizers that lose line feeds, as the blog's does: marks of punctuation, which it parts from what they touch.
BLOG = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- '### 지시: ' + message['content'] + ' ' -}}
{%- elif message['role'] == 'user' -%}{{- '### 질문: ' + message['content'] + ' ### 답변:' -}}
{%- elif message['role'] == 'assistant' -%}
{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}{{- raise_exception('the role ' + message['role'] + ' is not system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
"""

TEMPLATES = {"plain": folders.CHAT_TEMPLATE, "chatml": CHATML, "blog": BLOG}
MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
MAX_TEMPLATE = 2**20  # characters
# What Unicode gives no character, but leaves to programs (section 23.7): in a control token's name that a turn holds,
# and before the name of one that is the template's.
PART, MARK = "\ufdd0", "\ufdd1"
WAY = "Choose one: chat_template=chatml, plain or blog, or a .jinja file."
_NEEDED = re.compile(r"<\|[^|<>\s'\"{}]{1,40}\|>")  # the form of control tokens that a template may bring
_SAID = ("물음", "대답", "또 물음", "또 대답")
_ROLES = (("user", "assistant"), ("user", "assistant", "user", "assistant"), ("system", "user", "assistant"))
_PROBES = [[{"role": role, "content": text} for role, text in zip(roles, _SAID, strict=False)] for roles in _ROLES]


class Renderer:
    """Renders conversations with the chat template of a tokenizer, as text and as tokens.

    What a turn says is text: a control token's name in it has PART between its characters, and is never that token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", *, name: str = "the chat template") -> None:
        self.name = name
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._controls = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, self._controls)) or "(?!)")
        self._template = str(tokenizer.chat_template)
        self._variables = dict(tokenizer.special_tokens_map)
        self._render = render if self._template in TEMPLATES.values() else Helper().render

    def whole(self, conversations: Sequence[list[Message]]) -> list[Rendered]:
        """Each with all of its answers.

        Raises:
            TemplateError: the template refuses one, or takes more than its share of time or memory.
        """
        return self._render(self._template, self._variables, self._as_said(conversations), False)

    def prompts(self, conversations: Sequence[list[Message]]) -> list[str]:
        """Each up to where the answer to its last turn begins.

        Raises:
            TemplateError: as `whole`.
        """
        rendered = self._render(self._template, self._variables, self._as_said(conversations), True)
        return [each.text for each in rendered]

    def prompt_ids(self, conversations: Sequence[list[Message]]) -> list[list[int]]:
        """The tokens of each up to where the answer to its last turn begins.

        Raises:
            TemplateError: as `whole`.
        """
        return [self.encode(text)[0] for text in self.prompts(conversations)]

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """(the token ids of a rendered text, where in it each token begins)."""
        if PART not in text:
            row = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return list(row["input_ids"]), [start for start, _ in row["offset_mapping"]]
        controls = {match.start() for match in self._control.finditer(text)}
        said = [MARK * (place in controls) + each.replace(PART, "") for place, each in enumerate(text)]
        places = [place for place, each in enumerate(said) for _ in each] + [len(text)]
        encoding = self._marked.encode("".join(said), add_special_tokens=False)
        return encoding.ids, [places[start] for start, _ in encoding.offsets]

    @cached_property
    def _marked(self) -> Tokenizer:
        """The tokenizer with MARK before the name of each control token, so that text without it has none.

        Those of the library would still find one by its name in their vocabulary, if told to take it for text.
        """
        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        state |= dict.fromkeys(("truncation", "padding", "post_processor"))
        names = {token: MARK + token for token in self._controls}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if "unk_token" in model:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not {*pair, "".join(pair)} & names.keys()]
        return Tokenizer.from_str(json.dumps(state))

    def _as_said(self, conversations: Sequence[list[Message]]) -> list[list[Message]]:
        return [[turn | {"content": self._as_text(turn["content"])} for turn in turns] for turns in conversations]

    def _as_text(self, content: str) -> str:
        content = content.replace(PART, "\ufffd").replace(MARK, "\ufffd")
        return self._control.sub(lambda match: PART.join(match[0]), content)


def answers_of(messages: list[Message], rendered: Rendered, prompts: list[str]) -> list[tuple[int, int]]:
    """(first character, end) of what is learned of each answer: what the template marks, after the prompt.

    `prompts` are those of the turns before each answer.

    Raises:
        ValueError: what the template marks is not one piece after another, each behind its prompt.
    """
    turns = sum(message["role"] == "assistant" for message in messages)
    if len(rendered.answers) != turns:
        raise ValueError(f"marks {len(rendered.answers)} pieces as the assistant's where {turns} answers are")
    learned = []
    for (start, end), prompt in zip(rendered.answers, prompts, strict=True):
        if not rendered.text.startswith(prompt) or not start <= len(prompt) < end:
            raise ValueError("does not put one turn after another, so that it is not known where an answer begins")
        learned.append((len(prompt), end))
    return learned


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

    chat = folders.load_chat(base)
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
    write_text(target / folders.DIGEST_FILE, folders.digest(target) + "\n")
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
    renderer, end = Renderer(chat, name=name), ""
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
