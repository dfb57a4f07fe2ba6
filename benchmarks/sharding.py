"""stage=shards by one and by several processes: how much faster, what it adds to the tokenizer's time, and its memory.

python -m benchmarks.sharding --megabytes 50

Times of the two alternate in one run, so that what else the machine does falls on both; the shares are of CPU time.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from benchmarks.korean_text import write_jsonl
from llm.config import Alphabet, DataConfig, DataKind, TokenizerConfig

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.05


def main() -> None:
    arguments = _arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process: the processes are what is measured
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_jsonl(folder / "text.jsonl", megabytes=arguments.megabytes)
        _train_tokenizer(folder, arguments.tokenizer)
        seconds: dict[int, list[float]] = {1: [], arguments.workers: []}
        peaks: dict[int, float] = {}
        for _ in range(arguments.rounds):
            for num_workers in seconds:
                measured, peak = _in_a_process(folder, num_workers)
                seconds[num_workers].append(measured["wall"])
                peaks[num_workers] = max(peak, peaks.get(num_workers, 0.0))
        share = _in_a_process(folder, 1, count_encoding=True)[0]
    _print(arguments, seconds, peaks, share)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=50, help="of jsonl")
    parser.add_argument("--workers", type=int, default=2, help="processes that encode, against one")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured, in turns")
    parser.add_argument("--tokenizer", default="char_bpe", help="of conf/tokenizer/")
    return parser.parse_args()


def _print(
    arguments: argparse.Namespace,
    seconds: dict[int, list[float]],
    peaks: dict[int, float],
    share: dict[str, float],
) -> None:
    size = arguments.megabytes
    print(
        f"{size:g} MB of jsonl, tokenizer {arguments.tokenizer}, {os.cpu_count()} cores; medians of {arguments.rounds}"
    )
    print(f"{'processes':<12}{'seconds':>10}{'MB/s':>8}{'peak MB':>10}")
    for num_workers, times in seconds.items():
        median = statistics.median(times)
        print(f"{num_workers:<12}{median:>10.1f}{size / median:>8.2f}{peaks[num_workers]:>10.0f}")
    ratios = [one / many for one, many in zip(seconds[1], seconds[arguments.workers], strict=True)]
    print(f"speed-up of {arguments.workers} over 1, by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    cpu, encoding = share["cpu"], share["encoding"]
    print(f"CPU time beyond the tokenizer's own {encoding:.1f} s: {100 * (cpu / encoding - 1):.1f} %")


def _train_tokenizer(folder: Path, name: str) -> None:
    from llm.tokenizer import save, train

    settings = yaml.safe_load((ROOT / "conf" / "tokenizer" / f"{name}.yaml").read_text(encoding="utf-8"))
    if "initial_alphabet" in settings:
        settings["initial_alphabet"] = Alphabet[settings["initial_alphabet"]]
    config = TokenizerConfig(**settings)
    texts = (document.text for document, _ in zip(_corpus(folder).records(held_out=False), range(3000), strict=False))
    save(train(config, texts), config, folder / "tokenizer")


def _corpus(folder: Path) -> Any:
    from llm.data import open_corpus

    return open_corpus(DataConfig(name="text", kind=DataKind.text, path=str(folder / "text.jsonl")))


def _in_a_process(folder: Path, num_workers: int, *, count_encoding: bool = False) -> tuple[dict[str, float], float]:
    """(seconds, MB): what write_shards takes in a process that has done nothing else, and the most that all used."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(there, folder, num_workers, count_encoding))
    process.start()
    there.close()
    with _peak_of(process.pid or 0) as peak:
        measured = here.recv()
        process.join()
    return measured, max(peak)


def _measure(pipe: Connection, folder: Path, num_workers: int, count_encoding: bool) -> None:
    from llm.data import encoding, write_shards
    from llm.tokenizer import load

    spent = [0.0]
    if count_encoding:
        encoding.load = lambda path: _Timed(load(path), spent)
    with tempfile.TemporaryDirectory(dir=folder) as target:
        wall, cpu = time.perf_counter(), time.process_time()
        write_shards(
            _corpus(folder), folder / "tokenizer", Path(target) / "shards", made_from="", num_workers=num_workers
        )
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "encoding": spent[0]}
    pipe.send(seconds)


class _Timed:
    """A tokenizer that notes the CPU time of its encoding."""

    def __init__(self, tokenizer: Any, spent: list[float]) -> None:
        self._tokenizer, self._spent = tokenizer, spent

    def encode_batch_fast(self, *arguments: Any, **named: Any) -> Any:
        before = time.process_time()
        encoded = self._tokenizer.encode_batch_fast(*arguments, **named)
        self._spent[0] += time.process_time() - before
        return encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@contextmanager
def _peak_of(pid: int) -> Iterator[list[float]]:
    """The memory in MB of a process and all below it, looked at every so often: pages that they share count once."""
    seen, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            seen.append(sum(map(_proportional_megabytes, _family(pid))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from _family(int(child))


def _proportional_megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    main()
