"""Rows and a model -> the trained model, with metrics, samples and checkpoints in the run's folder.

fit.py         puts the parts below around Lightning's trainer
module.py      a step, from its batch to what follows it: loss, backward, clip, step; record, validate, save
rows.py        the loaders, and how many rows at once the memory holds
recording.py   metrics.jsonl, samples.jsonl and the logger; steps that are skipped, the progress bar, a trace
validation.py  held-out loss and bits per byte of raw text, and samples from fixed prompts
checkpoint.py  checkpoints under a manifest of SHA-256 sums: when they are saved, which are kept and gone on from
strategy.py    one device, or several that share the work out
"""
