"""A pretrained or fine-tuned run -> a folder that transformers loads without us, proved to be the same model."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm import tokenizer
from llm.config.export import GgufType, WeightType
from llm.config.stages import ExportStage
from llm.environment import process_rank
from llm.errors import ConfigError, UnequalError
from llm.run.console import log
from llm.run.files import digest_of, sha256_of, whole_folder, write_text
from llm.run.making import Outcome, Plan
from llm.run.metrics import SAMPLES
from llm.run.models import Model, model_of, own_folder
from llm.run.runs import Run, check_files, find_run, metrics_of
from llm.stage import Runs, Stage, Work
from llm.stage.estimate import Estimate
from llm.stage.training import prompts_of

if TYPE_CHECKING:
    from llm.export import Trial

FORMAT_VERSION = 2
MOST_PROMPTS = 8
FILE_FOR_LLAMA_CPP = "model.gguf"
GGUF_SHARE = {GgufType.f32: 1.0, GgufType.f16: 0.5, GgufType.bf16: 0.5, GgufType.q8_0: 34 / 128}  # of fp32's bytes


def plan(config: ExportStage, parents: Runs) -> Work:
    source = find_run(config.outputs, config.run, key="run")
    model = model_of(source).check()
    _check(config, source, model)
    return Work(
        plan=Plan(
            config=config,
            default_name=model.name,
            format_version=FORMAT_VERSION,
            parents={"run": source.digest, "base": source.record["identity"]["parents"].get("base", source.digest)},
            folders={"run": str(source.path)},
        ),
        do=lambda run: _export(run, config, source, model),
        check=lambda run: _check_made(config, run),
        waits=True,
    )


def estimate(config: ExportStage, parents: Runs) -> Estimate:
    """The files that it writes: the weights in its dtype, from those of the runs, which are in fp32."""
    source, settings = find_run(config.outputs, config.run, key="run"), config.export
    folder = model_of(source).weights if settings.merge else own_folder(source)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    share = 1.0 if settings.dtype is WeightType.fp32 else 0.5
    disk = {"model" if settings.merge else "adapter": weights * share}
    if settings.gguf is not None:
        disk["model.gguf"] = weights * GGUF_SHARE[settings.gguf]
    return Estimate(disk=disk)


def result_names(config: ExportStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    apart = ["max_logit_difference", "median_logit_difference", "rounding"]
    compared = ["positions_compared", "texts_compared", "texts_parted_at_ties", "parameters"]
    return [*apart, *compared, *(["max_logit_difference_of_merge"] if config.export.merge else [])]


def _check(config: ExportStage, source: Run, model: Model) -> None:
    """Refuse, before any work, what this run cannot be exported as."""
    if not config.export.merge and model.adapter is None:
        raise ConfigError(
            f"export.merge=false is for a run with an adapter, and {source.path} is a {source.stage} run with a whole "
            "model. Leave it out."
        )
    if config.export.gguf is not None:
        _require_gguf(config, model)


def _require_gguf(config: ExportStage, model: Model) -> "tokenizer.LlamaCppForm":
    """How llama.cpp cuts text as the run's tokenizer does."""
    assert config.export.gguf is not None
    asked = f"export.gguf={config.export.gguf.name}"
    if find_spec("gguf") is None:
        raise ConfigError(f"{asked} needs the package gguf. Install the extra: pip install -e '.[gguf]'.")
    from llm.export.gguf import require_gguf  # with transformers: takes seconds

    return require_gguf(model.weights, tokenizer.load(model.tokenizer), asked=asked)


def _check_made(config: ExportStage, made: Run) -> None:
    """Refuse a difference past the bound that is asked for: it may have been made under a wider one."""
    found, allowed = config.export.judged(made.results)
    if not found <= allowed:
        raise UnequalError(
            f"{made.path} was exported with logits that are {found:.3g} apart, and {allowed:.3g} is allowed. Set "
            "export.dtype=fp32, or allow more by export.max_logit_difference."
        )
    if process_rank() == 0:
        check_files(made)


