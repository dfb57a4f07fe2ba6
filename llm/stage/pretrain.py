"""Shards -> a causal language model in Hugging Face format; tokenizer and shards are made on the way if missing."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm.config.stages import PretrainStage, Reuse, ShardsStage
from llm.config.training import Schedule, Trainable
from llm.config.tuning import Method
from llm.data.mixture import rows_of, say_epochs, sources_of
from llm.data.rows import length_of_bytes
from llm.errors import ConfigError
from llm.run.console import log
from llm.run.files import digest_of, whole_folder
from llm.run.making import Outcome, Plan
from llm.run.models import TOKENIZER, folder_of
from llm.run.record import METRICS, SAMPLES, VALIDATION, differences
from llm.run.runs import Run, candidates, check_files
from llm.stage import Runs, Stage, Step, step_of
from llm.stage.estimate import Estimate
from llm.stage.tokenizer import vocab_size
from llm.stage.training import measured_names, model_digest, train
from llm.tokenizer.folder import Special, load_tokenizer, read_special, tokens_of

FORMAT_VERSION = 2
OF_NEW_ROWS = (Trainable.new_rows, Trainable.lora)  # which train these alone of the embeddings


def parents(config: PretrainStage) -> dict[str, Step]:
    """Its shards, whose tokenizer has to be that of a model to go on from: known before a shard is written."""
    if config.model.needs_library:
        from llm.model import check_architecture  # takes seconds: only for what the schema cannot know

        check_architecture(config.model)
    shards = step_of(ShardsStage(stage="shards", outputs=config.outputs, tokenizer=config.tokenizer, data=config.data))
    if config.model.path is not None:
        from llm import model as models

        known = replace(config, model=models.with_settings_of_folder(config.model))  # refuses rows that are too long
        shards.parents["tokenizer"].check = lambda made: _check_tokenizer(known, made.path)
    return {"shards": shards}


def _check_tokenizer(config: PretrainStage, folder: Path) -> None:
    """Refuse a tokenizer that is not the model's, or has no new tokens where they alone are to be trained."""
    from llm import model as models

    models.check_tokenizer(config.model, folder)
    if config.model.trainable is Trainable.new_rows and not _new_ids(config, folder):
        raise ConfigError(
            f"model.trainable=new_rows: the tokenizer has no token that {_known_folder(config)} lacks. Set "
            "tokenizer=extend with tokenizer.path=<the model that it was before>, or another model.trainable."
        )


def _new_ids(config: PretrainStage, tokenizer_folder: Path) -> list[int]:
    """Of the tokens that the base's own tokenizer lacks: in a later phase too, of tokenizer=extend."""
    known = tokens_of(_known_folder(config))
    return sorted(number for text, number in tokens_of(tokenizer_folder).items() if text not in known)


def _known_folder(config: PretrainStage) -> Path:
    key = "tokenizer.path" if config.tokenizer.new_tokens else "model.path"
    named = config.tokenizer.path if config.tokenizer.new_tokens else config.model.path
    return folder_of(str(named), key=key, file=TOKENIZER)


def plan(config: PretrainStage, parents: Runs) -> Plan:
    shards = parents["shards"]
    config, source = _computed(config, shards), {}
    if config.model.path is not None:
        from llm.model import digest_of_folder

        source = {"model": digest_of_folder(config.model)}
        if config.model.trainable in OF_NEW_ROWS and config.model.resize_vocabulary:
            source["new_rows"] = digest_of(_new_ids(config, shards.parent("tokenizer").path))
    made: Plan = Plan(
        config=config,
        default_name=f"{config.model.label}-{config.tokenizer.name}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={"shards": shards.digest} | source,
        folders={"shards": str(shards.path), "tokenizer": str(shards.parent("tokenizer").path)},
        prepare=lambda folder: copy_beginning(folder, made, config),
        work=lambda run: _train(run, config, shards),
        logs=True,
    )
    return made


