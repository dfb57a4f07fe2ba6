"""How the next token is chosen, in training's samples, evaluation, chat and export alike."""

from dataclasses import dataclass

from llm.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A prompt and a seed give one text, wherever it is written and whatever is written beside it.

    A prompt that leaves no room for max_new_tokens loses its beginning, but keeps half of the model's positions.
    """

    max_new_tokens: int = setting(128, at_least=1)
    temperature: float = setting(0.0, at_least=0)  # 0 takes the likeliest token each time
    top_p: float = setting(0.95, above=0, at_most=1)
    top_k: int = setting(50, at_least=0)  # the likeliest that are drawn from; 0: all
    repetition_penalty: float = setting(1.1, above=0)  # of tokens that stand already, but for those that end a text
    # Texts that end the answer, themselves left out
    stop: tuple[str, ...] = setting((), fault=lambda texts: None if all(texts) else "is empty. Give a text.")
    seed: int = setting(0, at_least=0)
