"""Text -> a trained tokenizer, and a report on what it keeps of held-out text."""

from dataclasses import asdict

from llm import tokenizer
from llm.config import TokenizerStage
from llm.data import Corpus, open_corpus
from llm.run import Outcome, Plan, Run, log, make, whole_files, write_json
from llm.stage import corpus_notes

FORMAT_VERSION = 1


def run(config: TokenizerStage, *, wait: bool = False) -> Run:
    """The finished tokenizer run of a config; `wait` for another process that makes it, or refuse."""
    corpus = open_corpus(config.data)
    plan = Plan(
        config=config,
        default_name=f"{config.tokenizer.name}-{config.tokenizer.vocab_size}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={"data": corpus.digest()},
    )
    return make(plan, lambda run: _train(run, config, corpus), wait=wait)


def _train(run: Run, config: TokenizerStage, corpus: Corpus) -> Outcome:
    trained = tokenizer.train(config.tokenizer, corpus.texts(held_out=False))
    notes = corpus_notes(corpus)
    with whole_files(run.path) as target:
        tokenizer.save(trained, config.tokenizer, target)
    report = tokenizer.report(tokenizer.load(run.path), corpus.texts(held_out=True))
    write_json(run.path / "report.json", asdict(report))
    log.info(
        "%d tokens; held-out text: %.2f tokens per eojeol, %.2f bytes per token, %.2f %% of lines exact "
        "(%.2f %% in NFC), %.3f %% of bytes lost",
        report.vocab_size,
        report.tokens_per_eojeol,
        report.bytes_per_token,
        100 * report.exact_round_trip,
        100 * report.nfc_round_trip,
        100 * report.lost_bytes_share,
    )
    if report.first_failing_line is not None:
        log.warning("this tokenizer is lossy; the first line that does not come back: %s", report.first_failing_line)
    return Outcome(results=asdict(report), digest=tokenizer.digest(run.path), notes=notes)
