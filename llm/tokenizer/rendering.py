"""A chat template and conversations -> their texts, here for templates of ours, else in a process with limits.

The template is rendered by transformers, in Jinja's sandbox, as it will be wherever the model is taken to.
"""

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llm.environment import python_path, variables

SECONDS = 2.0  # of the processor's time, so that a busy machine refuses nothing: ours take milliseconds
SECONDS_EACH = 0.05  # beside, for each conversation of a batch
MEMORY = 512 * 2**20  # bytes beyond what it has when it is ready
MOST_CHARACTERS = 20_000  # of a text, beside
TIMES = 20  # the characters of its messages
OUT_OF_MEMORY = "takes more memory than it may"


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
    template: str, variables: dict[str, Any], conversations: Sequence[list[dict[str, str]]], is_prompt: bool
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


class Helper:
    """A process that renders what is not trusted: started when first needed, ended with this or where it overruns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def render(
        self, template: str, variables: dict[str, Any], conversations: Sequence[list[dict[str, str]]], is_prompt: bool
    ) -> list[Rendered]:
        """As `render`.

        Raises:
            TemplateError: as `render`, and where time or memory ran out.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it died: reading finds out
            process.stdin.write(json.dumps([template, variables, conversations, is_prompt]) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self._end()
            self._process = None
            late = f"takes more than {seconds_for(conversations):.0f} s to render"
            raise TemplateError(late if process.returncode == -signal.SIGPROF else OUT_OF_MEMORY)
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer.pop("error"), **answer)
        return [Rendered(text, [(start, end) for start, end in spans]) for text, spans in answer["made"]]

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", "from llm.tokenizer.rendering import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**variables(), "PYTHONPATH": python_path(str(Path(__file__).parents[2]))},
            encoding="utf-8",
        )
        self._end = weakref.finalize(self, _end, process)
        return process


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()  # which is nothing to one that has ended
    with suppress(BrokenPipeError):  # of what it did not read
        process.communicate()


def serve() -> None:
    """Answer requests on stdin with one line of JSON each, until stdin ends.

    What takes too long ends this process by SIGPROF: in C, too, where no handler would be heard.
    """
    import transformers.utils.chat_template_utils  # noqa: F401  # its memory is not the template's

    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds_for(request[2]))
        try:
            answer: dict[str, Any] = {"made": render(*request)}
        except TemplateError as error:
            answer = {"error": str(error), "index": error.index, "is_refusal": error.is_refusal}
        except MemoryError:
            answer = {"error": OUT_OF_MEMORY}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def seconds_for(conversations: Sequence[Any]) -> float:
    """The processor's time that the rendering of a batch may take."""
    return SECONDS + SECONDS_EACH * len(conversations)


def _limit_memory() -> None:
    """Where the system says what the process has, no more than MEMORY beyond it."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux: time and output are bounded all the same
        return
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
