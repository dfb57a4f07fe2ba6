"""A model and held-out text -> numbers: Korean probes, statistics of what it writes, tasks of lm-eval.

texts.py       held-out shards -> documents, and the sentences in them
particles.py   sentences -> sentences with the other particle of a pair
probes.py      documents -> items of each probe; a model's nats -> how many it gets right
scoring.py     texts -> the nats that a model gives them, many in one forward pass
statistics.py  texts -> repetition, variety, Hangul, broken syllables; shares with their intervals
tasks.py       tasks of lm-eval by name, asked by lm-eval's own model, of a tuned model by its chat template
"""

from llm.evaluation.probes import make_items, measure
from llm.evaluation.scoring import Scorer
from llm.evaluation.statistics import Share, describe
from llm.evaluation.texts import held_out_documents, openings

__all__ = [
    "Scorer",
    "Share",
    "describe",
    "held_out_documents",
    "make_items",
    "measure",
    "openings",
]
