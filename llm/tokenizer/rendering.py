"""A chat template and conversations -> their texts, here for templates of ours, else in a process with limits.

The template is rendered by transformers, in Jinja's sandbox, as it will be wherever the model is taken to.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm.environment import python_path, variables

SECONDS = 2.0  # of the processor's time, so that a busy machine refuses nothing: ours take milliseconds
SECONDS_EACH = 0.05  # beside, for each conversation of a batch
MEMORY = 512 * 2**20  # bytes beyond what it has when it is ready
MOST_CHARACTERS = 20_000  # of a text, beside
TIMES = 20  # the characters of its messages


class TemplateError(Exception):
    """A template that gives no text for a conversation; `index` says which, where it is one of several."""

    def __init__(self, message: str, *, index: int = 0, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.index, self.is_refusal = index, is_refusal


def render(
    template: str, variables: dict[str, Any], conversations: list[list[dict[str, str]]], is_prompt: bool
) -> list[tuple[str, list[tuple[int, int]]]]:
    """(text, where the assistant speaks) of each conversation.

    Raises:
        TemplateError: the template is wrong, refuses a conversation, or makes too much of it.
    """
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    made: list[tuple[str, list[tuple[int, int]]]] = []
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
        made.append((text, [(int(start), int(end)) for start, end in spans]))
    return made


class Helper:
    """A process that renders what is not trusted; it starts when it is first needed, and ends where it overruns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def render(
        self, template: str, variables: dict[str, Any], conversations: list[list[dict[str, str]]], is_prompt: bool
    ) -> list[tuple[str, list[tuple[int, int]]]]:
        """As `render`.

        Raises:
            TemplateError: as `render`, and where time or memory ran out.
        """
        line = self._ask([template, variables, conversations, is_prompt])
        if not line:
            late = f"takes more than {seconds_for(conversations):.0f} s to render"
            raise TemplateError(late if self.close() == -signal.SIGPROF else "takes more memory than it may")
        answer = json.loads(line)
        if "error" in answer:
            raise TemplateError(answer["error"], index=answer["index"], is_refusal=answer["is_refusal"])
        return [(text, [(start, end) for start, end in spans]) for text, spans in answer["made"]]

    def close(self) -> int | None:
        """End the process, where there is one, and give what it ended with."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()  # which is nothing to one that has ended
        with suppress(BrokenPipeError):  # of what it did not read
            process.communicate()
        return process.returncode

    def _ask(self, request: list[Any]) -> str:
        """The line that the process answers; empty where it died."""
        if self._process is None:
            root = str(Path(__file__).parents[2])
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from llm.tokenizer.rendering import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**variables(), "PYTHONPATH": python_path(root)},
                encoding="utf-8",
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # it died: reading finds out
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._process.stdout.readline()


def serve() -> None:
    """Answer requests on stdin with one line of JSON each, until stdin ends."""
    import transformers.utils.chat_template_utils  # noqa: F401  # its memory is not the template's

    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with _limited(seconds_for(request[2])):
                answer: dict[str, Any] = {"made": render(*request)}
        except TemplateError as error:
            answer = {"error": str(error), "index": error.index, "is_refusal": error.is_refusal}
        except MemoryError:
            answer = {"error": "takes more memory than it may", "index": 0, "is_refusal": False}
        print(json.dumps(answer), flush=True)


def seconds_for(conversations: list[Any]) -> float:
    """The processor's time that the rendering of a batch may take."""
    return SECONDS + SECONDS_EACH * len(conversations)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End this process by SIGPROF where what is done takes longer: in C, too, where no handler would be heard."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    """Where the system says what the process has, no more than MEMORY beyond it."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # not Linux: time and output are bounded all the same
        return
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
