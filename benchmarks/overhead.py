"""What a step costs beside its model: fit() less a bare loop around the same modules, and the Trainer's own beside it.

python -m benchmarks.overhead
python -m benchmarks.overhead --cpu-time --threads 1     # on a busy machine

A bare loop takes a batch, the loss, its gradients, their norm, the optimizer's step and the schedule's, and nothing
else: ours around our loss, the Trainer's around the model's own. Each round, all four train some steps by turns; an
overhead is the median over rounds of what a side took more than its bare loop in the same round. `host` is a model of
next to nothing, at which what the host does for a step is measured without the noise of a model's products: the
milliseconds that are added there, over a larger shape's bare step, are the second figure of that shape.

The Trainer needs one more package: python -m pip install accelerate
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.contestants import OPTIMIZER, Clock, Mode, Shape, Train, hugging_face, ours
from benchmarks.harness import be_quiet, device, options
from benchmarks.train_throughput import BF16, FP32, FP32_COMPILED, SMALL, TINY, has_accelerate, timed
from llm import optimizer
from llm.model import compiled, next_token_nats

HOST = Shape(name="host", num_layers=1, num_heads=1, hidden_size=8, vocab_size=64, sequence_length=8, batch_size=1)
Rounds = dict[str, list[tuple[float, float]]]  # by side, in each round: seconds a step of it and of its bare loop
MODES = {str(mode): mode for mode in (FP32, BF16, FP32_COMPILED)}


def bare_loop_of_ours(shape: Shape, mode: Mode) -> Train:
    """Our loss, optimizer and schedule, and nothing around them."""
    model: Any = shape.model().train()
    passes = compiled() if mode.compile else None

    def loss_of(batch: dict[str, Any]) -> torch.Tensor:
        return next_token_nats(model, batch | {"document_bounds": None}, passes=passes) / shape.tokens

    return partial(_bare_loop, model, mode, loss_of)


def bare_loop_of_theirs(shape: Shape, mode: Mode) -> Train:
    """The loss that the model itself gives, as the Trainer asks for it."""
    model: Any = shape.stock_model().train()
    model.config.use_cache = False
    if mode.compile:
        model.compile()

    def loss_of(batch: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        return loss

    return partial(_bare_loop, model, mode, loss_of)


def _bare_loop(model: Any, mode: Mode, loss_of: Callable[[Any], torch.Tensor], clock: Clock, steps: int) -> None:
    adamw, schedule = optimizer.build(model, OPTIMIZER, max_steps=steps)
    for batch in _batches(clock, steps):
        with mode.autocast():
            loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.gradient_clip_norm)
        adamw.step()
        adamw.zero_grad()
        schedule.step()


def _batches(clock: Clock, steps: int) -> Iterator[dict[str, torch.Tensor]]:
    draw = np.random.default_rng(0)
    for _ in range(steps):
        clock.note()
        taken = clock.take(draw.integers(0, clock.rows, clock.shape.batch_size))
        yield {name: value.to(device(), non_blocking=True) for name, value in taken.items()}


SIDES: dict[str, tuple[Callable[[Shape, Mode], Train], Callable[[Shape, Mode], Train]]] = {
    "ours": (ours, bare_loop_of_ours),
    "HF Trainer": (hugging_face, bare_loop_of_theirs),
}


def seconds_of_steps(shape: Shape, mode: Mode, sides: list[str], arguments: Any) -> Rounds:
    """What each takes for a step; the first round of a compiled contest is left out."""
    trains = {name: [make(shape, mode) for make in SIDES[name]] for name in sides}
    found: Rounds = {name: [] for name in sides}
    for number in range(arguments.rounds + mode.compile):
        for name, pair in trains.items():
            whole, bare = (shape.tokens / timed(train, shape, arguments)[0] for train in pair)
            if number >= mode.compile:
                found[name].append((whole, bare))
    return found


def show(shape: Shape, mode: Mode, found: Rounds, added: dict[str, float]) -> None:
    """A row a side; `added` holds the seconds that each adds to a step of the host's shape."""
    print(f"\n{shape.name}, {mode}: {shape.batch_size} x {shape.sequence_length} tokens a step")
    print(f"{'':<12}{'bare loop':>12}{'overhead':>12}{'':>9}{'quartiles':>19}{'by the host':>14}")
    for name, rounds in found.items():
        bare, more = statistics.median(bare for _, bare in rounds), [whole - bare for whole, bare in rounds]
        shares = [whole / bare - 1 for whole, bare in rounds]
        low, _, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else shares * 3
        print(
            f"{name:<12}{1e3 * bare:>9.2f} ms{1e3 * statistics.median(more):>9.2f} ms{statistics.median(shares):>9.2%}"
            f"{f'{low:.2%} to {high:.2%}':>19}{added[name] / bare:>14.2%}",
            flush=True,
        )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=10, help="timed in each round, one of them with a log record")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--cpu-time", action="store_true", help="on a busy machine: seconds of CPU, with --threads 1")
    parser.add_argument("--mode", choices=MODES, default=str(FP32))
    parser.add_argument("--shape", choices=[SMALL.name, TINY.name], help="only this one")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.documents = 1
    be_quiet()
    mode, sides = MODES[arguments.mode], [name for name in SIDES if name != "HF Trainer" or has_accelerate()]
    on_host = argparse.Namespace(**vars(arguments) | {"steps": 10 * arguments.steps})  # which are short
    found = seconds_of_steps(HOST, replace(mode, compile=False), sides, on_host)
    added = {name: statistics.median(whole - bare for whole, bare in rounds) for name, rounds in found.items()}
    show(HOST, replace(mode, compile=False), found, added)
    for shape in (SMALL, TINY):
        if arguments.shape in (None, shape.name):
            show(shape, mode, seconds_of_steps(shape, mode, sides, arguments), added)


if __name__ == "__main__":
    main()