def _train(run: Run, config: PretrainStage, shards: Run) -> Outcome | None:
    import torch  # these take seconds, which a run that is already finished need not wait for

    from llm import model as models
    from llm.trainer.fit import require_rows

    check_files(shards.parent("tokenizer"), under="tokenizer")
    tokenizer_folder = shards.parent("tokenizer").path
    rows, num_tokens = _rows(config, shards), shards.results["vocab_size"]
    require_rows(rows["train"], config.trainer)
    torch.manual_seed(config.seed)
    model = models.build(
        config.model,
        vocab_size=num_tokens,
        special=read_special(tokenizer_folder),
        tokenizer_folder=tokenizer_folder,
        tuning=config.lora,
    )
    models.require_isolation(model, vocab_size=num_tokens, architecture=model.config.model_type)
    num_parameters = models.count_parameters(model)
    log.info(
        "%s: %.2f million parameters; %d training rows of %d tokens (data.packing=%s), %.1f %% padding",
        *(config.model.label, num_parameters / 1e6, len(rows["train"]), config.data.sequence_length),
        *(config.data.packing.value, 100 * rows["train"].padding_share),
    )
    epochs = {}
    if rows["train"].parts:
        epochs = say_epochs(rows["train"], num_steps=config.trainer.max_steps, batch_size=config.data.batch_size)
    facts: dict[str, Any] = {"parameters": num_parameters}
    model, save = _trainable(config, model, tokenizer_folder)
    if config.model.trainable is not None:
        facts["trainable_parameters"] = trained = models.count_parameters(model, trainable=True)
        log.info("model.trainable=%s: %d parameters are trained", config.model.trainable.name, trained)
    results = train(
        run,
        config,
        model=model,
        rows=rows,
        tokenizer_folder=tokenizer_folder,
        prompts=_prompts(config, tokenizer_folder),
        save=partial(save, model),
        save_as="model",
        facts=facts | {"unigram_bits_per_byte": shards.results["train"]["unigram_bits_per_byte"]} | epochs,
    )
    if results is None:
        return None
    return Outcome(results=results, digest=model_digest(run.path / "model"), objective=results["val/bits_per_byte"])


def _trainable(config: PretrainStage, model: Any, tokenizer_folder: Path | None) -> tuple[Any, Callable[..., None]]:
    """(the model with what is not to be trained frozen, what saves it whole)."""
    from llm import model as models

    if (trainable := config.model.trainable) is None:
        return model, models.save
    new_ids: list[int] = []
    if trainable in OF_NEW_ROWS and config.model.resize_vocabulary:
        # of an outline their number counts alone: without a folder every row may be new
        of_all = model.get_input_embeddings().weight.shape[0]
        guessed = range(of_all - (config.tokenizer.new_tokens or of_all), of_all)
        new_ids = _new_ids(config, tokenizer_folder) if tokenizer_folder else [*guessed]
    model = models.train_only(model, trainable, config.lora, new_token_ids=new_ids)
    return model, models.save if trainable is Trainable.embeddings else models.save_merged


def _rows(config: PretrainStage, shards: Run) -> dict[str, Any]:
    """Those of both splits."""
    sources, data = sources_of(shards), config.data
    train = rows_of(sources, "train", sequence_length=data.sequence_length, packing=data.packing, parts=data.parts)
    return {"train": train, "held_out": rows_of(sources, "held_out", sequence_length=data.sequence_length)}


def _prompts(config: PretrainStage, tokenizer_folder: Path) -> list[tuple[str, list[int]]]:
    loaded, begin = load_tokenizer(tokenizer_folder), read_special(tokenizer_folder).bos_id
    texts = config.trainer.sample_prompts
    return [(text, [begin, *loaded.encode(text, add_special_tokens=False).ids]) for text in texts]


def _computed(config: PretrainStage, shards: Run) -> PretrainStage:
    """The config with the sizes that the folder of model.path has, the tokens of a row, and the steps of a budget."""
    model, data, text = config.model, config.data, shards.results["train"]
    if data.sequence_bytes is not None:
        length = length_of_bytes(data.sequence_bytes, tokens=text["tokens"], raw_bytes=text["raw_bytes"])
        data = replace(data, sequence_length=length)
    if model.path is not None:
        from llm.model import with_settings_of_folder

        model = with_settings_of_folder(model)
    config = replace(config, model=model, data=data)
    return replace(config, trainer=replace(config.trainer, max_steps=steps_within_budget(config, shards)))


