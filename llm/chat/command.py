"""Talk to a run in the terminal: python -m llm.chat <run> [--prompt "..."]; the answer streams to stdout.

<run> may also be the folder of an exported model, or any other in Hugging Face format, or a hub id.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from llm.chat.batch import key_of, read_prompts, write_answers
from llm.chat.page import require_gradio, serve
from llm.chat.talker import Message, Talker
from llm.config.evaluation import Sampling
from llm.config.fields import check_settings
from llm.errors import INTERRUPTED_EXIT_CODE, ConfigError, fail, one_line_errors
from llm.run.console import log, start_logging
from llm.run.models import find_model

if TYPE_CHECKING:
    from llm.model import Answer

DEFAULTS = Sampling(temperature=0.7)  # of a conversation
COMMANDS = "/new begins anew, /system <text> sets the system prompt (/system alone takes it away), /quit or Ctrl-D ends"


def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    start_logging()
    with one_line_errors():
        try:
            _talk(arguments)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED_EXIT_CODE)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llm.chat", description=__doc__)
    parser.add_argument("run", help="a pretrained or tuned run by name or folder, a Hugging Face folder, or a hub id")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--prompt", help="answer this and end; without it, talk, or read stdin if that is no terminal")
    ways.add_argument("--input", metavar="FILE", help="a prompt on each line; or .jsonl with prompt or messages")
    ways.add_argument("--serve", action="store_true", help="a page in the browser; needs the extra serve")
    parser.add_argument("--system", help="the system prompt, which stands before the conversation")
    parser.add_argument("--compare", metavar="RUN", help="a second model, which answers after the first")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    parser.add_argument(
        "--output", metavar="FILE", help="with --input: the answers; the same command goes on with them"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="with --input: prompts at once; changes no answer")
    parser.add_argument("--port", type=int, default=8000, help="with --serve (8000)")
    drawing = parser.add_argument_group("how the next token is chosen")
    drawing.add_argument("--max-new-tokens", type=int, default=DEFAULTS.max_new_tokens)
    drawing.add_argument("--temperature", type=float, default=DEFAULTS.temperature, help="0: the likeliest each time")
    drawing.add_argument("--top-p", type=float, default=DEFAULTS.top_p)
    drawing.add_argument("--top-k", type=int, default=DEFAULTS.top_k, help="0 draws from all tokens")
    drawing.add_argument("--repetition-penalty", type=float, default=DEFAULTS.repetition_penalty, help="1 is none")
    drawing.add_argument("--stop", action="append", default=[], help="a text that ends the answer; may be repeated")
    drawing.add_argument("--seed", type=int, default=DEFAULTS.seed)
    arguments = parser.parse_args(argv)
    if (arguments.input is None) != (arguments.output is None) or (arguments.input and arguments.compare):
        parser.error("--input goes with --output, and without --compare")
    if arguments.batch_size < 1:
        parser.error("--batch-size must be 1 or more")
    return arguments


def _talk(arguments: argparse.Namespace) -> None:
    settings = Sampling(**{each.name: getattr(arguments, each.name) for each in fields(Sampling)})
    check_settings(settings)
    if arguments.serve:
        require_gradio()
    names = [arguments.run, arguments.compare] if arguments.compare else [arguments.run]
    sources = [find_model(arguments.outputs, name) for name in names]
    asked: str | None = None
    if arguments.input:
        key = key_of(sources[0], settings)
        prompts = read_prompts(Path(arguments.input), system=arguments.system, key=key)
    elif not arguments.serve:
        asked = read_prompt(arguments.prompt)

    from transformers.utils import logging  # takes seconds

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    log.info("talking to %s", " and ".join(str(source.path) for source in sources))
    talkers = [Talker(source) for source in sources]
    if arguments.serve:
        serve(talkers, settings, system=arguments.system, port=arguments.port)
    elif arguments.input:
        write_answers(talkers[0], prompts, Path(arguments.output), settings=settings, batch_size=arguments.batch_size)
    else:
        conversation = Conversation(talkers, settings, arguments.system)
        conversation.ask(asked) if asked else converse(conversation)


def read_prompt(prompt: str | None) -> str | None:
    """The prompt of the command line, else what stdin holds; None where a person sits there.

    Raises:
        ConfigError: it is empty or no UTF-8.
    """
    if prompt is None and sys.stdin.isatty():
        return None
    try:
        text = (sys.stdin.read() if prompt is None else prompt).strip()
    except UnicodeDecodeError:
        raise ConfigError("the prompt is not UTF-8. Convert it, for example with iconv -f cp949 -t utf-8.") from None
    if not text:
        raise ConfigError('the prompt is empty. Write one: --prompt "..."')
    return text


# A conversation


class Conversation:
    """What was said so far to one or two models, each of which has its own answers before it."""

    def __init__(self, talkers: Sequence[Talker], settings: Sampling, system: str | None = None) -> None:
        self.talkers, self.settings, self.system = talkers, settings, system
        self.forget()

    def forget(self) -> None:
        self._turns: list[list[Message]] = [[] for _ in self.talkers]

    def ask(self, text: str) -> None:
        """Write the answers to a message to stdout as they are made, one model's after the other's.

        Raises:
            ConfigError: the message cannot be.
        """
        from llm.model import Answer

        question, answers = {"role": "user", "content": text}, [Answer() for _ in self.talkers]
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        streams = [
            talker.answer([*head, *before, question], self.settings, answer=answer)
            for talker, before, answer in zip(self.talkers, self._turns, answers, strict=True)
        ]
        for talker, before, pieces, answer in zip(self.talkers, self._turns, streams, answers, strict=True):
            if len(self.talkers) > 1:
                print(f"[{talker.name}]")
            said = ""
            for piece in pieces:
                new = piece if said else piece.lstrip()
                print(new, end="", flush=True)
                said += new
            print(flush=True)
            is_empty = answer.end == "eos" and not said.strip()
            log.info("%s", "the model ended its answer at once" if is_empty else describe(answer))
            before += [question, {"role": "assistant", "content": said.rstrip()}]


def describe(answer: "Answer") -> str:
    """How many tokens, how fast, and why no more."""
    speed = f", {answer.tokens_per_second:,.0f} tokens/s" if answer.tokens_per_second else ""
    first = f", the first after {answer.seconds_to_first:.2f} s" if answer.seconds_to_first is not None else ""
    cut = "; cut at max_new_tokens" if answer.end == "length" else ""
    return f"{answer.num_tokens:,} tokens{speed}{first}{cut}"


def converse(conversation: Conversation, read: Callable[[str], str] = input) -> None:
    """Take turns with a person until Ctrl-D or /quit."""
    with suppress(ImportError):  # not on every platform; it edits lines and recalls them
        import_module("readline")
    log.info("Write a message. %s.", COMMANDS)
    while (text := _next_message(read)) is not None:
        command, _, rest = text.partition(" ")
        if command == "/new":
            conversation.forget()
        elif command == "/system":
            conversation.system = rest.strip() or None
        elif text.startswith("/"):
            log.warning("there is no command %s. %s.", command, COMMANDS)
        elif text:
            try:
                conversation.ask(text)
            except ConfigError as error:  # of this message: the next one may be right
                log.warning("%s", error)


def _next_message(read: Callable[[str], str]) -> str | None:
    """What the person writes; None where it is the end."""
    try:
        text = read("> " if sys.stdout.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    except UnicodeDecodeError:  # half a syllable, after a deletion in a terminal that deletes bytes
        log.warning("the line is not UTF-8; write it again")
        return ""
    return None if text == "/quit" else text
