"""A pretrained or fine-tuned run -> a folder that transformers loads without us, proved to be the same model."""

from importlib.util import find_spec
from pathlib import Path

from llm.config.evaluation import ExportConfig, GgufType, WeightType
from llm.config.stages import ExportStage
from llm.environment import process_rank
from llm.errors import ConfigError, UnequalError
from llm.run.console import log
from llm.run.files import whole_folder, write_text
from llm.run.making import Outcome, Plan
from llm.run.models import Model, digest_in, model_of, own_folder
from llm.run.record import SAMPLES
from llm.run.runs import Run, check_files, find_run, metrics_of
from llm.stage import Runs, Stage
from llm.stage.estimate import Estimate
from llm.stage.training import prompts_of
from llm.tokenizer.folder import load_tokenizer, read_special
from llm.tokenizer.llama_cpp import LlamaCppForm

FORMAT_VERSION = 4
MOST_PROMPTS = 8
GGUF_SHARE = {GgufType.f32: 1.0, GgufType.q8_0: 34 / 128, GgufType.q4_k_m: 1.15}  # of fp32's bytes; q4_k_m with f32's


def plan(config: ExportStage, parents: Runs) -> Plan:
    source = find_run(config.outputs, config.run, key="run")
    model = model_of(source).check()
    if not config.export.merge and model.adapter is None:
        raise ConfigError(
            f"export.merge=false is for a run with an adapter, and {source.path} is a {source.stage} run with a whole "
            "model. Leave it out."
        )
    form = _gguf_form(config.export, model)
    return Plan(
        config=config,
        default_name=model.name,
        format_version=FORMAT_VERSION,
        parents={"run": source.digest, "base": source.record["identity"]["parents"].get("base", source.digest)},
        folders={"run": str(source.path)},
        work=lambda run: _export(run, config.export, source, model, form),
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
        disk["model.gguf"] = weights * GGUF_SHARE.get(settings.gguf, 0.5)
    return Estimate(disk=disk)


def result_names(config: ExportStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    apart = ["max_logit_difference", "median_logit_difference", "rounding", "same_likeliest_token"]
    of_merge = ["max_logit_difference_of_merge"] if config.export.merge else []
    return [*apart, "positions_compared", "parameters", *of_merge]


def _gguf_form(config: ExportConfig, model: Model) -> LlamaCppForm | None:
    """How llama.cpp cuts text as the run's tokenizer does, where a file for it is asked for."""
    if config.gguf is None:
        return None
    if find_spec("gguf") is None:
        raise ConfigError(
            f"export.gguf={config.gguf.name} needs the package gguf. Install the extra: pip install -e '.[gguf]'."
        )
    from llm.export.gguf import require_gguf  # with transformers: takes seconds

    return require_gguf(model.weights, load_tokenizer(model.tokenizer), config.gguf)


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


def _export(run: Run, config: ExportConfig, source: Run, model: Model, form: LlamaCppForm | None) -> Outcome:
    from llm import model as models  # takes seconds, which an export that is already finished need not wait for
    from llm.export import card, weights

    loaded = models.load(model.weights, adapter=model.adapter).eval()
    architecture, folder = str(loaded.config.model_type), run.path / ("model" if config.merge else "adapter")
    reference = weights.reference_of(loaded, _prompts(source, model), model.tokenizer, positions=model.positions)
    with whole_folder(folder) as target:
        weights.write_tokenizer(model.tokenizer, target, positions=model.positions)
        if config.merge or model.adapter is None:
            special = read_special(model.tokenizer)
            proof = weights.export_model(loaded, target, reference, special, config)
        else:
            proof = weights.export_adapter(model.adapter, model.weights, target, reference, config)
        if form:
            _write_gguf(target, config, model, form, has_chat=source.stage == "finetune")
        text = card.card(source, model, config, architecture=architecture, proof=proof)
        write_text(target / "README.md", text)
    furthest, compared = proof["max_logit_difference"], proof["positions_compared"]
    log.info("logits at most %.2g from those of %s at %d positions", furthest, source.path.name, compared)
    return Outcome(results=proof, digest=digest_in(folder))


def _prompts(source: Run, model: Model) -> list[list[int]]:
    """What the run wrote after at its validations; of a tuned run these are questions that it held out."""
    texts = list(dict.fromkeys(sample["prompt"] for sample in metrics_of(source, SAMPLES)))[:MOST_PROMPTS]
    if source.stage == "finetune":
        return [ids for _, ids in prompts_of(model.tokenizer, [[{"role": "user", "content": t}] for t in texts])]
    special, vocabulary = read_special(model.tokenizer), load_tokenizer(model.tokenizer)
    return [[special.bos_id, *vocabulary.encode(text, add_special_tokens=False).ids] for text in texts]


def _write_gguf(folder: Path, config: ExportConfig, model: Model, form: LlamaCppForm, *, has_chat: bool) -> None:
    from llm.export.gguf import write_gguf
    from llm.export.ollama import modelfile

    assert config.gguf is not None
    path = write_gguf(folder, form, kind=config.gguf, name=model.name, positions=model.positions)
    write_text(folder / "Modelfile", modelfile(folder, positions=model.positions, has_chat=has_chat))
    log.info("%s: read back and compared tensor by tensor", path.name)
    if form.needs_nfc:
        log.info("llama.cpp does not normalize text: give it text in NFC, as keyboards and most files have it")


LOADS = ("llm.model", "llm.export.weights", "llm.export.card")
STAGE = Stage(plan=plan, result_names=result_names, estimate=estimate, loads=LOADS)
