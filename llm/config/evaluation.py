"""The schema of what is done with a trained model: stage=evaluate, stage=export, and how text is drawn from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from llm.config.fields import HOW, check_settings, setting
from llm.config.training import Accelerator

OF_TASKS = ("tasks", bool)
MOST_WRITTEN = 256  # tokens for a prompt, where nothing else is asked for: most answers are at their end by then


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """What is asked of a model; held-out loss is always measured."""

    num_items: int = setting(400, at_least=0)  # of each probe, at most; 0 leaves the probes out
    num_prompts: int = setting(40, at_least=0)  # that the model goes on writing from, at most; 0 leaves writing out
    max_new_tokens: int | None = setting(None, at_least=1)  # a prompt; None: half of what can be read, 256 at most
    temperature: float = setting(0.7, at_least=0)  # 0: the likeliest token
    top_p: float = setting(0.95, above=0, at_most=1)
    tasks: list[str] = setting([])  # of lm-eval, by name
    # folder of task files; its content is in the identity
    task_path: str | None = setting(None, HOW, is_file=True, only_with=OF_TASKS)
    # examples before each question; None: as the task says
    num_fewshot: int | None = setting(None, at_least=0, only_with=OF_TASKS)
    task_limit: int | None = setting(None, at_least=1, only_with=OF_TASKS)  # questions of each task; None: all
    # put the questions of tasks by it; None: where the model was tuned with one
    chat_template: bool | None = setting(None, only_with=OF_TASKS)
    batch_tokens: int = setting(4096, HOW, at_least=1)  # scored in one forward pass
    accelerator: Accelerator = setting(Accelerator.auto, HOW)

    def __post_init__(self) -> None:
        check_settings(self, "evaluation")

    def tokens_to_write(self, positions: int) -> int:
        """For each prompt, of a model that can read so many positions."""
        return self.max_new_tokens or min(MOST_WRITTEN, positions // 2)


class WeightType(Enum):
    fp32 = "float32"
    fp16 = "float16"
    bf16 = "bfloat16"


class GgufType(Enum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"  # 8 bits a weight and a scale for every 32
    q4_k_m = "q4_k_m"  # 4.5 bits or so, by llama.cpp's own quantizer


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """A model or an adapter in Hugging Face format, and a file for llama.cpp if it is asked for."""

    merge: bool = True  # write a whole model, the adapter merged into its base; False: the adapter alone
    dtype: WeightType = WeightType.fp32  # of the weights
    # weights of a file for llama.cpp beside; None: no such file
    gguf: GgufType | None = setting(None, only_with=("merge", (True,)))
    # that an adapter's config names, such as a hub id; None: the base run's folder
    base_model: str | None = setting(None, only_with=("merge", (False,)))
    max_logit_difference: float | None = setting(None, HOW, at_least=0)  # None: what rounding explains

    def __post_init__(self) -> None:
        check_settings(self, "export")

    def judged(self, proof: Mapping[str, float]) -> tuple[float, float]:
        """(the difference of logits that counts, the most that it may be), of what an export's proof measured.

        In fp32 the largest counts, for nothing is rounded. In fp16 and bf16 that of the median position: rounding may
        send a token of a mixture of experts to another expert, which moves some positions far.
        """
        if self.max_logit_difference is not None:
            return proof["max_logit_difference"], self.max_logit_difference
        most = self.dtype is WeightType.fp32
        return proof["max_logit_difference" if most else "median_logit_difference"], proof["rounding"]


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