def _export(run: Run, config: ExportStage, source: Run, model: Model) -> Outcome:
    from llm import export  # takes seconds, which an export that is already finished need not wait for

    settings = config.export
    special = tokenizer.special(model.tokenizer)
    trial, loaded = _try_out(source, model)
    with whole_folder(run.path / ("model" if settings.merge else "adapter")) as target:
        export.write_tokenizer(model.tokenizer, target, special, positions=model.positions)
        if settings.merge or model.adapter is None:
            proof = export.export_model(loaded, target, trial, special, settings)
        else:
            proof = export.export_adapter(model.adapter, model.weights, target, trial, special, settings)
        facts = export.Facts(
            is_adapter=not settings.merge,
            base_model=settings.base_model or _name_of_base(source),
            architecture=loaded.config.model_type,
            dtype=settings.dtype.value,
            positions=model.positions,
            has_chat=source.stage == "finetune",
            file_for_llama_cpp=FILE_FOR_LLAMA_CPP if settings.gguf else None,
            proof=proof,
        )
        if settings.gguf is not None:
            _write_gguf(target, config, model)
        for name, text in export.card(source, facts).items():
            write_text(target / name, text)
        digest = digest_of([[path.name, sha256_of(path)] for path in sorted(target.iterdir())])
    before = "" if settings.dtype is WeightType.fp32 else "before rounding "
    texts = f"; {before}the same text after {count} held-out prompts" if (count := proof["texts_compared"]) else ""
    log.info(
        "logits at most %.2g from those of %s at %d positions%s",
        proof["max_logit_difference"],
        source.path.name,
        proof["positions_compared"],
        texts,
    )
    return Outcome(results=proof, digest=digest)


def _write_gguf(folder: Path, config: ExportStage, model: Model) -> None:
    from llm.export.gguf import write_gguf

    assert config.export.gguf is not None
    form = _require_gguf(config, model)
    write_gguf(
        folder,
        folder / FILE_FOR_LLAMA_CPP,
        form,
        tokenizer.special(model.tokenizer),
        kind=config.export.gguf,
        name=model.name,
        positions=model.positions,
    )
    log.info("%s: read back and compared tensor by tensor", FILE_FOR_LLAMA_CPP)
    if form.needs_nfc:
        log.info("llama.cpp does not normalize text: give it text in NFC, as keyboards and most files have it")


def _try_out(source: Run, model: Model) -> tuple["Trial", Any]:
    """(what the run's model makes of the run's prompts, that model in fp32)."""
    from llm import export
    from llm import model as models

    vocabulary, loaded = tokenizer.load(model.tokenizer), models.load_for_use(model)
    special = tokenizer.special(model.tokenizer)
    added = [number for token in special.tokens if (number := vocabulary.token_to_id(token)) is not None]
    return export.try_out(loaded, _prompts(source, model.tokenizer), special, added, most=model.positions), loaded


def _name_of_base(source: Run) -> str:
    """Of the folder that a run was tuned from, or of the run itself."""
    return source.places.get("base", source.path).resolve().name


def _prompts(source: Run, folder: Path) -> list[list[int]]:
    """The prompts that the run wrote after at its validations, as ids: of a tuned run, questions that it held out."""
    samples = metrics_of(source, SAMPLES)
    texts = list(dict.fromkeys(sample["prompt"] for sample in samples))[:MOST_PROMPTS]
    if source.stage == "pretrain":
        loaded, begin = tokenizer.load(folder), tokenizer.special(folder).bos_id
        return [[begin, *loaded.encode(text, add_special_tokens=False).ids] for text in texts]
    asked = [[{"role": "user", "content": text}] for text in texts]
    return [ids for _, ids in prompts_of(folder, asked)]


STAGE = Stage(plan=plan, result_names=result_names, estimate=estimate, loads=("llm.model", "llm.export"))
