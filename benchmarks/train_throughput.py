"""Tokens a second in training: ours, a plain loop, Hugging Face's Trainer and a minimal GPT, by turns in one process.

python -m benchmarks.train_throughput --profile cpu
python -m benchmarks.train_throughput --profile gpu

Each round, each contestant trains some steps at the same shape, rows and precision; a ratio is the median over rounds
of ours over a peer's in the same round, so that what else a machine does falls on both. Ours is the code of
stage=pretrain: loader and recorder, with a log record every ten steps, as the Trainer has; what is timed
lies between validation and the last checkpoint. Writes benchmarks/results/<device>-<date>.json.

The Trainer needs one more package: python -m pip install accelerate
"""

import datetime
import gc
import json
import re
import statistics
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import CONTESTANTS, Clock, Mode, Shape, Train
from benchmarks.harness import be_quiet, begin_peak, device, in_a_process, options, status_bytes
from llm.config.training import Architecture, Precision
from llm.model import flops_per_token
from llm.run.devices import peak_flops

RESULTS = Path(__file__).parent / "results"
FP32, FP32_COMPILED = Mode(Precision.fp32, False), Mode(Precision.fp32, True)
BF16, BF16_COMPILED = Mode(Precision.bf16, False), Mode(Precision.bf16, True)

SMALL = Shape(
    name="6x384", num_layers=6, num_heads=6, hidden_size=384, vocab_size=8192, sequence_length=256, batch_size=4
)
TINY = Shape(
    name="tiny", num_layers=3, num_heads=4, hidden_size=160, vocab_size=8192, sequence_length=256, batch_size=4
)
GPT2_124M = Shape(
    name="124M", num_layers=12, num_heads=12, hidden_size=768, vocab_size=50304, sequence_length=1024, batch_size=32
)
GPT2_350M = Shape(
    name="350M", num_layers=24, num_heads=16, hidden_size=1024, vocab_size=50304, sequence_length=1024, batch_size=16
)
LLAMA_1B = Shape(
    name="1B", num_layers=16, num_heads=32, hidden_size=2048, vocab_size=50304, sequence_length=2048, batch_size=8,
    architecture=Architecture.llama, num_key_value_heads=8, intermediate_size=8192,
)  # fmt: skip

Contest = tuple[Shape, Mode, tuple[str, ...]]
EVERYONE = tuple(CONTESTANTS)
PROFILES: dict[str, list[Contest]] = {
    "cpu": [(shape, mode, EVERYONE) for shape in (SMALL, TINY) for mode in (FP32, BF16, FP32_COMPILED)],
    "gpu": [
        (GPT2_124M, BF16_COMPILED, EVERYONE),
        (GPT2_124M, BF16, ("ours", "HF Trainer")),
        (GPT2_350M, BF16_COMPILED, ("ours", "HF Trainer")),
        (LLAMA_1B, BF16_COMPILED, ("ours",)),
    ],
}


@dataclass
class Score:
    """What a contestant did in one shape and mode."""

    shape: str
    mode: str
    contestant: str
    mfu: float = 0.0
    peak_bytes: int = 0
    tokens_per_second: list[float] = field(default_factory=list)  # by round

    @property
    def median(self) -> float:
        return statistics.median(self.tokens_per_second)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=6, help="timed in each round, after --warmup")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--documents", type=int, default=1, help="in a row; the loops alone let them see each other")
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine: seconds of CPU, with --threads 1")
    parser.add_argument("--shape", help="only this one, by its name")
    parser.add_argument("--mode", help="only this one, such as 'fp32 eager'")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="after which a GPU's remaining contests are left out"
    )
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure peak memory, in processes of their own"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    be_quiet()
    began, scores = time.monotonic(), []
    for shape, mode, names in PROFILES[arguments.profile]:
        if arguments.shape not in (None, shape.name) or arguments.mode not in (None, str(mode)):
            continue
        if arguments.profile == "gpu" and time.monotonic() - began > 60 * arguments.minutes:
            print(f"left out, for {arguments.minutes:g} minutes are over: {shape.name}, {mode}")
            continue
        present = [name for name in names if name != "HF Trainer" or has_accelerate()]
        scores += _contest(shape, mode, present, arguments)
    path = _write(scores, arguments)
    print(f"written: {path}")


