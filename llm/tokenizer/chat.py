"""A chat template, by name or from a file; conversations -> text and tokens by one, and where the assistant speaks.

transformers renders, in Jinja's sandbox, as it will wherever the model is taken to. A template that is not ours comes
with a model from anywhere: it is rendered in a process of its own, for nothing else ends a power of large numbers.
"""

import json
import os
import re
import signal
import weakref
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from difflib import get_close_matches
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer

from llm.errors import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]

# Plain words mark the turns, and the end of a turn is the end of a document, so that every tokenizer can say it and a
# pretrained model already knows its tokens. A prompt ends before a space, where no tokenizer here joins pieces.
PLAIN = """\
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

TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "blog": BLOG}
_MARKS_ANSWERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_CHOICES = "Choose one: chat_template=chatml, plain or blog, or a .jinja file."
_PROBES = [
    [{"role": role, "content": text} for role, text in zip(roles, ("물음", "대답", "또 물음", "또 대답"), strict=False)]
    for roles in (["user", "assistant"], ["user", "assistant", "user", "assistant"], ["system", "user", "assistant"])
]


def read_template(choice: str) -> str:
    """The text of a template by name, or of a file.

    Raises:
        ConfigError: there is no such choice, or the file marks nothing that could be trained.
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
    if not _MARKS_ANSWERS.search(text):
        raise ConfigError(
            f"{key} does not mark what the assistant says, so that nothing could be trained. Put "
            "{% generation %} and {% endgeneration %} around the answer and its end token."
        )
    return text


def check_template(chat: "PreTrainedTokenizerFast", *, name: str, way: str = _CHOICES) -> None:
    """Refuse a tokenizer whose own template cannot be trained with; `way` says what can be done about it.

    Raises:
        ConfigError: it has none, or it is as `end_of_answers` says, or a model would stop at another token.
    """
    if not isinstance(chat.chat_template, str):
        raise ConfigError(f"{name} has no chat template. {way}")
    if not _MARKS_ANSWERS.search(chat.chat_template):
        raise ConfigError(f"the chat template of {name} has no {{% generation %}} around what is to be trained. {way}")
    if (end := end_of_answers(chat, f"the chat template of {name}")) != chat.eos_token:
        raise ConfigError(
            f"the chat template of {name} ends an answer with {end}, and it stops at {chat.eos_token}. {way}"
        )


def end_of_answers(chat: "PreTrainedTokenizerFast", name: str) -> str:
    """The special token that ends an answer, in a few conversations as the tokenizer's template renders them.

    Raises:
        ConfigError: the template cannot be rendered, trains nothing, or an answer has no such token in it.
    """
    renderer, answer = Renderer(chat), ""
    for messages in _PROBES:
        try:
            [(text, answers)] = renderer.answered([messages])
        except TemplateError as error:
            if error.is_refusal and messages[0]["role"] == "system":  # some have no place for one
                break
            raise ConfigError(f"{name}: {error}. Correct it, or choose chatml, plain or blog.") from None
        answer = text[slice(*answers[-1])].rstrip()
    ends = [token.content for token in chat.added_tokens_decoder.values() if answer.endswith(token.content)]
    if not ends:
        raise ConfigError(
            f"{name} ends an answer with no special token inside {{% generation %}}: the model would never learn to "
            "stop. Put eos_token or another <|token|> at its end."
        )
    return max(ends, key=len)


# Text


class TemplateError(Exception):
    """A template that gives no text for a conversation; `index` says which, where it is one of several."""

    def __init__(self, message: str, *, index: int = 0, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.index, self.is_refusal = index, is_refusal


class Rendered(NamedTuple):
    """A conversation as text, and where in it the assistant speaks: (first character, end) of each answer, if asked."""

    text: str
    answers: list[tuple[int, int]]


def render(
    template: str, variables: dict[str, Any], conversations: Sequence[list[Message]], is_prompt: bool
) -> list[Rendered]:
    """Each conversation as the template writes it; a prompt ends where the answer to its last turn begins.

    Raises:
        TemplateError: the template is wrong, refuses a conversation, or makes too much of it.
    """
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    made: list[Rendered] = []
    for index, messages in enumerate(conversations):
        try:
            [text], spans = render_jinja_template(
                conversations=[messages],
                chat_template=template,
                return_assistant_tokens_mask=not is_prompt,
                add_generation_prompt=is_prompt,
                **variables,
            )
        except Exception as error:
            line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            is_refusal = type(error) is jinja2.TemplateError  # what raise_exception raises
            raise TemplateError(line + first_line(error)[:200], index=index, is_refusal=is_refusal) from None
        most = MAX_CHARACTERS + MAX_GROWTH * sum(len(message["content"]) for message in messages)
        if len(text) > most:
            raise TemplateError(f"makes {len(text)} characters of a conversation that may have {most}", index=index)
        made.append(Rendered(text, [(int(start), int(end)) for of in spans for start, end in of]))
    return made


MAX_CHARACTERS, MAX_GROWTH = 20_000, 20  # of a conversation's text; and as many times those of its messages
SECONDS = 2.0  # of the processor's time, so that a busy machine refuses nothing: ours take milliseconds
SECONDS_EACH = 0.05  # beside, for each conversation of a batch
MEMORY = 512 * 2**20  # bytes beyond what the process has when it is ready


class Jail:
    """A process with a limit of memory, and of time for each batch: started when first needed, ended with this."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def render(
        self, template: str, variables: dict[str, Any], conversations: Sequence[list[Message]], is_prompt: bool
    ) -> list[Rendered]:
        """As `render`.

        Raises:
            TemplateError: as `render`, and where time or memory ran out.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_limit_memory)
            weakref.finalize(self, self._pool.shutdown)  # which waits: Python's end trips over one that is half done
        seconds = SECONDS + SECONDS_EACH * len(conversations)
        try:
            return self._pool.submit(_render_within, seconds, template, variables, conversations, is_prompt).result()
        except BrokenProcessPool:
            self._pool = None
            raise TemplateError(f"takes more than {seconds:.0f} s to render, or more memory than it may") from None


