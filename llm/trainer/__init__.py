"""Rows and a model -> the trained model, with metrics, samples and checkpoints in the run's folder.

fit.py          puts the parts below around Lightning's trainer
module.py       the LightningModule: the loss of a step, weighted by tokens
strategy.py     one device, or several that share the work out
micro_batch.py  how many rows go through the model at once, and fewer where memory runs out
journal.py      metrics.jsonl, samples.jsonl and the logger, which a resumed run goes on writing
meter.py        tokens, seconds, loss, throughput, memory, time left; every log_every_steps a record
waiting.py      the data loader, with a clock: how long batches are waited for
memory.py       how much memory is held
rehearsal.py    how much a step would take, found without taking it
profile.py      a trace of some steps
health.py       steps that are skipped, for gradients that are not finite, and jumps of the loss
validation.py   held-out loss and bits per byte of raw text, and samples from fixed prompts
saving.py       checkpoints at step boundaries, and an orderly stop on a signal
space.py        whether the disk has room for the checkpoints
checkpoint.py   a checkpoint's folder: safetensors and JSON under a manifest of SHA-256 sums
progress.py     the progress bar
compiler.py     whether torch.compile finds a compiler, and takes the model
throughput.py   FLOPs per token and the device's peak: what MFU is made of
"""

from llm.trainer.compiler import require_compiler, require_one_graph
from llm.trainer.fit import Fit, fit, require_rows
from llm.trainer.validation import Evaluation, bits_per_byte, evaluate

__all__ = [
    "Evaluation",
    "Fit",
    "bits_per_byte",
    "evaluate",
    "fit",
    "require_compiler",
    "require_one_graph",
    "require_rows",
]