def _contest(shape: Shape, mode: Mode, names: list[str], arguments: Any) -> list[Score]:
    flops = flops_per_token(model := shape.model(), model.config, sequence_length=shape.sequence_length)
    del model
    peak, peak_source = peak_flops(device(), mode.precision)
    print(f"\nMFU is measured against {peak:.3g} FLOP/s ({peak_source})")
    trains = {name: CONTESTANTS[name](shape, mode) for name in names}
    scores = {name: Score(shape.name, str(mode), name) for name in names}
    for number in range(arguments.rounds + mode.compile):  # the first round of a compiled contest is not timed
        for name, train in trains.items():
            speed, memory = timed(train, shape, arguments)
            if number >= mode.compile:
                scores[name].tokens_per_second.append(speed)
            scores[name].peak_bytes = max(scores[name].peak_bytes, memory)
    for score in scores.values():
        score.mfu = 0.0 if arguments.cpu_time else score.median * flops / peak  # the peak is one of wall time
    if device().type == "cpu" and not arguments.no_memory:
        for name, score in scores.items():
            score.peak_bytes = in_a_process(_grow, name, shape, mode)
    _print(shape, mode, scores, documents=arguments.documents)
    del trains
    gc.collect()
    torch.compiler.reset()
    return list(scores.values())


def timed(train: Train, shape: Shape, arguments: Any) -> tuple[float, int]:
    """(tokens a second, the GPU's peak in bytes) of one round."""
    first, last = arguments.warmup, arguments.warmup + arguments.steps
    clock = Clock(shape, documents=arguments.documents, marks={first, last}, in_cpu_time=arguments.cpu_time)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    train(clock, last + 1)
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return arguments.steps * shape.tokens / (clock.times[last] - clock.times[first]), memory


def _grow(name: str, shape: Shape, mode: Mode) -> int:
    """The largest resident memory of a process that only trains, less what it had before the model was built."""
    be_quiet()
    CONTESTANTS[name](TINY, mode)(Clock(TINY), 2)  # imports and first calls are not the contest's
    before = begin_peak()
    CONTESTANTS[name](shape, mode)(Clock(shape), 4)
    return status_bytes("VmHWM") - before


def _print(shape: Shape, mode: Mode, scores: dict[str, Score], *, documents: int) -> None:
    rounds = len(next(iter(scores.values())).tokens_per_second)
    print(
        f"{shape.name}, {mode}: {shape.batch_size} x {shape.sequence_length} tokens a step, vocabulary "
        f"{shape.vocab_size}, {documents} document(s) a row; medians of {rounds} rounds by turns"
    )
    print(f"{'':<13}{'tokens/s':>10}{'ours over it':>14}{'quartiles':>15}{'MFU':>8}{'peak memory':>13}")
    for score in scores.values():
        pairs = zip(scores["ours"].tokens_per_second, score.tokens_per_second, strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(
            f"{score.contestant:<13}{score.median:>10,.0f}{statistics.median(ratios):>13.3f}x"
            f"{f'{low:.3f}-{high:.3f}':>15}{score.mfu:>8.1%}{score.peak_bytes / 2**20:>10,.0f} MB",
            flush=True,
        )
    for name, speed in _predicted(shape, mode).items():
        print(f"{name:<13}{speed:>10,} predicted for an H100 (benchmarks.roofline)")


def _predicted(shape: Shape, mode: Mode) -> dict[str, int]:
    """The tokens a second that benchmarks.roofline gave the contestants of a GPU's compiled contest."""
    if not torch.cuda.is_available() or mode != BF16_COMPILED:
        return {}
    planned = json.loads((RESULTS / "roofline.json").read_text(encoding="utf-8")).get(shape.name, {})
    names = {"ours": "ours", "HF Trainer": "HF Trainer, compiled", "minimal GPT": "nanoGPT"}
    return {name: planned[of] for name, of in names.items() if of in planned}


def _write(scores: list[Score], arguments: Any) -> Path:
    is_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if is_gpu else f"cpu-{torch.get_num_threads()}-threads"
    path = arguments.results / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{datetime.date.today()}.json"
    settings = {key: value for key, value in vars(arguments).items() if key != "results"}
    document = {"device": name, "torch": torch.__version__, "settings": settings, "scores": [*map(asdict, scores)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def has_accelerate() -> bool:
    if find_spec("accelerate"):
        return True
    print("HF Trainer is left out: it needs the package accelerate (python -m pip install accelerate)")
    return False


if __name__ == "__main__":
    main()
