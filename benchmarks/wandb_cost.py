"""What Weights & Biases costs a training, whatever its server does: steps a second beside logger=local, start and end.

    python -m benchmarks.wandb_cost                  # some minutes on two cores
    python -m benchmarks.wandb_cost --rounds 5 --only local online

Each condition is a training of its own process, by train.py's own stage. All wait but one, which makes a block of
steps; then the next, round by round, so that what else the machine does meets all alike. `ratio` is the time of a block
beside that of logger=local in the same round, the median over the rounds: 1.05 is the bar. `CPU` is the same of the
processor time, that of wandb's helper process included. `start` and `end` are what opening and closing the run took
(bars: 10 s, 60 s). The model is far smaller than any that is of use: at steps of milliseconds what is logged costs
most.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import config_of, options, print_table
from benchmarks.korean_text import write_jsonl
from llm.config.stages import StageConfig
from tests.wandb_server import Fault, WandbServer

HANG_SECONDS = 120.0
SETTINGS = [
    *("data=text", "data.held_out_share=0.2", "tokenizer.vocab_size=3000", "data.sequence_length=64"),
    *("data.batch_size=4", "model.num_layers=1", "model.num_heads=2", "model.hidden_size=64", "reuse=never"),
]


@dataclass(frozen=True)
class Condition:
    """What W&B's server does, from the start or after the first block of steps."""

    name: str
    mode: str = "auto"  # as logger.mode
    first: Fault | None = None
    later: Fault | None = None  # once the run is under way
    is_gone: bool = False  # nobody listens


def hang(_asked: str) -> None:
    time.sleep(HANG_SECONDS)


def fail(_asked: str) -> int:
    return 500


CONDITIONS = [
    Condition("local", mode="disabled"),
    Condition("offline", mode="offline"),
    Condition("online"),
    Condition("refused", is_gone=True),
    Condition("hangs", first=hang),
    Condition("500", first=fail),
    Condition("hangs midway", later=hang),
    Condition("500 midway", later=fail),
]


@dataclass
class Measured:
    """Of one condition, in seconds."""

    start: float
    end: float
    blocks: list[float]
    cpu_blocks: list[float]


class Turns:
    """Makes a training wait after each block of records for the next turn, and tells what the block took."""

    def __init__(self, pipe: Connection, block_records: int) -> None:
        self._pipe, self._block = pipe, block_records
        self._records, self._began, self._cpu_began = 0, 0.0, 0.0

    def take(self, record: dict[str, Any]) -> None:
        """Called with each record that was written."""
        if "train/loss" not in record:
            return
        self._records += 1
        if self._records % self._block == 0:
            self._pipe.send((time.perf_counter() - self._began, cpu_seconds() - self._cpu_began))
            self._pipe.recv()
            self._began, self._cpu_began = time.perf_counter(), cpu_seconds()


