"""A model and its tokenizer -> the answer to a conversation, in pieces of whole characters."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from llm import tokenizer
from llm.chat.settings import flag
from llm.config.sampling import Sampling
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.models import Model
from llm.tokenizer.folder import CHAT_TEMPLATE

if TYPE_CHECKING:  # torch and transformers take seconds, which a mistyped name need not wait for
    from tokenizers import Tokenizer

    from llm.model import Answer

Message = dict[str, str]
MOST_CHARACTERS_A_TOKEN = 64  # past that, a text is too long however it is cut: it need not be encoded to know


@dataclass(frozen=True)
class Talker:
    """A model and how it is spoken to."""

    name: str
    model: Any
    tokenizer: Any  # as transformers has it, with its chat template
    pad_id: int
    eos_id: int
    positions: int  # tokens that prompt and answer may take together

    def encode(
        self, messages: Sequence[Message], settings: Sampling, *, key: Callable[[str], str] = flag
    ) -> tuple[list[int], int]:
        """(the token ids of a conversation up to where the answer begins, how many of its oldest turns are left out).

        The system prompt and the last message always stay.

        Raises:
            ConfigError: a message has half a character, or these alone are longer than the model's room.
        """
        head = [message for message in messages[:1] if message["role"] == "system"]
        turns, room = list(messages[len(head) :]), self.positions - settings.max_new_tokens
        for message in (*head, *turns):
            self._check(message, room)
        ids, left_out = self._ids([*head, *turns]), 0
        while len(ids) > room and len(turns) > 1:
            turns, left_out = turns[2:], left_out + 1
            ids = self._ids([*head, *turns])
        if len(ids) > room:
            name, left = key("max_new_tokens"), self.positions - len(ids)
            lower = f" or set {name}={left} or less" if left > 0 else ""
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, but of the model's {self.positions} there are {room} beside "
                f"{name}={settings.max_new_tokens}. Shorten it{lower}."
            )
        return ids, left_out

    def answer(
        self, messages: Sequence[Message], settings: Sampling, *, answer: "Answer | None" = None
    ) -> Generator[str, None, None]:
        """The answer to the last message, without the space that it begins with.

        Raises:
            ConfigError: as encode.
        """
        ids, left_out = self.encode(messages, settings)
        if left_out:
            room = self.positions - settings.max_new_tokens
            log.info("the oldest %d turns are left out: a prompt may have %d tokens", left_out, room)
        return self.stream(ids, settings, answer=answer)

    def stream(
        self, ids: list[int], settings: Sampling, *, answer: "Answer | None" = None
    ) -> Generator[str, None, None]:
        """What the model writes after a prompt that `encode` made; an answer starts after a space, which is left out.

        Closing it ends what works beside it.
        """
        from llm.model import stream

        has_begun = False
        pieces = stream(self.model, ids, self._decoder, sampling=settings, answer=answer, **self._ends)
        with closing(pieces):
            for piece in pieces:
                piece = piece if has_begun else piece.lstrip()
                if piece:
                    has_begun = True
                    yield piece

    def generate(
        self, prompts: Sequence[list[int]], settings: Sampling, *, seeds: Sequence[int] | None = None
    ) -> "list[Answer]":
        """What the model writes after each of several prompts."""
        from llm.model import generate

        return generate(self.model, prompts, self._decoder, sampling=settings, seeds=seeds, **self._ends)

    @property
    def _decoder(self) -> "Tokenizer":
        return cast("Tokenizer", self.tokenizer.backend_tokenizer)

    @property
    def _ends(self) -> dict[str, Any]:
        return {"pad_id": self.pad_id, "eos_ids": (self.eos_id,)}

    def _check(self, message: Message, room: int) -> None:
        if any("\ud800" <= character <= "\udfff" for character in message["content"]):  # JSON can say what UTF-8 cannot
            raise ConfigError(f"the text of the {message['role']} has half a character. Write it again.")
        if message["role"] != "assistant" and len(message["content"]) > room * MOST_CHARACTERS_A_TOKEN:
            raise ConfigError(
                f"the prompt has {len(message['content']):,} characters, which is more than a model of "
                f"{self.positions} tokens can read. Shorten it."
            )

    def _ids(self, messages: list[Message]) -> list[int]:
        try:
            [ids] = self._renderer.prompt_ids([messages])
        except tokenizer.TemplateError as error:
            raise ConfigError(f"the chat template of {self.name} cannot say this conversation: {error}") from None
        return ids

    @cached_property
    def _renderer(self) -> tokenizer.Renderer:
        return tokenizer.Renderer(self.tokenizer)


def open_talker(source: Model) -> Talker:
    """A model that can be talked to, with its adapter where it has one.

    Raises:
        ConfigError: it is of a kind that transformers does not have, or its tokenizer names no end of a text.
        DamagedError: a file of it is missing, is not what it was, or cannot be used.
    """
    source.check()
    from llm import model as models

    chat = tokenizer.load_chat(source.tokenizer)
    end, pad = chat.eos_token_id, chat.pad_token_id
    if end is None:
        raise ConfigError(
            f"{source.path}: tokenizer_config.json names no eos_token, so that an answer never ends. Add it."
        )
    model = models.load_for_use(source)
    if chat.chat_template is None:
        chat.chat_template = CHAT_TEMPLATE
        log.info("%s has no chat template; turns are marked by plain words", source.title)
    return Talker(source.title, model, chat, end if pad is None else pad, end, source.positions)
