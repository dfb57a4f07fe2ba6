"""A conversation with a person in a terminal, with one model or with two side by side."""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm.chat.talker import Message, Talker
from llm.config.sampling import Sampling
from llm.errors import ConfigError
from llm.run.console import log

if TYPE_CHECKING:
    from rich.table import Table

    from llm.model import Answer

COMMANDS = "/new begins anew, /system <text> sets the system prompt (/system alone takes it away), /quit or Ctrl-D ends"


@dataclass
class Conversation:
    """What was said so far to one or two models, each of which has its own answers before it."""

    talkers: Sequence[Talker]
    settings: Sampling
    system: str | None = None
    turns: list[list[Message]] = field(default_factory=list)  # of each talker

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.turns = [[] for _ in self.talkers]

    def ask(self, text: str) -> list[str]:
        """The answers to a message, written to stdout as they are made.

        Raises:
            ConfigError: the message cannot be.
        """
        question = {"role": "user", "content": text}
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked = [[*head, *before, question] for before in self.turns]
        answers = say(self.talkers, asked, self.settings)
        for before, answer in zip(self.turns, answers, strict=True):
            before += [question, {"role": "assistant", "content": answer}]
        return answers


def say(talkers: Sequence[Talker], asked: Sequence[list[Message]], settings: Sampling) -> list[str]:
    """Write the answers to stdout as they are made, and return them: in columns on a terminal, else one by one."""
    from llm.model import Answer

    filled = [Answer() for _ in talkers]
    with_settings = [
        talker.answer(messages, settings, answer=answer)
        for talker, messages, answer in zip(talkers, asked, filled, strict=True)
    ]
    if len(talkers) > 1 and sys.stdout.isatty():
        answers = _side_by_side(talkers, with_settings)
    else:
        answers = []
        for talker, pieces in zip(talkers, with_settings, strict=True):
            if len(talkers) > 1:
                print(f"[{talker.name}]")
            answers.append(_write(pieces))
    for talker, answer in zip(talkers, filled, strict=True):
        said = f"{talker.name}: " if len(talkers) > 1 else ""
        is_empty = answer.num_tokens < 2 and not answer.text.strip()
        log.info("%s%s", said, "the model ended its answer at once" if is_empty else describe(answer))
    return answers


def _write(pieces: Generator[str, None, None]) -> str:
    text = ""
    with closing(pieces):  # Ctrl-C ends what works beside it
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
    print(flush=True)
    return text.rstrip()


def _side_by_side(talkers: Sequence[Talker], streams: Sequence[Iterator[str]]) -> list[str]:
    """Both at once, in columns that grow; the whole of them stays on the screen at the end."""
    from rich.console import Console
    from rich.live import Live

    console, texts, open_streams = Console(), [""] * len(talkers), dict(enumerate(streams))
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        while open_streams:
            for column, pieces in list(open_streams.items()):
                piece = next(pieces, None)
                if piece is None:
                    del open_streams[column]
                else:
                    texts[column] += piece
            live.update(columns(talkers, texts))
    console.print(columns(talkers, texts))
    return [text.rstrip() for text in texts]


def columns(talkers: Sequence[Talker], texts: Sequence[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, highlight=False)
    for talker in talkers:
        table.add_column(Text(talker.name), ratio=1, overflow="fold")
    table.add_row(*(Text(text.rstrip()) for text in texts))
    return table


def describe(answer: "Answer") -> str:
    """How many tokens, how fast, and why no more."""
    speed = f", {answer.tokens_per_second:,.0f} tokens/s" if answer.tokens_per_second else ""
    first = f", the first after {answer.seconds_to_first:.2f} s" if answer.seconds_to_first is not None else ""
    cut = "; cut at max-new-tokens" if answer.end == "length" else ""
    return f"{answer.num_tokens:,} tokens{speed}{first}{cut}"


def converse(conversation: Conversation, read: Callable[[str], str] = input) -> None:
    """Take turns with a person until Ctrl-D or /quit."""
    log.info("Write a message. %s.", COMMANDS)
    while (text := _next_message(read)) is not None:
        if text.startswith("/"):
            _obey(conversation, text)
        elif text:
            try:
                conversation.ask(text)
            except ConfigError as error:  # of this message: the next one may be right
                log.warning("%s", error)


def _obey(conversation: Conversation, line: str) -> None:
    command, _, text = line.partition(" ")
    if command == "/new":
        conversation.forget()
        log.info("begun anew")
    elif command == "/system":
        conversation.system = text.strip() or None
        log.info("the system prompt is %s", "set" if conversation.system else "taken away")
    else:
        log.warning("there is no command %s. %s.", command, COMMANDS)


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
