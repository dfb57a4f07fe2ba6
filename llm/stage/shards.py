"""Text and a tokenizer -> shards of token ids; the tokenizer is trained on the way if it is missing.

Of a mixture each part has a shards run, which the part by itself would have under the same tokenizer; the mixture's own
run says where they are, and what they come to. Processes on several machines that make one mixture share its parts.
"""

from dataclasses import asdict, replace

from llm.config.stages import ShardsStage, TokenizerStage
from llm.data import (
    Copies,
    Corpus,
    available_cores,
    corpus_notes,
    count_copies,
    open_corpus,
    open_parts,
    write_shards,
)
from llm.data.mixed_shards import ROLE, sources_of, totals
from llm.run.console import log
from llm.run.files import digest_of
from llm.run.making import Outcome, Plan
from llm.run.runs import Run, check_files
from llm.stage import Runs, Stage, Step, Work, step_of
from llm.stage.estimate import Estimate, estimate_mixture, estimate_text

FORMAT_VERSION = 3


def parents(config: ShardsStage) -> dict[str, Step]:
    """Its tokenizer; of a mixture the shards of each part by that tokenizer as well."""
    if config.data.is_mixture:
        open_parts(config.data)  # or it is refused before there is a tokenizer
    tokenizer = step_of(
        TokenizerStage(stage="tokenizer", outputs=config.outputs, tokenizer=config.tokenizer, data=config.data)
    )
    parts = {name: replace(config, name=None, data=config.data.part(name), logger=None) for name in _parts(config)}
    of_parts = {f"{ROLE}{name}": Step(config=part, parents={"tokenizer": tokenizer}) for name, part in parts.items()}
    return {"tokenizer": tokenizer} | of_parts


def plan(config: ShardsStage, parents: Runs) -> Work:
    corpus = None if config.data.is_mixture else open_corpus(config.data)
    parts = {name: parents[f"{ROLE}{name}"] for name in _parts(config)}
    return Work(
        plan=Plan(
            config=config,
            default_name=f"{config.tokenizer.label}-{config.data.name}",
            format_version=FORMAT_VERSION,
            parents=({"data": corpus.digest()} if corpus else {}) | {role: run.digest for role, run in parents.items()},
            folders={role: str(run.path) for role, run in parents.items()},
        ),
        do=lambda run: _write(run, config, corpus, parents["tokenizer"]) if corpus else _add_up(config, parts),
        waits=corpus is None,  # all who shared a mixture come to this
    )


def estimate(config: ShardsStage, parents: Runs) -> Estimate:
    if config.data.is_mixture:
        return estimate_mixture({n: parents[f"{ROLE}{n}"].results for n in _parts(config)}, config.data.parts)
    text = estimate_text(config.data, parents["tokenizer"])
    width = 2 if text.results["vocab_size"] <= 2**16 else 4
    text.disk["shards"] = width * text.results["train"]["tokens"] / (1 - config.data.held_out_share)
    return text


def _parts(config: ShardsStage) -> list[str]:
    return sorted(config.data.parts) if config.data.is_mixture else []


def result_names(config: ShardsStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    return ["vocab_size", "bos_id", "eos_id"]


def _write(run: Run, config: ShardsStage, corpus: Corpus, tokenizer: Run) -> Outcome:
    check_files(tokenizer, under="tokenizer")
    corpus.keep_left_out(run.path)
    manifest = write_shards(
        corpus,
        tokenizer.path,
        run.path / "shards",
        made_from=digest_of(run.record["identity"]),
        num_workers=config.data.num_workers or available_cores(),
    )
    for name, split in (("train", manifest.train), ("held out", manifest.held_out)):
        log.info(
            "%s: %d documents, %.1f MB of text, %.2f million tokens, unigram entropy %.3f bits per byte",
            name,
            split.documents,
            split.raw_bytes / 1e6,
            split.tokens / 1e6,
            split.unigram_bits_per_byte,
        )
    content = asdict(manifest)
    copies = count_copies((run.path / "shards", manifest), [(run.path / "shards", manifest)])
    _say_copies("", copies)
    return Outcome(results=content, digest=digest_of(content), notes=corpus_notes(corpus) | {"leaks": asdict(copies)})


def _say_copies(part: str, copies: Copies) -> None:
    """A warning where held-out documents measure what was trained on."""
    log.info("%s%s", part, copies)
    if copies.near_copies:
        log.warning(
            "%s%d held-out documents are nearly in the training text: figures on them flatter. "
            "data.cleaning.near_duplicates=true drops near copies",
            part,
            copies.near_copies,
        )


def _add_up(config: ShardsStage, parts: dict[str, Run]) -> Outcome:
    results = totals(parts, config.data.parts)
    for name, part in results["parts"].items():
        log.info(
            "%s: %.1f MB of text, %.2f million tokens; %.3g times in an epoch of the mixture",
            name,
            part["train"]["raw_bytes"] / 1e6,
            part["train"]["tokens"] / 1e6,
            part["epochs"],
        )
    rights = dict.fromkeys(filter(None, (run.record["notes"]["rights"] for run in parts.values())))
    opened = {name: sources_of(run)[""] for name, run in parts.items()}
    copies = {name: count_copies(own, list(opened.values())) for name, own in opened.items()}
    for name, found in copies.items():
        _say_copies(f"{name}: ", found)
    notes = {
        "leaks": {name: asdict(found) for name, found in copies.items()},
        "rights": "\n".join(rights) or None,
        "dropped_records": {
            f"{name}: {reason}": times
            for name, run in parts.items()
            for reason, times in run.record["notes"]["dropped_records"].items()
        },
    }
    return Outcome(
        results=results, digest=digest_of({f"{ROLE}{name}": part.digest for name, part in parts.items()}), notes=notes
    )


STAGE = Stage(parents=parents, plan=plan, result_names=result_names, estimate=estimate)
