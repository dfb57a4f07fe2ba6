"""Tasks of lm-eval by name -> their metrics, the model's answers by the same scoring and writing as all else here.

lm-eval's own Hugging Face model does not put bos before a text, which every document of ours begins with.
"""

from difflib import get_close_matches
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from llm.config import EvaluationConfig
from llm.errors import ConfigError
from llm.evaluation.scoring import Scorer
from llm.evaluation.writing import write

MOST_WRITTEN = 256  # tokens of an answer, where a task does not say
SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


class ScoredModel(LM):
    """A scorer as lm-eval asks it. A text that is too long loses its beginning, as with lm-eval's own models."""

    def __init__(self, scorer: Scorer, *, seed: int) -> None:
        super().__init__()
        self._scorer, self._seed = scorer, seed

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(ln p of a continuation, whether it is what the model would write) for each (context, continuation)."""
        rows = [self._split(*instance.args) for instance in requests]
        return [(-scored.nats, scored.is_greedy) for scored in self._scorer.score(rows)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """ln p of each text, in rows as long as the model can take; a row sees nothing of the one before."""
        texts = [self._rows(instance.args[0]) for instance in requests]
        scored = iter(self._scorer.score([(row, 1) for rows in texts for row in rows]))
        return [-sum(next(scored).nats for _ in rows) for rows in texts]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model writes after each context, up to the first of the texts that end it."""
        return [self._answer(*instance.args) for instance in requests]

    def _split(self, context: str, continuation: str) -> tuple[list[int], int]:
        """(bos and the tokens of both, the place of the first token that is not the context's)."""
        whole = self._scorer.encode(context + continuation)
        alone = self._scorer.encode(context)
        same = next((i for i, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b), len(alone))
        same = min(same, len(whole) - 1)  # a continuation that joins the context's last token is charged with it
        cut = max(0, len(whole) - self._scorer.positions - 1)
        return whole[cut:], max(1, same - cut)

    def _rows(self, text: str) -> list[list[int]]:
        bos, *ids = self._scorer.encode(text)
        size = self._scorer.positions
        return [[bos, *ids[start : start + size]] for start in range(0, len(ids), size)]

    def _answer(self, context: str, settings: dict[str, Any]) -> str:
        room = self._scorer.positions
        max_new_tokens = min(int(settings.get("max_gen_toks", MOST_WRITTEN)), room // 2)
        bos, *ids = self._scorer.encode(context)
        written = write(
            self._scorer.model,
            [[bos, *ids[-(room - max_new_tokens - 1) :]]],
            self._scorer.words,
            self._scorer.special,
            max_new_tokens=max_new_tokens,
            temperature=float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0,
            top_p=float(settings.get("top_p", 1.0)),
            seed=self._seed,
        )
        text = written[0].text
        ends = settings.get("until") or []
        for end in [ends] if isinstance(ends, str) else ends:
            text = text.split(end)[0] if end else text
        return text


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


def answer_tasks(scorer: Scorer, config: EvaluationConfig, *, seed: int) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, its standard error under `<metric>_stderr`."""
    found = simple_evaluate(
        model=ScoredModel(scorer, seed=seed),
        tasks=list(config.tasks),
        task_manager=_manager(config),
        num_fewshot=config.num_fewshot,
        limit=config.task_limit,
        bootstrap_iters=100,  # for what has no closed form; means do
        log_samples=False,
        **dict.fromkeys(SEEDS, seed),
    )
    return {name: _metrics(values) for name, values in found["results"].items()}


def _manager(config: EvaluationConfig) -> TaskManager:
    return TaskManager(include_path=config.task_path)


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """lm-eval names a metric `acc,none`, the second half being the filter that an answer went through."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name.removesuffix(",none").replace(",", "_"): value for name, value in numbers.items()}
