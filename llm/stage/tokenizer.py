"""Documents -> a trained tokenizer, and a report on what it keeps of held-out text."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

from tokenizers import Tokenizer

from llm.config.data import DataConfig
from llm.config.stages import Reuse, TokenizerStage
from llm.config.tokenizer import TokenizerConfig
from llm.data.documents import read_texts
from llm.data.mixture import texts_in_proportion
from llm.errors import DataError
from llm.run.console import log
from llm.run.devices import peak_memory_bytes
from llm.run.files import digest_of, whole_files, write_json
from llm.run.making import Outcome, Plan
from llm.run.models import TOKENIZER, folder_of
from llm.run.runs import Run
from llm.stage import Runs, Stage, Step, documents, run_step, step_of
from llm.stage.estimate import Estimate, estimate_text, estimated_run, guess_bytes_per_token
from llm.tokenizer.extend import extend
from llm.tokenizer.folder import digest, load_tokenizer, read_pretrained, save
from llm.tokenizer.llama_cpp import llama_cpp_form
from llm.tokenizer.report import Report, measure
from llm.tokenizer.training import Sample, cut, installed_analyser, train, why_not_cut, why_not_reproducible

FORMAT_VERSION = 4


def parents(config: TokenizerStage) -> dict[str, Step]:
    """The documents that it learns from: of a mixture those of each part, or of the one that is named."""
    return documents.steps(_data(config), outputs=config.outputs)


def plan(config: TokenizerStage, parents: Runs) -> Plan:
    config = replace(config, data=_data(config))
    source = _source(config.tokenizer)
    return Plan(
        config=config,
        default_name=f"{config.tokenizer.label}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={role: run.digest for role, run in parents.items()} | source,
        folders={role: str(run.path) for role, run in parents.items()},
        work=lambda run: _train(run, config, parents),
        check=lambda run: _refuse_lossy(config.tokenizer, run.results),  # it may have been made with allow_lossy
    )


def estimate(config: TokenizerStage, parents: Runs) -> Estimate:
    size = vocab_size(config.tokenizer)
    guessed = {"vocab_size": size, "bytes_per_token": guess_bytes_per_token(size)}
    return replace(estimate_text(parents, estimated_run("tokenizer", guessed)), results=guessed)


def _data(config: TokenizerStage) -> DataConfig:
    part = config.data.tokenizer_part
    return config.data.part(part) if part is not None else config.data


def _source(config: TokenizerConfig) -> dict[str, str]:
    """The digest of what a tokenizer that is read, not trained, is made from: tokens and roles of special ones."""
    if config.path is None:
        return {}
    made, roles = read_pretrained(_folder(config), config)
    return {"tokenizer": digest_of([json.loads(made.to_str()), roles])}


def vocab_size(config: TokenizerConfig) -> int:
    """The size that is asked for; of a tokenizer that is read, the size it has."""
    if config.path is None:
        return config.vocab_size
    return int(read_pretrained(_folder(config), config)[0].get_vocab_size()) + config.size


def _folder(config: TokenizerConfig) -> Path:
    assert config.path is not None
    return folder_of(config.path, key="tokenizer.path", file=TOKENIZER)


def result_names(config: TokenizerStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    return [name for name, kind in get_type_hints(Report).items() if kind in (int, float, float | None)]


def _train(run: Run, config: TokenizerStage, parents: Runs) -> Outcome:
    made_of, notes = documents.opened(parents), {}
    base: Tokenizer | None = None
    if config.tokenizer.path is None:
        roles = config.tokenizer.roles
    else:
        base, roles = read_pretrained(folder := _folder(config.tokenizer), config.tokenizer)
        log.info("taken from %s: %s", folder, ", ".join(f"{role} {token}" for role, token in roles.items()))
        notes["taken_from"] = str(folder)
    if base is None or config.tokenizer.new_tokens:
        made, learned = _cut(config) or _learn(config, parents, made_of, base)
        notes |= learned
    else:
        made = base
    with whole_files(run.path) as target:
        save(made, roles, target)
    loaded = load_tokenizer(run.path)
    held_out = (text for folder in made_of.values() for text in read_texts(folder, "held_out"))
    report = measure(loaded, held_out, morphemes=installed_analyser())
    results = asdict(report)
    write_json(run.path / "report.json", results)
    _say(config.tokenizer, loaded, report)
    _refuse_lossy(config.tokenizer, results)
    form = llama_cpp_form(loaded)
    if isinstance(form, str):
        log.info("models with it cannot be written for llama.cpp (export.gguf): %s", form)
        notes["llama_cpp"] = f"no: {form}"
    else:
        log.info("models with it can be written for llama.cpp (export.gguf), whose %s it is", form.model)
        notes["llama_cpp"] = form.model
    return Outcome(results=results, digest=digest(run.path), notes=notes)


def _cut(config: TokenizerStage) -> tuple[Tokenizer, dict[str, Any]] | None:
    """The tokenizer cut from a larger one, which is trained if it is missing; None where that is not asked for."""
    wanted = config.tokenizer
    if wanted.ladder is None or wanted.ladder == wanted.size:
        return None
    if wanted.path is None and (reason := why_not_cut(wanted)):
        log.info("not cut from tokenizer.ladder=%d, but trained by itself: %s", wanted.ladder, reason)
        return None
    size: dict[str, Any] = {wanted.size_name: wanted.ladder}
    larger = replace(wanted, **size, ladder=None)
    parent = run_step(step_of(replace(config, tokenizer=larger, reuse=Reuse.auto, logger=None)), wait=True)
    log.info("cut from %s, which holds it", parent.path)
    trained = cut(load_tokenizer(parent.path), vocab_size(wanted))
    trained.encode_special_tokens = False
    return trained, parent.record["notes"] | {"cut_from": str(parent.path)}


def _learn(
    config: TokenizerStage, parents: Runs, made_of: dict[str, Path], base: Tokenizer | None
) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer trained on the text, or the base with new tokens that it learns from it; and what to note of that."""

    def texts() -> Iterator[str]:
        if not config.data.is_mixture:
            return read_texts(made_of[""], "train")
        sizes = {name: run.results["train"]["raw_bytes"] for name, run in documents.of_parts(parents).items()}
        return texts_in_proportion(made_of, sizes, config.data.parts)

    sample = Sample(texts, config.tokenizer.sample_bytes, config.tokenizer.sample_seed)
    notes: dict[str, Any] = {}
    if base is None:
        trained = train(config.tokenizer, sample)
    else:
        trained, notes = _extend(config.tokenizer, base, sample)
    return trained, notes | {
        "learned_from_bytes": sample.raw_bytes,
        "learned_from_documents": sample.documents,
        "sampled_from_bytes": sample.total_bytes,  # None: all of the training text was taken
        "peak_memory_bytes": peak_memory_bytes(),  # of the process, up to here
        "reproducible": base is not None or why_not_reproducible(config.tokenizer) is None,
    }


