"""Tasks of lm-eval by name -> their metrics, asked and batched by lm-eval's own Hugging Face model."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from llm.config.evaluation import EvaluationConfig
from llm.errors import ConfigError
from llm.evaluation.scoring import Scorer
from llm.tokenizer.folder import load_chat

MOST_WRITTEN = 256  # tokens of an answer, where a task does not say
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


class ShortModel(HFLM):
    """lm-eval's model, of which an answer takes half of the positions at most: it refuses what leaves no room."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            context, settings = request.args
            most = min(int(settings.get("max_gen_toks", MOST_WRITTEN)), self.max_length // 2)
            request.arguments = (context, settings | {"max_gen_toks": most})
        return list(super().generate_until(requests, disable_tqdm=disable_tqdm))


def require_tasks(config: EvaluationConfig) -> None:
    """Refuse a name that lm-eval does not know.

    Raises:
        ConfigError: with the nearest name.
    """
    known = set(TaskManager(include_path=config.task_path).all_tasks)
    if unknown := [name for name in config.tasks if name not in known]:
        close = get_close_matches(unknown[0], known, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Give the folder of its file as evaluation.task_path."
        raise ConfigError(f"evaluation.tasks: lm-eval has no task {unknown[0]}. {hint}")


def answer_tasks(
    scorer: Scorer, tokenizer_folder: Path, config: EvaluationConfig, *, has_chat: bool, seed: int
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, its standard error under `<metric>_stderr`.

    A text begins with bos, as every document of ours does; `has_chat` puts the questions by the chat template.
    """
    chat: Any = load_chat(tokenizer_folder)
    chat.add_bos_token = True  # which writes the post-processor that puts it there
    model = ShortModel(
        scorer.model,
        backend="causal",
        tokenizer=chat,
        add_bos_token=True,
        max_length=scorer.positions,
        batch_size=max(1, config.batch_tokens // scorer.positions),
    )
    found: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=list(config.tasks),
        apply_chat_template=has_chat,
        fewshot_as_multiturn=has_chat,
        task_manager=TaskManager(include_path=config.task_path),
        num_fewshot=config.num_fewshot,
        limit=config.task_limit,
        bootstrap_iters=100,  # for what has no closed form; means do
        log_samples=False,
        **dict.fromkeys(SEEDS, seed),
    )
    return {name: _metrics(values) for name, values in found["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """lm-eval names a metric `acc,none`, the second half being the filter that an answer went through."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name.removesuffix(",none").replace(",", "_"): value for name, value in numbers.items()}
