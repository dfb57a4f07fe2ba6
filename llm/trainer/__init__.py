"""Rows and a model -> the trained model, with metrics, samples and checkpoints in the run's folder.

fit.py         puts the parts below around Lightning's trainer
module.py      a step, from its batch to what follows it: loss, backward, clip, step; record, validate, save
loading.py     the loaders, and the micro-batches of a step
recording.py   metrics.jsonl, samples.jsonl and the logger; steps that are skipped, jumps of the loss, a trace
progress.py    the progress bar
validation.py  held-out loss and bits per byte of raw text, and samples from fixed prompts
saving.py      checkpoints between steps, room for them on the disk, and an orderly stop on a signal
checkpoint.py  a checkpoint's folder: safetensors and JSON under a manifest of SHA-256 sums
strategy.py    one device, or several that share the work out
memory.py      how much memory is held, and fewer rows at once where it runs out
rehearsal.py   how much a step would take, found without taking it
compiler.py    whether torch.compile finds a compiler, and takes the model
throughput.py  FLOPs per token and the device's peak: what MFU is made of
"""

from llm.trainer.compiler import require_compiler
from llm.trainer.fit import Fit, fit, require_rows
from llm.trainer.validation import Evaluation, evaluate

__all__ = ["Evaluation", "Fit", "evaluate", "fit", "require_compiler", "require_rows"]
