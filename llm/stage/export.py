"""A pretrained or fine-tuned run -> a folder that transformers loads without us, proved to be the same model."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm import tokenizer
from llm.config import ExportStage
from llm.errors import ConfigError, UnequalError
from llm.run import (
    Outcome,
    Plan,
    Run,
    base_of,
    check_files,
    digest_of,
    find_model_run,
    log,
    make,
    process_rank,
    read_metrics,
    sha256_of,
    tokenizer_folder,
    usable_positions,
    weights_folder,
    whole_folder,
    write_text,
)

if TYPE_CHECKING:
    from llm.export import Trial

FORMAT_VERSION = 1
MOST_PROMPTS = 8
FILE_FOR_LLAMA_CPP = "model.gguf"


def run(config: ExportStage) -> Run:
    """The finished export of a config, with its files checked and its difference within the bound that is asked for."""
    source = find_model_run(config.outputs, config.run, done_to_it="exported")
    base = base_of(source)
    check_files(base, under="model/")
    check_files(source, under=f"{weights_folder(source).name}/")
    _check(config, source, base)
    plan = Plan(
        config=config,
        default_name=str(source.record["name"]),
        format_version=FORMAT_VERSION,
        parents={"run": source.digest, "base": base.digest},
        folders={"run": str(source.path)},
    )
    made = make(plan, lambda run: _export(run, config, source, base), wait=True)
    _require_bound(config, made)  # it may have been made under a wider one
    if process_rank() == 0:
        check_files(made)
    return made


def _check(config: ExportStage, source: Run, base: Run) -> None:
    """Refuse, before any work, what this run cannot be exported as."""
    if not config.export.merge and weights_folder(source).name != "adapter":
        raise ConfigError(
            f"export.merge=false is for a run with an adapter, and {source.path} is a {source.stage} run with a whole "
            "model. Leave it out."
        )
    if config.export.gguf is not None:
        _require_gguf(config, source, base)


def _require_gguf(config: ExportStage, source: Run, base: Run) -> "tokenizer.LlamaCppForm":
    """How llama.cpp cuts text as the run's tokenizer does."""
    assert config.export.gguf is not None
    asked = f"export.gguf={config.export.gguf.name}"
    if find_spec("gguf") is None:
        raise ConfigError(f"{asked} needs the package gguf. Install the extra: pip install -e '.[gguf]'.")
    from llm.export.gguf import require_gguf  # with transformers: takes seconds

    return require_gguf(base.path / "model", tokenizer.load(tokenizer_folder(source)), asked=asked)


def _require_bound(config: ExportStage, made: Run) -> None:
    found = made.results["max_logit_difference"]
    if not found <= config.export.bound:
        raise UnequalError(
            f"{made.path} was exported with logits that are {found:.3g} apart, and export.max_logit_difference="
            f"{config.export.bound:g} is asked for. Set export.dtype=fp32, or allow more."
        )


def _export(run: Run, config: ExportStage, source: Run, base: Run) -> Outcome:
    from llm import export  # takes seconds, which an export that is already finished need not wait for

    settings, words = config.export, tokenizer_folder(source)
    special, positions = tokenizer.special(words), usable_positions(base)
    trial, model = _try_out(source, base)
    with whole_folder(run.path / ("model" if settings.merge else "adapter")) as target:
        export.write_tokenizer(words, target, special, positions=positions)
        if settings.merge:
            proof = export.export_model(model, target, trial, special, settings)
        else:
            proof = export.export_adapter(words, base.path / "model", target, trial, special, settings)
        facts = export.Facts(
            is_adapter=not settings.merge,
            base_model=settings.base_model or base.path.name,
            architecture=str(base.config["model"]["architecture"]),
            dtype=settings.dtype.value,
            positions=positions,
            has_chat=source.stage == "finetune",
            file_for_llama_cpp=FILE_FOR_LLAMA_CPP if settings.gguf else None,
            proof=proof,
        )
        if settings.gguf is not None:
            _write_gguf(target, config, source, base)
        for name, text in export.card(source, base, facts).items():
            write_text(target / name, text)
        digest = digest_of([[path.name, sha256_of(path)] for path in sorted(target.iterdir())])
    log.info(
        "logits at most %.2g from those of %s at %d positions; the same text after %d held-out prompts",
        proof["max_logit_difference"],
        source.path.name,
        proof["positions_compared"],
        proof["texts_compared"],
    )
    return Outcome(results=proof, digest=digest)


def _write_gguf(folder: Path, config: ExportStage, source: Run, base: Run) -> None:
    from llm.export.gguf import write_gguf

    assert config.export.gguf is not None
    form = _require_gguf(config, source, base)
    write_gguf(
        folder,
        folder / FILE_FOR_LLAMA_CPP,
        form,
        tokenizer.special(tokenizer_folder(source)),
        kind=config.export.gguf,
        name=str(source.record["name"]),
        positions=usable_positions(base),
    )
    log.info("%s: read back and compared tensor by tensor", FILE_FOR_LLAMA_CPP)
    if form.needs_nfc:
        log.info("llama.cpp does not normalize text: give it text in NFC, as keyboards and most files have it")


def _try_out(source: Run, base: Run) -> tuple["Trial", Any]:
    """(what the run's model makes of the run's prompts, that model in fp32)."""
    from llm import export

    words, model = tokenizer_folder(source), _open(source, base)
    special = tokenizer.special(words)
    loaded = tokenizer.load(words)
    added = [number for token in special.tokens if (number := loaded.token_to_id(token)) is not None]
    return export.try_out(model, _prompts(source), special, added, most=usable_positions(base)), model


def _open(source: Run, base: Run) -> Any:
    from llm import model as models

    folder = weights_folder(source)
    if folder.name == "model":
        return models.load(folder).eval()
    return models.load_adapter(models.load(base.path / "model"), folder).eval()


def _prompts(source: Run) -> list[list[int]]:
    """The prompts that the run wrote after at its validations, as ids: of a tuned run, questions that it held out."""
    words = tokenizer_folder(source)
    samples = read_metrics(source.path / "samples.jsonl")
    texts = list(dict.fromkeys(sample["prompt"] for sample in samples))[:MOST_PROMPTS]
    if source.stage == "pretrain":
        loaded, begin = tokenizer.load(words), tokenizer.special(words).bos_id
        return [[begin, *loaded.encode(text, add_special_tokens=False).ids] for text in texts]
    chat = tokenizer.load_chat(words)
    asked = [[{"role": "user", "content": text}] for text in texts]
    return [list(chat.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]) for turns in asked]
