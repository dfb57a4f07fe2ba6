"""Shards -> a causal language model in Hugging Face format; tokenizer and shards are made on the way if missing."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm import tokenizer
from llm.config import PretrainStage, ShardsStage, TokenizerStage
from llm.data import MixedRows, TokenRows, read_manifest
from llm.run import (
    NOT_MINE,
    Outcome,
    Plan,
    Run,
    check_files,
    digest_of,
    log,
    make,
    settled_trainer,
    sha256_of,
)
from llm.stage import shards as shards_stage
from llm.stage import tokenizer as tokenizer_stage
from llm.stage._budget import steps_within_budget
from llm.stage._extension import adopt_beginning
from llm.stage._mixture import mixed_rows, say_epochs
from llm.stage._training import measured_names, require_machine, train

FORMAT_VERSION = 2


def run(config: PretrainStage) -> Run:
    """The finished pretraining run of a config."""
    if not config.dry_run:  # which says what is lacking, for it may be about another machine
        require_machine(config.trainer)
    if config.model.needs_library:
        from llm.model import check_architecture  # takes seconds: only for what the schema cannot know

        check_architecture(config.model)
    source, config = _source(config)
    shards = shards_stage.run(ShardsStage(stage="shards", **_shared(config)), wait=True)
    config = replace(config, trainer=replace(config.trainer, max_steps=steps_within_budget(config, shards)))
    plan = Plan(
        config=config,
        default_name=f"{config.model.label}-{config.tokenizer.name}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={"shards": shards.digest} | source,
        folders={"shards": str(shards.path), "tokenizer": str(shards.parent("tokenizer").path)},
    )
    config = replace(config, trainer=settled_trainer(plan))
    plan = replace(plan, config=config)
    return make(
        plan,
        lambda run: _train(run, config, shards),
        prepare=lambda folder: adopt_beginning(folder, plan, config),
    )


def result_names(config: PretrainStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    epochs = [f"epochs/{part}" for part in config.data.parts or ()]
    return [*measured_names(config), "unigram_bits_per_byte", *epochs]


def _shared(config: PretrainStage) -> dict[str, Any]:
    """What the stages that are made on the way have of this one."""
    return {key: getattr(config, key) for key in ("outputs", "dry_run", "tokenizer", "data")}


def _source(config: PretrainStage) -> tuple[dict[str, str], PretrainStage]:
    """(the digest of the model to go on from, if there is one; the config with what that model is).

    Raises:
        ConfigError: there is none, or its tokenizer is another: known before a shard is written.
    """
    if config.model.path is None:
        return {}, config
    from llm import model as models

    config = replace(config, model=models.as_it_is(config.model))
    folder = models.folder_of_model(config.model)
    made = tokenizer_stage.run(TokenizerStage(stage="tokenizer", **_shared(config)), wait=True)
    models.check_tokenizer(config.model, folder, made.path)
    return {"model": models.digest_of_model(folder)}, config


def _train(run: Run, config: PretrainStage, shards: Run) -> Outcome:
    import torch  # these take seconds, which a run that is already finished need not wait for

    from llm import model as models
    from llm.trainer import require_rows

    check_files(shards.parent("tokenizer"), under="tokenizer")
    tokenizer_folder = shards.parent("tokenizer").path
    special = tokenizer.special(tokenizer_folder)
    rows, vocab_size = _rows(config, shards), shards.results["vocab_size"]
    require_rows(rows["train"], config.trainer)
    torch.manual_seed(config.seed)
    model = models.begin(config.model, tokenizer_folder=tokenizer_folder, vocab_size=vocab_size)
    models.require_isolation(model, vocab_size=vocab_size, architecture=model.config.model_type)
    for path in models.take_plain_paths_where_needed(model, vocab_size=vocab_size):
        log.info("%s: %s is not for this model, which is trained the plain way", model.config.model_type, path)
    log.info("%s: %.2f million parameters", config.model.label, models.count_parameters(model) / 1e6)
    log.info(
        "%d training rows of %d tokens (data.packing=%s), %.1f %% of them padding or the end of a document",
        len(rows["train"]),
        config.data.sequence_length,
        config.data.packing.value,
        100 * rows["train"].padding_share,
    )
    epochs = say_epochs(config, rows["train"]) if isinstance(rows["train"], MixedRows) else {}
    words = tokenizer.load(tokenizer_folder)
    results = train(
        run,
        config,
        model=model,
        model_config=model.config,
        rows=rows,
        tokenizer_folder=tokenizer_folder,
        prompts=[
            (prompt, [special.bos_id, *words.encode(prompt, add_special_tokens=False).ids])
            for prompt in config.trainer.sample_prompts
        ],
        save=partial(models.save, model),
        save_as="model",
        facts={
            "parameters": models.count_parameters(model),
            "unigram_bits_per_byte": shards.results["train"]["unigram_bits_per_byte"],
        }
        | epochs,
    )
    if results is None:
        return NOT_MINE
    return Outcome(results=results, digest=model_digest(run.path / "model"), objective=results["val/bits_per_byte"])


def _rows(config: PretrainStage, shards: Run) -> dict[str, Any]:
    """TokenRows, or MixedRows of a mixture, of both splits."""
    if config.data.is_mixture:
        return mixed_rows(config, shards)
    folder, length = shards.path / "shards", config.data.sequence_length
    manifest = read_manifest(folder)
    return {
        "train": TokenRows(folder, manifest, manifest.train, sequence_length=length, packing=config.data.packing),
        "held_out": TokenRows(folder, manifest, manifest.held_out, sequence_length=length),
    }


def model_digest(folder: Path) -> str:
    """Of the weights, the tokenizer and the chat template: what a fine-tuning depends on."""
    return digest_of([sha256_of(folder / n) for n in ("model.safetensors", "tokenizer.json", "chat_template.jinja")])