def cpu_seconds() -> float:
    """Of this process and those that it has started."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def train(
    config: StageConfig, environment: dict[str, str], pipe: Connection, block_records: int, console: Path
) -> None:
    """What a process does: the stage, by turns; at last it sends what opening and closing the run took."""
    os.environ.update(environment)
    with console.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    from llm.logger import live
    from llm.stage import run_stage
    from llm.trainer.recording import Recorder

    open_logger, took = live.open_logger, {}
    write, turns = Recorder.write, Turns(pipe, block_records)

    def write_by_turns(*args: Any, **kwargs: Any) -> dict[str, Any]:
        record = write(*args, **kwargs)
        turns.take(record)
        return record

    @contextmanager
    def timed(settings: Any, run: Any, *, outputs: Path) -> Iterator[Any]:
        began = time.perf_counter()
        with open_logger(settings, run, outputs=outputs) as logger:
            took["start"] = time.perf_counter() - began
            yield logger
            began = time.perf_counter()
        took["end"] = time.perf_counter() - began

    live.open_logger, Recorder.write = timed, write_by_turns  # type: ignore[method-assign]
    run_stage(config)
    pipe.send((took["start"], took["end"]))


def measure(folder: Path, conditions: list[Condition], *, rounds: int, block_steps: int, log_every: int) -> Any:
    """name -> Measured."""
    words = [*SETTINGS, f"data.path={folder}/text.jsonl", f"outputs={folder}/outputs"]
    from llm.stage import run_stage

    cut = [word for word in words if not word.startswith("model.")]
    run_stage(config_of("stage=shards", "logger=local", *cut))
    steps = (rounds + 1) * block_steps
    words += [f"trainer.max_steps={steps}", f"trainer.log_every_steps={log_every}"]
    words += [f"trainer.validate_every_steps={block_steps}", "trainer.sample_tokens=8"]
    configs = {
        each.name: config_of(*words, f"name={each.name.replace(' ', '_')}", f"logger.mode={each.mode}")
        for each in conditions
    }
    with ExitStack() as stack:
        servers = {each.name: stack.enter_context(WandbServer()) for each in conditions}
        for each in conditions:
            servers[each.name].fault = each.first or servers[each.name].fault
            if each.is_gone:
                servers[each.name]._http.server_close()
        return _by_turns(folder, conditions, configs, servers, rounds=rounds, block_records=block_steps // log_every)


def _by_turns(
    folder: Path,
    conditions: list[Condition],
    configs: dict[str, StageConfig],
    servers: dict[str, WandbServer],
    *,
    rounds: int,
    block_records: int,
) -> dict[str, Measured]:
    context = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Any, Connection]] = {}
    for each in conditions:  # one after the other, so that what starting takes is its own
        ours, theirs = context.Pipe()
        environment = servers[each.name].environment | {
            "NETRC": str(folder / "netrc"),
            "WANDB_CONFIG_DIR": str(folder / "config"),
        }
        process = context.Process(
            target=train, args=(configs[each.name], environment, theirs, block_records, _console(folder, each.name))
        )
        process.start()
        theirs.close()
        running[each.name] = process, ours
        _receive(ours, folder, each.name)  # the first block: compilation, caches, and the run's opening are in it
        servers[each.name].fault = each.later or servers[each.name].fault
    taken: dict[str, list[tuple[float, float]]] = {each.name: [] for each in conditions}
    for _ in range(rounds):
        for name, (_, pipe) in running.items():
            pipe.send("go on")
            taken[name].append(_receive(pipe, folder, name))
    measured = {}
    for name, (process, pipe) in running.items():
        pipe.send("end")
        start, end = _receive(pipe, folder, name)
        process.join()
        wall, cpu = zip(*taken[name], strict=True)
        measured[name] = Measured(start, end, list(wall), list(cpu))
    return measured


def _console(folder: Path, name: str) -> Path:
    return folder / f"{name}.txt"


def _receive(pipe: Connection, folder: Path, name: str) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(_console(folder, name).read_text(encoding="utf-8")) from None


def show(measured: dict[str, Measured], block_steps: int) -> None:
    base = measured["local"]
    rows = [
        (
            name,
            f"{block_steps / statistics.median(each.blocks):.1f}",
            f"{_ratio(each.blocks, base.blocks):.3f}",
            f"{_ratio(each.cpu_blocks, base.cpu_blocks):.3f}",
            f"{each.start:.1f}",
            f"{each.end:.1f}",
        )
        for name, each in measured.items()
    ]
    print_table("", ("W&B", "steps/s", "ratio", "CPU", "start (s)", "end (s)"), rows)


def _ratio(these: list[float], those: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block-steps", type=int, default=100)
    parser.add_argument("--log-every", type=int, default=10, help="as trainer.log_every_steps")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in CONDITIONS], help="with `local`")
    arguments = parser.parse_args()
    if arguments.block_steps % arguments.log_every:
        parser.error("--block-steps has to divide by --log-every.")
    chosen = [each for each in CONDITIONS if arguments.only is None or each.name in ("local", *arguments.only)]
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder, "text.jsonl"), megabytes=0.5)
        measured = measure(
            Path(folder),
            chosen,
            rounds=arguments.rounds,
            block_steps=arguments.block_steps,
            log_every=arguments.log_every,
        )
    show(measured, arguments.block_steps)


if __name__ == "__main__":
    main()
