"""The schema of stage=evaluate: how much is asked of held-out text, what the model writes, which tasks."""

from dataclasses import dataclass, field

from llm.config.fields import HOW, at_least, expand_home
from llm.config.training import Accelerator
from llm.errors import ConfigError

MOST_WRITTEN = 256  # tokens for a prompt, where nothing else is asked for: most answers are at their end by then


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """What is asked of a model; held-out loss is always measured."""

    num_items: int = 400  # of each probe, at most; 0 leaves the probes out
    num_prompts: int = 40  # that the model goes on writing from, at most; 0 leaves writing out
    max_new_tokens: int | None = None  # for each prompt; None: half of what the model can read, 256 at most
    temperature: float = 0.7  # 0: the likeliest token
    top_p: float = 0.95
    tasks: list[str] = field(default_factory=list)  # of lm-eval, by name
    task_path: str | None = field(default=None, metadata=HOW)  # folder of task files; its content is in the identity
    num_fewshot: int | None = None  # examples before each question of a task; None: as the task says
    task_limit: int | None = None  # questions of each task; None: all
    chat_template: bool | None = None  # put the questions of tasks by it; None: where the model was tuned with one
    batch_tokens: int = field(default=4096, metadata=HOW)  # scored in one forward pass
    accelerator: Accelerator = field(default=Accelerator.auto, metadata=HOW)

    def __post_init__(self) -> None:
        expand_home(self, "task_path")
        for key, least in (("num_items", 0), ("num_prompts", 0), ("batch_tokens", 1)):
            at_least(f"evaluation.{key}", getattr(self, key), least)
        if self.max_new_tokens is not None:
            at_least("evaluation.max_new_tokens", self.max_new_tokens, 1)
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"evaluation.temperature={self.temperature} is out of range. Set 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"evaluation.top_p={self.top_p} is out of range. Set it above 0 and up to 1.")
        self._check_tasks()

    def tokens_to_write(self, positions: int) -> int:
        """For each prompt, of a model that can read so many positions."""
        return self.max_new_tokens or min(MOST_WRITTEN, positions // 2)

    def _check_tasks(self) -> None:
        for key, least in (("num_fewshot", 0), ("task_limit", 1)):
            if (value := getattr(self, key)) is not None:
                at_least(f"evaluation.{key}", value, least)
        for key in ("task_path", "num_fewshot", "task_limit", "chat_template"):
            if not self.tasks and getattr(self, key) is not None:
                raise ConfigError(
                    f"evaluation.{key}={getattr(self, key)} is for tasks, and none is named. Set "
                    "evaluation.tasks=[<name>], or leave it out."
                )
