"""stage=shards by one and by several processes: how much faster, what it adds to the tokenizer's time, and its memory.

python -m benchmarks.sharding --megabytes 50

Each way of doing it has its turn in each round, so that what else the machine does falls on all. What a busy machine
cannot falsify is CPU time: by it the speed-up on cores that nothing else uses is at most
(CPU time of one process) / (CPU time of all processes / cores).

--stage measures the whole of stage=documents and stage=shards, by one process and by several:
python -m benchmarks.sharding --stage --megabytes 1000 --rounds 1
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.korean_text import write_jsonl
from llm.config.compose import as_recorded, composed
from llm.config.data import DataConfig, DataKind
from llm.config.tokenizer import TokenizerConfig
from llm.data.corpus import open_corpus
from llm.data.documents import read_texts, write_documents

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Way:
    """How text is encoded."""

    label: str
    num_workers: int
    threads: bool  # the tokenizer's own, in one process


def main() -> None:
    arguments = _arguments()
    one, threads = Way("1 process", 1, False), Way("its threads", 1, True)
    many = Way(f"{arguments.workers} processes", arguments.workers, False)
    ways = [one, many] if arguments.stage else [one, threads, many]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_jsonl(folder / "text.jsonl", megabytes=arguments.megabytes)
        write_documents(open_corpus(_data(folder)), folder / "documents")
        _train_tokenizer(folder, arguments.tokenizer)
        measure = _measure_stage if arguments.stage else _measure
        rounds = [{way: _in_a_process(measure, folder, way) for way in ways} for _ in range(arguments.rounds)]
        counted = None if arguments.stage else _in_a_process(_measure_encoding, folder, one)
    _print(arguments, ways, rounds)
    wall = [measured[one]["wall"] / measured[many]["wall"] for measured in rounds]
    cpu = [measured[one]["cpu"] / measured[many]["cpu"] * arguments.workers for measured in rounds]
    print(f"speed-up of {many.label} over one, by round: {', '.join(f'{ratio:.2f}' for ratio in wall)}")
    print(f"at most, by CPU time on {arguments.workers} free cores: {statistics.median(cpu):.2f}")
    if counted is None:
        return
    beyond = counted["cpu"] / counted["encoding"] - 1
    print(f"CPU time beyond the tokenizer's own {counted['encoding']:.1f} s: {100 * beyond:.1f} %")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=50, help="of jsonl")
    parser.add_argument("--workers", type=int, default=2, help="processes that encode, against one")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured, in turns")
    parser.add_argument("--stage", action="store_true", help="the whole of stage=documents and stage=shards")
    parser.add_argument("--tokenizer", default="char_bpe", help="of conf/tokenizer/")
    return parser.parse_args()


def _print(arguments: argparse.Namespace, ways: list[Way], rounds: list[dict[Way, dict[str, float]]]) -> None:
    size = arguments.megabytes
    print(f"{size:g} MB of jsonl, {arguments.tokenizer}, {os.cpu_count()} cores; medians of {len(rounds)} rounds")
    print(f"{'':<14}{'seconds':>9}{'MB/s':>8}{'CPU s':>8}{'peak MB':>9}")
    for way in ways:
        wall, cpu, peak = (
            statistics.median(measured[way][key] for measured in rounds) for key in ("wall", "cpu", "peak")
        )
        print(f"{way.label:<14}{wall:>9.1f}{size / wall:>8.2f}{cpu:>8.1f}{peak:>9.0f}")


def _train_tokenizer(folder: Path, name: str) -> None:
    from llm.tokenizer.folder import save
    from llm.tokenizer.training import train

    config = _tokenizer_config(name)
    texts = islice(read_texts(folder / "documents", "train"), 3000)
    save(train(config, texts), config.roles, folder / "tokenizer")


def _tokenizer_config(name: str) -> TokenizerConfig:
    return as_recorded(TokenizerConfig, composed([f"tokenizer={name}"])["tokenizer"], place=name)


def _data(folder: Path, *, num_workers: int | None = None) -> DataConfig:
    return DataConfig(name="text", kind=DataKind.text, path=str(folder / "text.jsonl"), num_workers=num_workers)


def _in_a_process(measure: Callable[..., None], folder: Path, way: Way) -> dict[str, float]:
    """Seconds, and MB at the peak, of write_shards in a process that has done nothing else, its workers included."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(there, folder, way))
    process.start()
    there.close()
    with _peak_of(process.pid or 0) as peak:
        measured = here.recv()
        process.join()
    return measured | {"peak": max(peak)}


def _measure_encoding(pipe: Connection, folder: Path, way: Way) -> None:
    _measure(pipe, folder, way, count_encoding=True)


def _measure_stage(pipe: Connection, folder: Path, way: Way) -> None:
    """As _measure, of all that stage=documents and stage=shards do with a tokenizer that is there."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from llm.config.stages import ShardsStage
    from llm.run.making import Outcome, Plan, make
    from llm.stage import documents, run_step, shards
    from llm.tokenizer.folder import digest

    with tempfile.TemporaryDirectory(dir=folder) as outputs:
        config = ShardsStage(
            stage="shards",
            outputs=outputs,
            tokenizer=_tokenizer_config("char_bpe"),
            data=_data(folder, num_workers=way.num_workers),
        )

        def take(run: Any) -> Outcome:
            shutil.copytree(folder / "tokenizer", run.path, dirs_exist_ok=True)
            return Outcome(results={"lossless_documents": 1}, digest=digest(run.path))

        of_tokenizer = replace(config, stage="tokenizer")
        made = make(Plan(config=of_tokenizer, default_name="made", format_version=0, work=take))
        wall, cpu = time.perf_counter(), _cpu_seconds()
        (step,) = documents.steps(config.data, outputs=outputs).values()
        make(shards.plan(config, {"tokenizer": made, "documents": run_step(step)}))
        pipe.send({"wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu})


def _measure(pipe: Connection, folder: Path, way: Way, count_encoding: bool = False) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = str(way.threads).lower()
    from llm.data import shards as sharding
    from llm.tokenizer.folder import load_tokenizer

    spent = [0.0]
    if count_encoding:
        sharding.load_tokenizer = lambda path: _Timed(load_tokenizer(path), spent)
    with tempfile.TemporaryDirectory(dir=folder) as target:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        sharding.write_shards(
            folder / "documents",
            folder / "tokenizer",
            Path(target) / "shards",
            num_workers=way.num_workers,
        )
        pipe.send({"wall": time.perf_counter() - wall, "cpu": _cpu_seconds() - cpu, "encoding": spent[0]})


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


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
