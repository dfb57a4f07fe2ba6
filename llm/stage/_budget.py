"""A budget in bytes of text, tokens or FLOPs -> optimizer steps, so that tokenizers are compared fairly."""

from llm.config import PretrainStage
from llm.errors import ConfigError
from llm.run import Run


def steps_within_budget(config: PretrainStage, shards: Run) -> int:
    """Steps whose tokens use up the budget, to the nearest; trainer.max_steps where none is set.

    Bytes are those of the raw text of the training documents: a tokenizer that cuts finer gets more steps for them.

    Raises:
        ConfigError: the budget does not pay for half a step.
    """
    trainer = config.trainer
    step_tokens = config.data.batch_size * config.data.sequence_length
    if trainer.max_bytes is not None:
        train = shards.results["train"]
        key, amount, step = "max_bytes", float(trainer.max_bytes), step_tokens * train["raw_bytes"] / train["tokens"]
    elif trainer.max_tokens is not None:
        key, amount, step = "max_tokens", float(trainer.max_tokens), float(step_tokens)
    elif trainer.max_flops is not None:
        key, amount, step = "max_flops", trainer.max_flops, step_tokens * _flops_per_token(config, shards)
    else:
        return trainer.max_steps
    steps = round(amount / step)
    if steps < 1:
        raise ConfigError(
            f"trainer.{key}={amount:g} does not pay for a step, which takes {step:.4g}. Raise it, or lower "
            "data.batch_size or data.sequence_length."
        )
    return steps


def _flops_per_token(config: PretrainStage, shards: Run) -> float:
    """As throughput is measured by: of the model that would be trained, built without its weights."""
    import torch  # takes seconds: only for this budget

    from llm import model as models
    from llm import tokenizer
    from llm.trainer.throughput import flops_per_token

    special = tokenizer.special(shards.parent("tokenizer").path)
    with torch.device("meta"):
        model = models.build(config.model, vocab_size=shards.results["vocab_size"], special=special)
    return flops_per_token(model, model.config, sequence_length=config.data.sequence_length)
