"""Text and a tokenizer -> shards of token ids; the tokenizer is trained on the way if it is missing."""

from dataclasses import asdict

from llm.config import ShardsStage, TokenizerStage
from llm.data import Corpus, available_cores, open_corpus, write_shards
from llm.run import Outcome, Plan, Run, check_files, digest_of, log, make
from llm.stage import corpus_notes
from llm.stage import tokenizer as tokenizer_stage

FORMAT_VERSION = 2


def run(config: ShardsStage, *, wait: bool = False) -> Run:
    """The finished shards run of a config; `wait` for another process that makes it, or refuse."""
    corpus = open_corpus(config.data)
    trained = tokenizer_stage.run(
        TokenizerStage(stage="tokenizer", outputs=config.outputs, tokenizer=config.tokenizer, data=config.data),
        wait=True,
    )
    plan = Plan(
        config=config,
        default_name=f"{config.tokenizer.name}-{config.tokenizer.vocab_size}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={"data": corpus.digest(), "tokenizer": trained.digest},
        folders={"tokenizer": str(trained.path)},
    )
    return make(plan, lambda run: _write(run, config, corpus, trained), wait=wait)


def _write(run: Run, config: ShardsStage, corpus: Corpus, trained: Run) -> Outcome:
    check_files(trained, under="tokenizer")
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
    return Outcome(results=content, digest=digest_of(content), notes=corpus_notes(corpus))