def steps_within_budget(config: PretrainStage, shards: Run) -> int:
    """Optimizer steps whose tokens use up a budget, to the nearest; trainer.max_steps where none is set.

    Bytes are those of the raw text of the training documents: a tokenizer that cuts finer gets more steps for them.

    Raises:
        ConfigError: the budget does not pay for half a step.
    """
    trainer, train = config.trainer, shards.results["train"]
    step_tokens = config.data.batch_size * config.data.sequence_length
    if trainer.max_bytes is not None:
        key, amount, step = "max_bytes", float(trainer.max_bytes), step_tokens * train["raw_bytes"] / train["tokens"]
    elif trainer.max_tokens is not None:
        key, amount, step = "max_tokens", float(trainer.max_tokens), float(step_tokens)
    elif trainer.max_flops is not None:
        from llm.model import flops_per_token

        model = outline(config, {"shards": shards})
        of_token = flops_per_token(model, model.config, sequence_length=config.data.sequence_length)
        key, amount, step = "max_flops", trainer.max_flops, step_tokens * of_token
    else:
        return trainer.max_steps
    steps = round(amount / step)
    if steps < 1:
        raise ConfigError(
            f"trainer.{key}={amount:g} does not pay for a step, which takes {step:.4g}. Raise it, or lower "
            "data.batch_size or data.sequence_length."
        )
    return steps


def outline(config: PretrainStage, parents: Runs) -> Any:
    """The model that would be trained, on the meta device; without shards as large as the tokenizer is to be."""
    import torch  # takes seconds

    from llm import model as models

    num_tokens = parents["shards"].results["vocab_size"] if parents else vocab_size(config.tokenizer)
    special = Special(bos_id=0, eos_id=0, pad_id=0, tokens=())
    lora = config.lora
    if lora and lora.method is Method.pissa:  # begun in a way that no shape shows
        config = replace(config, lora=replace(lora, method=Method.lora))
    with torch.device("meta"):
        model = models.build(config.model, vocab_size=num_tokens, special=special)
        if lora:
            model = model.to(getattr(torch, lora.base_precision.value))
        return _trainable(config, model, None)[0]


def estimate(config: PretrainStage, parents: Runs) -> Estimate:
    config, text = _computed(config, parents["shards"]), parents["shards"].results
    tokens = config.trainer.max_steps * config.data.batch_size * config.data.sequence_length
    epochs = tokens / text["train"]["tokens"]
    return Estimate(config=config, epochs=epochs, is_whole=text.get("is_whole", True))


def result_names(config: PretrainStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    epochs = [f"epochs/{part}" for part in config.data.parts or ()]
    of_part = [] if config.model.trainable is None else ["trainable_parameters"]
    return [*measured_names(config), "unigram_bits_per_byte", *of_part, *epochs]


# A longer run of a warmup-stable-decay schedule begins as a shorter one does: they are the same run, to the last bit,
# until the shorter one begins to decay.


LENGTH = "settings.trainer.max_steps"


def copy_beginning(folder: Path, plan: Plan, config: PretrainStage) -> None:
    """Copy the latest checkpoint of the stable phase that another run of these settings left, and what led there."""
    checkpoints = folder / "checkpoints"
    if config.optimizer.schedule is not Schedule.wsd or config.reuse is Reuse.never or any(checkpoints.glob("*")):
        return
    from llm.trainer.checkpoint import find_fault, step_of  # takes seconds

    found = [path for path in _shared_checkpoints(plan, config) if not find_fault(path)]
    if not found:
        return
    newest = max(found, key=step_of)
    other = newest.parents[1]
    for name in (METRICS, SAMPLES, VALIDATION):  # cut to where the checkpoint was, when training goes on
        if (other / name).exists():  # a run of an older version has no validation.jsonl
            shutil.copyfile(other / name, folder / name)
    with whole_folder(checkpoints / newest.name) as target:
        shutil.copytree(newest, target, dirs_exist_ok=True)
    log.info("until step %d this is %s, whose checkpoint it goes on from", step_of(newest), other)


def _shared_checkpoints(plan: Plan, config: PretrainStage) -> Iterator[Path]:
    from llm.optimizer import extension_step
    from llm.trainer.checkpoint import PREFIX, step_of

    for other in candidates(config.outputs, plan.stage):
        identity = other.record.get("identity") or {}
        if {key for key, *_ in differences(identity, plan.identity)} == {LENGTH}:
            lengths = (config.trainer.max_steps, identity["settings"]["trainer"]["max_steps"])
            until = min(extension_step(config.optimizer, max_steps=length) or 0 for length in lengths)
            yield from (path for path in (other.path / "checkpoints").glob(f"{PREFIX}*") if step_of(path) <= until)


STAGE = Stage(
    parents=parents,
    plan=plan,
    result_names=result_names,
    estimate=estimate,
    outline=outline,
    loads=("llm.model", "llm.trainer.fit", "llm.logger.live"),
)
