"""Metrics, samples and results -> Weights & Biases, online when it can log in, else offline.

W&B shows what a run's folder has, metrics.jsonl above all: of a run that is being made as it grows, and once more, by
`python -m llm.sync`, where it has not got all of it. Nothing that W&B does can stop or slow a run.

described.py     group, tags, config and id of the W&B run
lineage.py       what a run was made from and what it made, as artifacts
view.py          what W&B is given of a run's files
live.py          the thread that does so while a run is made
stopping.py      the tag and the button that stop a run
opening.py       online, offline or disabled; and the W&B run
"""

from llm.logger.live import RunLogger
from llm.logger.opening import open_logger, show_trial

__all__ = ["RunLogger", "open_logger", "show_trial"]
