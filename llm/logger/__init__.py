"""Metrics, samples and results -> Weights & Biases, online when it can log in, else offline.

W&B shows what a run's folder has, metrics.jsonl above all: of a run that is being made as it grows, and once more, by
`python -m llm.sync`, where it has not got all of it. Nothing that W&B does can stop or slow a run.

live.py    online, offline or disabled; and the thread that shows a run while it is made
view.py    what W&B is given of a run: group, tags and config; records, tables and artifacts
"""
