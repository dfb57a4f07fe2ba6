"""Text and a tokenizer -> shards of token ids; the tokenizer is trained on the way if it is missing.

Of a mixture each part has a shards run, which the part by itself would have under the same tokenizer; the mixture's own
run says where they are, and what they come to. Processes on several machines that make one mixture share its parts.
"""

from dataclasses import asdict, replace

from llm.config import Reuse, ShardsStage, TokenizerStage
from llm.data import Copies, Corpus, available_cores, count_copies, open_corpus, open_parts, read_manifest, write_shards
from llm.run import Outcome, Plan, Run, check_files, digest_of, log, make, process_rank
from llm.run.owner import OwnedError
from llm.stage import corpus_notes
from llm.stage import tokenizer as tokenizer_stage
from llm.stage._logging import log_results
from llm.stage._mixture import digests, folders, totals

FORMAT_VERSION = 3


def run(config: ShardsStage, *, wait: bool = False) -> Run:
    """The finished shards run of a config; `wait` for another process that makes it, or refuse; of a mixture, wait."""
    if config.data.is_mixture:
        corpora = open_parts(config.data)
        return _mix(config, corpora, _tokenizer(config))
    corpus = open_corpus(config.data)
    return _shards(config, corpus, _tokenizer(config), wait=wait)


def _tokenizer(config: ShardsStage) -> Run:
    return tokenizer_stage.run(
        TokenizerStage(
            stage="tokenizer",
            outputs=config.outputs,
            dry_run=config.dry_run,
            tokenizer=config.tokenizer,
            data=config.data,
        ),
        wait=True,
    )


def _shards(config: ShardsStage, corpus: Corpus, trained: Run, *, wait: bool) -> Run:
    plan = Plan(
        config=config,
        default_name=_name(config),
        format_version=FORMAT_VERSION,
        parents={"data": corpus.digest(), "tokenizer": trained.digest},
        folders={"tokenizer": str(trained.path)},
    )
    return make(plan, lambda run: _write(run, config, corpus, trained), wait=wait)


def _mix(config: ShardsStage, corpora: dict[str, Corpus], trained: Run) -> Run:
    parts = _parts(config, corpora, trained)
    plan = Plan(
        config=config,
        default_name=_name(config),
        format_version=FORMAT_VERSION,
        parents={"tokenizer": trained.digest} | digests(parts),
        folders={"tokenizer": str(trained.path)} | folders(parts),
    )
    return make(plan, lambda run: _add_up(run, config, parts), wait=True)  # all who shared it come to this


def _parts(config: ShardsStage, corpora: dict[str, Corpus], trained: Run) -> dict[str, Run]:
    """The shards of each part; one that a process on other cores makes is left to it while there is another to make."""

    def made(name: str, *, wait: bool) -> Run:
        part = replace(config, name=None, data=config.data.part(name), logger=None)
        return _shards(part, corpora[name], trained, wait=wait)

    runs: dict[str, Run] = {}
    only_waits = process_rank() > 0 or config.reuse is Reuse.never  # what another one made would be made again
    for name in [] if only_waits else corpora:
        try:
            runs[name] = made(name, wait=False)
        except OwnedError as taken:
            if taken.has_other_cores:
                log.info("%s: left to %s", name, taken.maker)
            else:
                runs[name] = made(name, wait=True)
    return {name: runs.get(name) or made(name, wait=True) for name in corpora}


def result_names(config: ShardsStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    return ["vocab_size", "bos_id", "eos_id"]


def _name(config: ShardsStage) -> str:
    return f"{config.tokenizer.label}-{config.data.name}"


def _write(run: Run, config: ShardsStage, corpus: Corpus, trained: Run) -> Outcome:
    check_files(trained, under="tokenizer")
    corpus.keep_left_out(run.path)
    manifest = write_shards(
        corpus,
        trained.path,
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
    log_results(config, run, content)
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


def _add_up(run: Run, config: ShardsStage, parts: dict[str, Run]) -> Outcome:
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
    opened = {name: (run.path / "shards", read_manifest(run.path / "shards")) for name, run in parts.items()}
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
    log_results(config, run, results)
    return Outcome(results=results, digest=digest_of(digests(parts)), notes=notes)