def _extend(config: TokenizerConfig, base: Tokenizer, sample: Sample) -> tuple[Tokenizer, dict[str, Any]]:
    assert config.new_tokens is not None
    made = extend(base, lambda: iter(sample), new_tokens=config.new_tokens, min_frequency=config.min_frequency)
    log.info("%d new tokens, the first %r; %d are characters", len(made.tokens), made.tokens[:5], made.characters)
    return made.tokenizer, {"new_tokens": len(made.tokens), "new_characters": made.characters}


def _say(config: TokenizerConfig, made: Tokenizer, report: Report) -> None:
    """What it is in a line, and a warning of each thing that another choice would mend."""
    size = report.vocab_size
    log.info(
        "%d tokens; held-out text: %.2f tokens per eojeol, %.2f bytes per token, %.2f %% of lines exact",
        *(size, report.tokens_per_eojeol, report.bytes_per_token, 100 * report.exact_round_trip),
    )
    if not report.is_lossless:
        log.warning("this tokenizer is lossy; the first line that does not come back: %s", report.failing_lines[:1])
    if config.path is None and size > config.vocab_size:
        log.warning(
            "%d tokens are more than tokenizer.vocab_size=%d: the text has so many characters. Set "
            "tokenizer.limit_alphabet to keep fewer",
            *(size, config.vocab_size),
        )
    if config.path is None and size >= config.vocab_size and json.loads(made.to_str())["model"].get("merges") == []:
        log.warning(
            "tokenizer.vocab_size=%d leaves no room for merges: special tokens, bytes and characters alone are %d "
            "tokens. Set tokenizer.vocab_size=%d or more",
            *(config.vocab_size, size, 2 ** (3 * size // 2).bit_length()),  # at least half as many merges
        )


def _refuse_lossy(config: TokenizerConfig, results: dict[str, Any]) -> None:
    if config.allow_lossy or results["lossless_documents"] == 1:
        return
    characters = ", ".join(f"{char!r} {times} times" for char, times in [*results["lost_characters"].items()][:5])
    line = next(iter(results["failing_lines"]), None)
    where = f"the first line is {line[:80]!r}" if line else "each line alone does, but not the line feeds"
    raise DataError(
        f"tokenizer={config.name} loses text: {100 - 100 * results['lossless_documents']:.3g} % of the held-out "
        f"documents do not come back; {where}; characters lost: {characters or 'none'}. Choose one that keeps all "
        "(tokenizer=char_bpe or byte_bpe), or set tokenizer.allow_lossy=true."
    )


STAGE = Stage(parents=parents, plan=plan, result_names=result_names, estimate=estimate)
