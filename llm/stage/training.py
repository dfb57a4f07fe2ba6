"""What pretraining and fine-tuning share: a model and rows -> the trained model, saved, and its results."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.evaluation import Sampling
from llm.config.stages import FinetuneStage, PretrainStage
from llm.config.training import TrainerConfig
from llm.environment import process_rank
from llm.run.devices import as_begun
from llm.run.files import digest_of, sha256_of, whole_folder
from llm.run.record import history, read_metrics
from llm.run.runs import Run
from llm.tokenizer.chat import Renderer
from llm.tokenizer.folder import load_chat, load_tokenizer, read_special

if TYPE_CHECKING:
    from llm.data.rows import Rows

MEASURED = ("val/loss", "val/bits_per_byte")  # by each validation
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.sha256", "tokenizer_config.json", "chat_template.jinja")
Prompts = list[tuple[str, list[int]]]  # texts and their token ids


def measured_names(config: PretrainStage | FinetuneStage) -> list[str]:
    """What every training has among its results."""
    names = [f"{name}{end}" for name in MEASURED for end in ("", "_before")]
    names += [f"{name}/{part}" for name in MEASURED for part in config.data.parts or ()]
    return [*names, "val/loss_best", "best_step", "tokens", "tokens_per_second_median", "parameters"]


def train(
    run: Run,
    config: PretrainStage | FinetuneStage,
    *,
    model: Any,
    rows: dict[str, "Rows"],
    tokenizer_folder: Path,
    prompts: Prompts,
    save: Callable[[Path], object],
    save_as: str,
    facts: dict[str, Any],
) -> dict[str, Any] | None:
    """Train in place and `save` into run.path / save_as, with the tokenizer beside it, so that AutoTokenizer finds it.

    `prompts` are sampled from at each validation. Gives `facts` and what training measured; None above rank zero.
    """
    from llm.logger.live import open_logger  # these take seconds, for which a finished run need not wait
    from llm.trainer.fit import Fit, fit

    with open_logger(config.logger, run, outputs=Path(config.outputs)) as logger:
        fit(
            Fit(
                model=model,
                train_rows=rows["train"],
                held_out_rows=rows["held_out"],
                data=config.data,
                optimizer=config.optimizer,
                trainer=as_begun(config, run.record).trainer,
                seed=config.seed,
                folder=run.path,
                logger=logger,
                sample=lambda: _samples(model, tokenizer_folder, prompts, config.trainer),
                label=config.stage,
            )
        )
        if process_rank() > 0:
            return None
        with whole_folder(run.path / save_as) as target:
            save(target)
            for name in TOKENIZER_FILES:
                shutil.copyfile(tokenizer_folder / name, target / name)
        results = facts | _measured(run.path)
        logger.summarize(results)
    return results


def _measured(folder: Path) -> dict[str, float]:
    """The first and the last of what validation measured, and the last of what training did."""
    metrics = read_metrics(folder / "metrics.jsonl")
    results: dict[str, float] = {}
    for name in MEASURED:
        values = [value for _, value in history(metrics, name)]
        results |= {f"{name}_before": values[0], name: values[-1]}
    by_part = {name for record in metrics for name in record if name.startswith(tuple(f"{m}/" for m in MEASURED))}
    results |= {name: history(metrics, name)[-1][1] for name in sorted(by_part)}
    best_step, best_loss = min(history(metrics, "val/loss"), key=lambda place: place[1])
    speeds = sorted(value for _, value in history(metrics, "throughput/tokens_per_second"))
    results |= {"val/loss_best": best_loss, "best_step": best_step, "tokens": metrics[-1]["tokens"]}
    return results | {"tokens_per_second_median": speeds[len(speeds) // 2]}


def _samples(model: Any, tokenizer_folder: Path, prompts: Prompts, config: TrainerConfig) -> list[dict[str, str]]:
    """A text drawn from each prompt, by the model as it is now."""
    from llm import model as models

    loaded, pad_id = load_tokenizer(tokenizer_folder), read_special(tokenizer_folder).pad_id
    sampling = Sampling(max_new_tokens=config.sample_tokens, temperature=config.sample_temperature)
    answers = models.generate(model, [ids for _, ids in prompts], loaded, sampling=sampling, pad_id=pad_id)
    return [{"prompt": text, "text": answer.text} for (text, _), answer in zip(prompts, answers, strict=True)]


def prompts_of(tokenizer_folder: Path, turns: list[list[dict[str, str]]]) -> Prompts:
    """Each conversation's last message, and the ids of all its messages as what an answer comes after."""
    ids = Renderer(load_chat(tokenizer_folder)).prompt_ids(turns)
    return [(messages[-1]["content"], line) for messages, line in zip(turns, ids, strict=True)]


def model_digest(folder: Path) -> str:
    """Of the weights, the tokenizer and the chat template: what a fine-tuning depends on."""
    return digest_of([sha256_of(folder / n) for n in ("model.safetensors", "tokenizer.json", "chat_template.jinja")])