def _render_within(seconds: float, *request: Any) -> list[Rendered]:
    """What takes longer ends this process by SIGPROF: in C, too, where no handler would be heard."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return render(*request)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    """No more than MEMORY beyond what the process has, where the system says that; and Ctrl-C is not for it."""
    import resource

    import transformers.utils.chat_template_utils  # noqa: F401  # its memory and time are not the template's

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = Path("/proc/self/statm")
    if status.is_file():  # else not Linux: time and output are bounded all the same
        most = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


# Tokens

# What Unicode gives no character, but leaves to programs (section 23.7): between the characters of a control token's
# name that a turn holds, and before the name of one that is the template's.
PART, MARK = "\ufdd0", "\ufdd1"


class Renderer:
    """Renders conversations with the chat template of a tokenizer, as text and as tokens.

    What a turn says is text: a control token's name in it has PART between its characters, and is never that token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._controls = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, self._controls)) or "(?!)")
        self._template = str(tokenizer.chat_template)
        self._render_by = render if self._template in TEMPLATES.values() else Jail().render

    def answered(self, conversations: Sequence[list[Message]]) -> list[Rendered]:
        """Each with what is learned of each answer: what the template marks, after the prompt.

        Raises:
            TemplateError: as `prompt_ids`, or what it marks is not one piece after another, each behind its prompt.
        """
        begun = [
            (index, messages[:turn])
            for index, messages in enumerate(conversations)
            for turn, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        whole = self._render(conversations, is_prompt=False)
        try:
            prompts = self._render([turns for _, turns in begun], is_prompt=True)
        except TemplateError as error:
            error.index = begun[error.index][0]
            raise
        own: list[list[str]] = [[] for _ in conversations]
        for (index, _), prompt in zip(begun, prompts, strict=True):
            own[index].append(prompt.text)
        return [Rendered(each.text, _learned(each, own[index], index=index)) for index, each in enumerate(whole)]

    def prompt_ids(self, conversations: Sequence[list[Message]]) -> list[list[int]]:
        """The tokens of each up to where the answer to its last turn begins.

        Raises:
            TemplateError: the template refuses one, or takes more than its share of time or memory.
        """
        return [self.encode(each.text)[0] for each in self._render(conversations, is_prompt=True)]

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
        names = "|".join(re.escape(json.dumps(token, ensure_ascii=False)) for token in self._controls)
        said = self._tokenizer.backend_tokenizer.to_str()
        state = json.loads(re.sub(names, lambda name: f'"{MARK}{name[0][1:]}', said) if names else said)
        state |= dict.fromkeys(("truncation", "padding", "post_processor"))
        if merges := state["model"].get("merges"):
            made = {*self._controls}
            state["model"]["merges"] = [p for p in merges if MARK not in "".join(p) and "".join(p) not in made]
        return Tokenizer.from_str(json.dumps(state))

    def _render(self, conversations: Sequence[list[Message]], *, is_prompt: bool) -> list[Rendered]:
        said = [[turn | {"content": self._as_text(turn["content"])} for turn in turns] for turns in conversations]
        return self._render_by(self._template, dict(self._tokenizer.special_tokens_map), said, is_prompt)

    def _as_text(self, content: str) -> str:
        content = content.replace(PART, "\ufffd").replace(MARK, "\ufffd")
        return self._control.sub(lambda match: PART.join(match[0]), content)


def _learned(rendered: Rendered, prompts: list[str], *, index: int) -> list[tuple[int, int]]:
    """(first character, end) of what is learned of each answer; `prompts` are those of the turns before each."""
    if len(rendered.answers) != len(prompts):
        marked = f"marks {len(rendered.answers)} pieces as the assistant's where {len(prompts)} answers are"
        raise TemplateError(marked, index=index)
    for (start, end), prompt in zip(rendered.answers, prompts, strict=True):
        if not rendered.text.startswith(prompt) or not start <= len(prompt) < end:
            apart = "does not put one turn after another, so that it is not known where an answer begins"
            raise TemplateError(apart, index=index)
    return [(len(prompt), end) for (_, end), prompt in zip(rendered.answers, prompts, strict=True)]
