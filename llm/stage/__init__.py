"""The stages: each takes its config and returns its finished run, making, resuming or reusing it."""

from functools import cache
from typing import Any

from llm.data import Corpus, MixedCorpus
from llm.run import log


def corpus_notes(corpus: Corpus | MixedCorpus) -> dict[str, Any]:
    """What a run keeps of the corpus that it read: the rights note (said once a process) and what was dropped."""
    if corpus.rights:
        _say_once(corpus.rights)
    return {"rights": corpus.rights, "dropped_records": corpus.say_dropped()}


@cache
def _say_once(text: str) -> None:
    log.info("rights: %s", text)
