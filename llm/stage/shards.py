"""Documents and a tokenizer -> shards of token ids; both are made on the way if they are missing.

Of a mixture each part has a shards run, which the part by itself would have under the same tokenizer; the mixture's own
run says where they are, and what they come to. Processes on several machines that make one mixture share its parts.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace

from llm.config.stages import ShardsStage, TokenizerStage
from llm.data.documents import open_documents
from llm.data.mixture import ROLE, sources_of, totals
from llm.data.overlap import Overlap, overlap_of_shards
from llm.data.shards import available_cores, write_shards
from llm.run.console import log
from llm.run.files import digest_of
from llm.run.making import Outcome, Plan
from llm.run.runs import Run, check_files
from llm.stage import Runs, Stage, Step, documents, step_of
from llm.stage.estimate import Estimate, estimate_mixture, estimate_text

FORMAT_VERSION = 4


def parents(config: ShardsStage) -> dict[str, Step]:
    """Its tokenizer and its documents; of a mixture the shards of each part by that tokenizer."""
    made_of = documents.steps(config.data, outputs=config.outputs)
    tokenizer = step_of(
        TokenizerStage(stage="tokenizer", outputs=config.outputs, tokenizer=config.tokenizer, data=config.data)
    )
    tokenizer.parents |= {role: step for role, step in made_of.items() if role in tokenizer.parents}  # each is one step
    if not config.data.is_mixture:
        return {"tokenizer": tokenizer} | made_of
    found = {"tokenizer": tokenizer}
    for name in sorted(config.data.parts):
        part = replace(config, name=None, data=config.data.part(name), logger=None)
        own = {"tokenizer": tokenizer, documents.ROLE: made_of[f"{documents.ROLE}.{name}"]}
        found[f"{ROLE}{name}"] = Step(config=part, parents=own)
    return found


def plan(config: ShardsStage, parents: Runs) -> Plan:
    return Plan(
        config=config,
        default_name=f"{config.tokenizer.label}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={role: run.digest for role, run in parents.items()},
        folders={role: str(run.path) for role, run in parents.items()},
        work=lambda run: _add_up(config, parents) if config.data.is_mixture else _write(run, config, parents),
        waits=config.data.is_mixture,  # all who shared a mixture come to this
    )


def estimate(config: ShardsStage, parents: Runs) -> Estimate:
    if config.data.is_mixture:
        return estimate_mixture({n: run.results for n, run in _parts(parents).items()}, config.data.parts)
    text = estimate_text(documents.of_parts(parents), parents["tokenizer"])
    width = 2 if text.results["vocab_size"] <= 2**16 else 4
    text.disk["shards"] = width * text.results["train"]["tokens"] / (1 - config.data.held_out_share)
    return text


def result_names(config: ShardsStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    return ["vocab_size", "bos_id", "eos_id"]


def _parts(parents: Runs) -> dict[str, Run]:
    return {role.removeprefix(ROLE): run for role, run in parents.items() if role.startswith(ROLE)}


def _write(run: Run, config: ShardsStage, parents: Runs) -> Outcome:
    check_files(parents["tokenizer"], under="tokenizer")
    folder, num_workers = run.path / "shards", config.data.num_workers or available_cores()
    made_of = open_documents(parents[documents.ROLE])
    manifest = write_shards(made_of, parents["tokenizer"].path, folder, num_workers=num_workers)
    for name, split in (("train", manifest.train), ("held out", manifest.held_out)):
        log.info(
            "%s: %d documents, %.1f MB of text, %.2f million tokens, unigram entropy %.3f bits per byte",
            *(name, split.documents, split.raw_bytes / 1e6, split.tokens / 1e6, split.unigram_bits_per_byte),
        )
    overlap = overlap_of_shards((folder, manifest), [(folder, manifest)])
    _say_overlap("", overlap)
    content = asdict(manifest)
    return Outcome(results=content, digest=digest_of(content), notes={"leaks": asdict(overlap)})


def _say_overlap(part: str, overlap: Overlap) -> None:
    """A warning where held-out documents measure what was trained on."""
    log.info("%s%s", part, overlap)
    if overlap.near_copies:
        log.warning(
            "%s%d held-out documents are nearly in the training text: figures on them flatter. "
            "data.cleaning.near_duplicates=true drops near copies",
            part,
            overlap.near_copies,
        )


def _add_up(config: ShardsStage, parents: Mapping[str, Run]) -> Outcome:
    runs = _parts(parents)
    sources = {name: sources_of(run)[""] for name, run in runs.items()}
    results = totals(sources, config.data.parts)
    for name, part in results["parts"].items():
        size, tokens = part["train"]["raw_bytes"] / 1e6, part["train"]["tokens"] / 1e6
        times = part["epochs"]
        log.info("%s: %.1f MB, %.2f million tokens; %.3g times in an epoch of the mixture", name, size, tokens, times)
    overlaps = {name: overlap_of_shards(own, list(sources.values())) for name, own in sources.items()}
    for name, found in overlaps.items():
        _say_overlap(f"{name}: ", found)
    return Outcome(
        results=results,
        digest=digest_of({f"{ROLE}{name}": run.digest for name, run in runs.items()}),
        notes={"leaks": {name: asdict(found) for name, found in overlaps.items()}},
    )


STAGE = Stage(parents=parents, plan=plan, result_names=result_names, estimate=estimate)
