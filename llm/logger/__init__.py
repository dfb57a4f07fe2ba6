"""Metrics and samples -> Weights & Biases, online when it can log in, else offline; a view of metrics.jsonl.

Nothing that W&B does can stop or slow a run: what is logged goes through a queue to a thread of its own.
"""

from llm.logger.described import numbers
from llm.logger.opening import id_of, open_logger
from llm.logger.replaying import replay, show_trial
from llm.logger.segments import WANDB, Segment, cut_torn, read_segment, run_folders, segments_of
from llm.logger.view import FINISH_TIMEOUT_SECONDS, RunLogger

__all__ = [
    "FINISH_TIMEOUT_SECONDS",
    "WANDB",
    "RunLogger",
    "Segment",
    "cut_torn",
    "id_of",
    "numbers",
    "open_logger",
    "read_segment",
    "replay",
    "run_folders",
    "segments_of",
    "show_trial",
]
