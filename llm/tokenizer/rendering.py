"""A chat template and conversations -> their texts, here for templates of ours, else in a process with limits.

The template is rendered by transformers, in Jinja's sandbox, as it will be wherever the model is taken to.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm.environment import python_path, variables

SECONDS = 2.0  # of the processor's time, so that a busy machine refuses nothing: ours take milliseconds
SECONDS_EACH = 0.05  # beside, for each conversation of a batch
WAIT_SECONDS = 60.0  # by the clock, for a process that does nothing
START_SECONDS = 180.0  # for the process to import what it needs
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
    """A process that renders what is not trusted; it starts when it is first needed, and is killed when it overruns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def render(
        self, template: str, variables: dict[str, Any], conversations: list[list[dict[str, str]]], is_prompt: bool
    ) -> list[tuple[str, list[tuple[int, int]]]]:
        """As `render`.

        Raises:
            TemplateError: as `render`, and where time or memory ran out.
        """
        most = sum(6 * (TIMES * len(m["content"]) + MOST_CHARACTERS) for messages in conversations for m in messages)
        self._start()
        answer = self._ask([template, variables, conversations, is_prompt], most=most + 2**20)
        if "error" in answer:
            raise TemplateError(answer["error"], index=answer["index"], is_refusal=answer["is_refusal"])
        return [(text, [(start, end) for start, end in spans]) for text, spans in answer["made"]]

    def close(self) -> int | None:
        """End the process, where there is one, and give what it ended with."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()  # which is nothing to one that has ended
        process.communicate()
        return process.returncode

    def _start(self) -> None:
        if self._process is not None:
            return
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from llm.tokenizer.rendering import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**variables(), "PYTHONPATH": python_path(root)},
        )
        self._read(START_SECONDS, most=100, late="its process did not start")

    def _ask(self, request: list[Any], *, most: int) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died: reading finds out
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        seconds = seconds_for(request[2])
        line = self._read(WAIT_SECONDS + seconds, most=most, late=f"takes more than {seconds:.0f} s to render")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self, seconds: float, *, most: int, late: str) -> bytes:
        """The next line that the process writes."""
        assert self._process is not None and self._process.stdout is not None
        number, read, ends_at = self._process.stdout.fileno(), b"", time.monotonic() + seconds
        while not read.endswith(b"\n"):
            ready, _, _ = select.select([number], [], [], max(0.0, ends_at - time.monotonic()))
            part = os.read(number, 2**16) if ready else b""
            read += part
            if not part or len(read) > most:
                if self.close() == -signal.SIGPROF or not ready:
                    raise TemplateError(late)
                raise TemplateError("writes without end" if part else "takes more memory than it may")
        return read


def serve() -> None:
    """Answer requests on stdin with one line of JSON each, until stdin ends."""
    import transformers.utils.chat_template_utils  # noqa: F401  # its memory is not the template's

    _limit_memory()
    print(json.dumps("ready"), flush=True)
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
