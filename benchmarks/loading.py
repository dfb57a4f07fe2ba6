"""Rows from shards in a warm cache: tokens a second by each way of packing, in this process and by workers.

python -m benchmarks.loading

The same loader as in training reads them, in the order of training. At 10 million tokens a second the 32 x 1,024
tokens of a step are there in 3 ms. --model llama_125m says which part of a step of that model on the CPU is the
reading of its rows: rows are read, and the model learns from one, by turns, in this process.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from llm.config.data import Packing
from llm.data.order import TrainingBatches
from llm.data.rows import TokenRows
from llm.data.shards import Manifest, Shard, Split

VOCAB_SIZE = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=32e6, help="in the shards")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="of the loader; 0: in this process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="of conf/model/: the share of the loader in its step, in place of the speeds")
    arguments = parser.parse_args()
    if arguments.model:
        _print_share(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = write_random_shards(folder, num_tokens=int(arguments.tokens))
        speeds: dict[tuple[Packing, int], list[float]] = {}
        starts: dict[Packing, float] = {}
        for _ in range(arguments.rounds):
            for packing in Packing:
                began = time.perf_counter()
                rows = TokenRows(
                    {"": (folder, manifest)}, "train", sequence_length=arguments.sequence_length, packing=packing
                )
                starts[packing] = time.perf_counter() - began
                for num_workers in arguments.workers:
                    speed = _tokens_per_second(rows, batch_size=arguments.batch_size, num_workers=num_workers)
                    speeds.setdefault((packing, num_workers), []).append(speed)
    print(
        f"{arguments.tokens:g} tokens, rows of {arguments.sequence_length}, {arguments.batch_size} a step; "
        f"medians of {arguments.rounds} rounds in turns"
    )
    print(f"{'packing':<13}{'workers':>8}{'million tokens/s':>18}{'s to open':>11}")
    for (packing, num_workers), measured in speeds.items():
        speed = statistics.median(measured)
        print(f"{packing.value:<13}{num_workers:>8}{speed / 1e6:>18.1f}{starts[packing]:>11.2f}")


def write_random_shards(folder: Path, *, num_tokens: int, num_shards: int = 4) -> Manifest:
    """Shards of random tokens in documents of a few to some thousand."""
    draw = np.random.default_rng(0)
    shards = []
    for number in range(num_shards):
        lengths = draw.lognormal(5.5, 1.2, max(1, num_tokens // num_shards // 500)).astype(np.int64) + 2
        tokens_file, documents_file = f"train-{number:05d}.bin", f"train-{number:05d}.documents.npy"
        draw.integers(0, VOCAB_SIZE, lengths.sum(), dtype=np.uint16).tofile(folder / tokens_file)
        np.save(folder / documents_file, np.stack([lengths, 3 * lengths], axis=1))
        shards.append(
            Shard(
                tokens_file=tokens_file,
                documents_file=documents_file,
                tokens=int(lengths.sum()),
                documents=len(lengths),
                raw_bytes=3 * int(lengths.sum()),
                lost_bytes=0,
                sha256={},
            )
        )
    totals = {key: sum(getattr(s, key) for s in shards) for key in ("documents", "tokens", "raw_bytes", "lost_bytes")}
    split = Split(unigram_bits_per_byte=0.0, shards=shards, **totals)
    return Manifest(dtype="uint16", vocab_size=VOCAB_SIZE, bos_id=0, eos_id=0, train=split, held_out=split)


def _print_share(arguments: argparse.Namespace) -> None:
    """How long rows take to read, in the time that a model takes to learn from them, by wall and by CPU time."""
    with tempfile.TemporaryDirectory() as scratch:
        manifest = write_random_shards(Path(scratch), num_tokens=int(arguments.tokens))
        print(f"{arguments.model}, rows of {arguments.sequence_length}, {arguments.rounds} rounds in turns")
        print(f"{'packing':<13}{'ms to read a row':>18}{'ms to learn from it':>21}{'share':>9}{'by CPU time':>13}")
        for packing in Packing:
            rows = TokenRows(
                {"": (Path(scratch), manifest)}, "train", sequence_length=arguments.sequence_length, packing=packing
            )
            reading, learning = _times_of_a_row(rows, arguments)
            wall, cpu = (read / learned for read, learned in zip(reading, learning, strict=True))
            print(
                f"{packing.value:<13}{1e3 * reading[0]:>18.3f}{1e3 * learning[0]:>21.1f}{wall:>9.3%}{cpu:>13.3%}",
                flush=True,
            )


def _times_of_a_row(rows: TokenRows, arguments: argparse.Namespace) -> tuple[tuple[float, float], tuple[float, float]]:
    """(wall, CPU) seconds, medians, to read a row as part of a step, and for forward and backward passes on it."""
    from benchmarks.harness import build_model
    from llm.model import next_token_nats

    model = build_model(arguments.model, VOCAB_SIZE)
    stream = _stream(rows, batch_size=arguments.batch_size, num_workers=0)
    reading, learning = [], []
    for number in range(arguments.rounds + 1):
        began = _now()
        (batch,) = next(stream)
        if number:  # the first step opens files, and finds memory for the gradients
            reading.append((_now() - began) / len(batch["input_ids"]))
        one = {key: batch[key][:1] for key in ("input_ids", "labels", "position_ids")}
        began = _now()
        next_token_nats(model, one).backward()
        if number:
            learning.append(_now() - began)
    read, learned = (tuple(np.median(times, axis=0).tolist()) for times in (reading, learning))
    return read, learned


def _now() -> Any:
    """(wall, CPU) seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def _tokens_per_second(rows: TokenRows, *, batch_size: int, num_workers: int) -> float:
    """Labels, which are tokens without padding, over one epoch; the loader's start is not in it."""
    stream = _stream(rows, batch_size=batch_size, num_workers=num_workers)
    next(stream)
    labels, began = 0, time.perf_counter()
    for batch in stream:
        labels += batch[0]["num_labels"]
    return labels / (time.perf_counter() - began)


def _stream(rows: TokenRows, *, batch_size: int, num_workers: int) -> Any:
    """The batches of an epoch, as training takes them."""
    from torch.utils.data import DataLoader

    from llm.trainer.rows import StepRows

    steps = len(rows) // batch_size
    batches: Any = TrainingBatches(
        rows.num_labels, batch_size=batch_size, micro_batch_size=batch_size, num_steps=steps, seed=0
    )
    loader: Any = DataLoader(StepRows(rows), batch_sampler=batches, collate_fn=_as_it_is, num_workers=num_workers)
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


if __name__ == "__main__":
    main()
