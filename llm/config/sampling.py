"""How the next token is chosen, in training's samples, evaluation, chat and export alike."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A prompt and a seed give one text, wherever it is written and whatever is written beside it.

    A prompt that leaves no room for max_new_tokens loses its beginning, but keeps half of the model's positions.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 takes the likeliest token each time
    top_p: float = 0.95
    top_k: int = 50  # the likeliest that are drawn from; 0: all
    repetition_penalty: float = 1.1  # of the tokens that stand already, those that end a text not among them; 1: none
    stop: tuple[str, ...] = ()  # texts that end the answer, themselves left out
    seed: int = 0
