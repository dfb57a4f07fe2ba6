"""Tasks of lm-eval by name -> their metrics, asked and batched by lm-eval's own Hugging Face model.

Each text begins with bos, as every document of ours does; the questions of a tuned model are put by its chat template,
which renders in its own process where it is not ours.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from llm import tokenizer
from llm.config.evaluation import EvaluationConfig
from llm.errors import ConfigError
from llm.evaluation.scoring import Scorer
from llm.tokenizer.chat import PART

MOST_WRITTEN = 256  # tokens of an answer, where a task does not say
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


class ScoredModel(HFLM):
    """A model as lm-eval asks it, of the length that ours has."""

    def __init__(self, scorer: Scorer, tokenizer_folder: Path, *, batch_tokens: int) -> None:
        chat: Any = tokenizer.load_chat(tokenizer_folder)
        chat.add_bos_token = True  # which writes the post-processor that puts it there
        super().__init__(
            scorer.model,
            backend="causal",
            tokenizer=chat,
            add_bos_token=True,
            max_length=scorer.positions,
            batch_size=max(1, batch_tokens // scorer.positions),
        )
        self._scorer, self._renderer = scorer, tokenizer.Renderer(chat)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of each text, in rows as long as the model can take; a row sees nothing of the one before.

        lm-eval's own begins a text with bos twice, and charges the second one.
        """
        texts = [self._rows(instance.args[0]) for instance in requests]
        scored = iter(self._scorer.score([(row, 1) for rows in texts for row in rows]))
        return [-sum(next(scored).nats for _ in rows) for rows in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of the texts that end it, or half its length."""
        for request in requests:
            context, settings = request.args
            most = min(int(settings.get("max_gen_toks", MOST_WRITTEN)), self.max_length // 2)
            request.arguments = (context, settings | {"max_gen_toks": most})
        written: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return written

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, up to where the answer begins, or goes on; without a system prompt where it must be.

        Raises:
            ConfigError: the chat template cannot say it.
        """
        without = [message for message in chat_history if message["role"] != "system"]
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except tokenizer.TemplateError as error:
            if not error.is_refusal or len(without) == len(chat_history):
                raise ConfigError(
                    f"evaluation.tasks: the chat template cannot say a question: {error}. Set "
                    "evaluation.chat_template=false to ask without it."
                ) from None
        return self.apply_chat_template(without, add_generation_prompt)

    def _rendered(self, messages: list[dict[str, str]], is_prompt: bool) -> str:
        """As lm-eval's own command line has it, to which a control token's name in a question is that token."""
        if is_prompt:
            return self._renderer.prompts([messages])[0].replace(PART, "")
        text, last = self._renderer.whole([messages])[0].text.replace(PART, ""), messages[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def _rows(self, text: str) -> list[list[int]]:
        bos, *ids = self._scorer.encode(text)
        size = self._scorer.positions
        return [[bos, *ids[start : start + size]] for start in range(0, len(ids), size)]


def require_tasks(config: EvaluationConfig) -> None:
    """Refuse a name that lm-eval does not know.

    Raises:
        ConfigError: with the nearest name.
    """
    known = set(_manager(config).all_tasks)
    if unknown := [name for name in config.tasks if name not in known]:
        close = get_close_matches(unknown[0], known, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Give the folder of its file as evaluation.task_path."
        raise ConfigError(f"evaluation.tasks: lm-eval has no task {unknown[0]}. {hint}")


def answer_tasks(
    scorer: Scorer, tokenizer_folder: Path, config: EvaluationConfig, *, has_chat: bool, seed: int
) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, its standard error under `<metric>_stderr`.

    Raises:
        ConfigError: the questions are to be put by the chat template (`has_chat`), which cannot say them.
    """
    model = ScoredModel(scorer, tokenizer_folder, batch_tokens=config.batch_tokens)
    found = _found(model, config, has_chat=has_chat, seed=seed)
    return {name: _metrics(values) for name, values in found["results"].items()}


def _found(model: ScoredModel, config: EvaluationConfig, *, has_chat: bool, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=list(config.tasks),
        apply_chat_template=has_chat,
        fewshot_as_multiturn=has_chat,
        task_manager=_manager(config),
        num_fewshot=config.num_fewshot,
        limit=config.task_limit,
        bootstrap_iters=100,  # for what has no closed form; means do
        log_samples=False,
        **dict.fromkeys(SEEDS, seed),
    )
    return found


def _manager(config: EvaluationConfig) -> TaskManager:
    return TaskManager(include_path=config.task_path)


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """lm-eval names a metric `acc,none`, the second half being the filter that an answer went through."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name.removesuffix(",none").replace(",", "_"): value for name, value in numbers.items()}
