"""A model and its tokenizer -> the answer to a conversation, in pieces of whole characters."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llm.config.evaluation import Sampling
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.models import Model

if TYPE_CHECKING:  # torch and transformers take seconds, which a mistyped name need not wait for
    from llm.model import Answer
    from llm.tokenizer import Renderer

Message = dict[str, str]


@dataclass(frozen=True)
class Talker:
    """A model and how it is spoken to."""

    name: str
    model: Any
    tokenizer: Any  # as transformers has it, with its chat template
    positions: int  # tokens that prompt and answer may take together

    def encode(self, messages: Sequence[Message], settings: Sampling) -> tuple[list[int], int]:
        """(the token ids of a conversation up to where the answer begins, how many of its oldest turns are left out).

        The system prompt and the last message always stay.

        Raises:
            ConfigError: a message has half a character, or these alone are longer than the model's room.
        """
        for message in messages:
            if any("\ud800" <= character <= "\udfff" for character in message["content"]):  # as JSON can say it
                raise ConfigError(f"the text of the {message['role']} has half a character. Write it again.")
        head = [message for message in messages[:1] if message["role"] == "system"]
        turns, room = list(messages[len(head) :]), self.positions - settings.max_new_tokens
        ids, left_out = self._ids([*head, *turns]), 0
        while len(ids) > room and len(turns) > 1:
            turns, left_out = turns[2:], left_out + 1
            ids = self._ids([*head, *turns])
        if len(ids) > room:
            left = self.positions - len(ids)
            lower = f", or set max_new_tokens={left} or less" if left > 0 else ""
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, but of the model's {self.positions} there are {room} beside "
                f"max_new_tokens={settings.max_new_tokens}. Shorten it{lower}."
            )
        return ids, left_out

    def answer(
        self, messages: Sequence[Message], settings: Sampling, *, answer: "Answer | None" = None
    ) -> Generator[str, None, None]:
        """The answer to the last message in pieces, without the space that it begins with; closing it ends the work.

        Raises:
            ConfigError: as encode.
        """
        ids, left_out = self.encode(messages, settings)
        if left_out:
            room = self.positions - settings.max_new_tokens
            log.info("the oldest %d turns are left out: a prompt may have %d tokens", left_out, room)
        return self._stream(ids, settings, answer)

    def _stream(self, ids: list[int], settings: Sampling, answer: "Answer | None") -> Generator[str, None, None]:
        from llm.model import stream

        has_begun = False
        with closing(stream(self.model, ids, sampling=settings, answer=answer, **self._how)) as pieces:
            for piece in pieces:
                piece = piece if has_begun else piece.lstrip()
                if piece:
                    has_begun = True
                    yield piece

    def generate(
        self, prompts: Sequence[list[int]], settings: Sampling, *, seeds: Sequence[int] | None = None
    ) -> "list[Answer]":
        """What the model writes after each of several prompts that `encode` made."""
        from llm.model import generate

        return generate(self.model, prompts, sampling=settings, seeds=seeds, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        return {"tokenizer": self.tokenizer.backend_tokenizer, "pad_id": end if pad is None else pad, "eos_ids": (end,)}

    def _ids(self, messages: list[Message]) -> list[int]:
        from llm.tokenizer import TemplateError

        try:
            [ids] = self._renderer.prompt_ids([messages])
        except TemplateError as error:
            raise ConfigError(f"the chat template of {self.name} cannot say this conversation: {error}") from None
        return ids

    @cached_property
    def _renderer(self) -> "Renderer":
        from llm.tokenizer import Renderer

        return Renderer(self.tokenizer)


def open_talker(source: Model) -> Talker:
    """A model that can be talked to, with its adapter where it has one.

    Raises:
        ConfigError: it is of a kind that transformers does not have, or its tokenizer names no end of a text.
        DamagedError: a file of it is missing, is not what it was, or cannot be used.
    """
    source.check()
    from llm import model as models
    from llm.tokenizer import load_chat
    from llm.tokenizer.templates import PLAIN

    chat = load_chat(source.tokenizer)
    if chat.eos_token_id is None:
        raise ConfigError(
            f"{source.path}: tokenizer_config.json names no eos_token, so that an answer never ends. Add it."
        )
    model = models.load(source.weights, adapter=source.adapter).eval()
    if chat.chat_template is None:
        chat.chat_template = PLAIN
        log.info("%s has no chat template; turns are marked by plain words", source.title)
    return Talker(source.title, model, chat, source.positions)
