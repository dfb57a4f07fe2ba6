"""What pretraining and fine-tuning share: a model and rows -> the trained model, saved, and its results."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config import FinetuneStage, PretrainStage
from llm.run import Run, history, process_rank, read_metrics, whole_folder

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from llm.data import Rows


def train(
    run: Run,
    config: PretrainStage | FinetuneStage,
    *,
    model: "nn.Module",
    model_config: "PreTrainedConfig",
    rows: dict[str, "Rows"],
    sample: Callable[[], list[dict[str, str]]],
    save: Callable[[Path], None],
    save_as: str,
    facts: dict[str, Any],
) -> dict[str, Any] | None:
    """Train in place and `save` into run.path / save_as; `facts` and what training measured, None above rank zero."""
    from llm import trainer  # takes seconds, which a run that is already finished need not wait for
    from llm.logger import open_logger

    with open_logger(config.logger, run, outputs=Path(config.outputs)) as logger:
        trainer.fit(
            trainer.Fit(
                model=model,
                model_config=model_config,
                train_rows=rows["train"],
                held_out_rows=rows["held_out"],
                data=config.data,
                optimizer=config.optimizer,
                trainer=config.trainer,
                seed=config.seed,
                folder=run.path,
                logger=logger,
                sample=sample,
                label=config.stage,
                identity=run.record["identity"],
            )
        )
        if process_rank() > 0:
            return None
        with whole_folder(run.path / save_as) as target:
            save(target)
        results = facts | _measured(run.path)
        logger.summarize(results)
    return results


def _measured(folder: Path) -> dict[str, float]:
    """The first and the last of what validation measured, and the last of what training did."""
    metrics = read_metrics(folder / "metrics.jsonl")
    results: dict[str, float] = {}
    for name in ("val/loss", "val/bits_per_byte"):
        values = [value for _, value in history(metrics, name)]
        results |= {f"{name}_before": values[0], name: values[-1]}
    losses = history(metrics, "val/loss")
    best_step, best_loss = min(losses, key=lambda place: place[1])
    results |= {"val/loss_best": best_loss, "best_step": best_step}
    speeds = sorted(value for _, value in history(metrics, "throughput/tokens_per_second"))
    return results | {"tokens": metrics[-1]["tokens"], "tokens_per_second_median": speeds[len(speeds) // 2]}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer beside a model, so that AutoTokenizer finds it there."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, target / name)
    if (source / "tokenizer.sha256").exists():  # a base that an earlier version made has none
        shutil.copyfile(source / "tokenizer.sha256", target / "tokenizer.sha256")
