"""What a stage without training has made -> a W&B run of its own, where the command asks for this very stage.

Where it is made on the way of another, that one's run has it as an artifact, with the same numbers: a sweep over
tokenizers shows its models, and not each of their tokenizers and shards among them.
"""

from pathlib import Path
from typing import Any

from llm.config import ExportStage, ShardsStage, TokenizerStage
from llm.run import Run


def log_results(config: TokenizerStage | ShardsStage | ExportStage, run: Run, results: dict[str, Any]) -> None:
    """The numbers as a summary and a table, and what was made as an artifact."""
    if config.logger is None:
        return
    from llm.logger import numbers, open_logger

    with open_logger(config.logger, run, outputs=Path(config.outputs)) as logger:
        logger.summarize({key: value for key, value in results.items() if isinstance(value, str)} | numbers(results))
