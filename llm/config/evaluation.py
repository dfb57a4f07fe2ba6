"""The schema of stage=evaluate: how much is asked of held-out text, what the model writes, which tasks."""

from dataclasses import dataclass

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
