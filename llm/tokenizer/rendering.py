"""A chat template and conversations -> their texts and tokens, and where in them the assistant speaks.

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
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer

from llm.tokenizer.templates import TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]

# What Unicode gives no character, but leaves to programs (section 23.7): in a control token's name that a turn holds,
# and before the name of one that is the template's.
PART, MARK = "\ufdd0", "\ufdd1"
SECONDS = 2.0  # of the processor's time, so that a busy machine refuses nothing: ours take milliseconds
SECONDS_EACH = 0.05  # beside, for each conversation of a batch
MEMORY = 512 * 2**20  # bytes beyond what the process has when it is ready
MOST_CHARACTERS = 20_000  # of a text, beside
TIMES = 20  # the characters of its messages


class TemplateError(Exception):
    """A template that gives no text for a conversation; `index` says which, where it is one of several."""

    def __init__(self, message: str, *, index: int = 0, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.index, self.is_refusal = index, is_refusal


class Rendered(NamedTuple):
    """A conversation as text, and where in it the assistant speaks: (first character, end) of each answer."""

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
            [text], [spans] = render_jinja_template(
                conversations=[messages],
                chat_template=template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=is_prompt,
                **variables,
            )
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {error.message}", index=index) from None
        except Exception as error:
            is_refusal = type(error) is jinja2.TemplateError  # what raise_exception raises
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise TemplateError(reason[:200], index=index, is_refusal=is_refusal) from None
        most = MOST_CHARACTERS + TIMES * sum(len(message["content"]) for message in messages)
        if len(text) > most:
            raise TemplateError(f"makes {len(text)} characters of a conversation that may have {most}", index=index)
        made.append(Rendered(text, [(int(start), int(end)) for start, end in spans]))
    return made


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
        self._pool = self._pool or self._start()
        seconds = SECONDS + SECONDS_EACH * len(conversations)
        try:
            return self._pool.submit(_render_within, seconds, template, variables, conversations, is_prompt).result()
        except BrokenProcessPool:
            self._pool = None
            raise TemplateError(f"takes more than {seconds:.0f} s to render, or more memory than it may") from None

    def _start(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_limit)
        weakref.finalize(self, pool.shutdown)  # which waits: Python's own end would trip over one that is half done
        return pool


def _render_within(seconds: float, *request: Any) -> list[Rendered]:
    """What takes longer ends this process by SIGPROF: in C, too, where no handler would be heard."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return render(*request)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit() -> None:
    """No more memory than MEMORY beyond what the process has, where the system says that; and Ctrl-C is not for it."""
    import transformers.utils.chat_template_utils  # noqa: F401  # its memory and time are not the template's

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux: time and output are bounded all the same
        return
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


# With a tokenizer


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
        self._variables = dict(tokenizer.special_tokens_map)
        self._render = render if self._template in TEMPLATES.values() else Jail().render

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
