"""A model and its tokenizer -> the answer to a conversation: one piece by piece, or many at once."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from llm.config.evaluation import Sampling
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.models import Model

if TYPE_CHECKING:  # torch and transformers take seconds, which a mistyped name need not wait for
    from llm.model import Answer

Message = dict[str, str]


class Talker:
    """A model that can be talked to, with its adapter where it has one."""

    def __init__(self, source: Model) -> None:
        """Load it.

        Raises:
            ConfigError: it is of a kind that transformers does not have.
            DamagedError: a file of it is missing, is not what it was, or cannot be used.
        """
        from llm import model as models
        from llm.tokenizer.chat import TEMPLATES, Renderer
        from llm.tokenizer.folder import load_chat

        source.check()
        self.name, self.positions = source.title, source.positions  # tokens that prompt and answer may take together
        self.tokenizer: Any = load_chat(source.tokenizer)
        self.model = models.load(source.weights, adapter=source.adapter).eval()
        if self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = TEMPLATES["plain"]
            log.info("%s has no chat template; turns are marked by plain words", self.name)
        self._renderer = Renderer(self.tokenizer)

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
        turns, room, left_out = list(messages[len(head) :]), self.positions - settings.max_new_tokens, 0
        while len(ids := self._ids([*head, *turns])) > room and len(turns) > 1:
            turns, left_out = turns[2:], left_out + 1
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
        """The answer to the last message in pieces of whole characters; closing it ends the work.

        Raises:
            ConfigError: as encode.
        """
        from llm.model import stream

        ids, left_out = self.encode(messages, settings)
        if left_out:
            room = self.positions - settings.max_new_tokens
            log.info("the oldest %d turns are left out: a prompt may have %d tokens", left_out, room)
        return stream(self.model, ids, sampling=settings, answer=answer, **self._how)

    def answer_all(self, prompts: Sequence[list[int]], settings: Sampling, *, seeds: Sequence[int]) -> "list[Answer]":
        """The answers to prompts that `encode` made, each drawn by a seed of its own."""
        from llm.model import generate

        return generate(self.model, prompts, sampling=settings, seeds=seeds, **self._how)

    @property
    def _how(self) -> dict[str, Any]:
        words = self.tokenizer
        ends = () if words.eos_token_id is None else (words.eos_token_id,)
        return {"tokenizer": words.backend_tokenizer, "pad_id": words.pad_token_id or 0, "eos_ids": ends}

    def _ids(self, messages: list[Message]) -> list[int]:
        from llm.tokenizer.chat import TemplateError

        try:
            [ids] = self._renderer.prompt_ids([messages])
        except TemplateError as error:
            raise ConfigError(f"the chat template of {self.name} cannot say this conversation: {error}") from None
        return ids
