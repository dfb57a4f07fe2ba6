"""Training: numbers that are right, and a run that was stopped ends as one that was not."""

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from torch.utils.data import DataLoader

from llm import optimizer
from llm.config.data import DataConfig, DataKind
from llm.config.training import (
    Accelerator,
    Algorithm,
    Architecture,
    OptimizerConfig,
    Precision,
    Schedule,
    TrainerConfig,
)
from llm.config.tuning import LoraConfig
from llm.data.order import EvaluationBatches, MicroBatch, TrainingBatches
from llm.errors import DamagedError, DivergedError, MachineError, StoppedError
from llm.logger.live import RunLogger
from llm.model import next_token_nats
from llm.model.loss import IGNORED
from llm.run.record import read_metrics
from llm.trainer.checkpoint import CheckpointFolders, folder_of
from llm.trainer.fit import Fit, fit
from llm.trainer.validation import Evaluation, bits_per_byte, evaluate
from tests.models import small_model
from tests.rounding import rounding

VOCAB, LENGTH = 24, 12
ROUNDING = rounding(VOCAB, LENGTH, 16, 64)  # and a layer's width, and what is between
Uninterrupted = Callable[[str], tuple[Path, dict[str, torch.Tensor]]]
TIMED = ("seconds", "throughput/", "memory/")  # how what no two runs share begins


@dataclass
class RandomRows:
    """Rows of random tokens with very unequal numbers of labels; reading is all that is asked of them."""

    count: int
    seed: int = 0
    raw_bytes: int = 1000
    lost_bytes: int = 30

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        self._tokens = draw.integers(2, VOCAB, size=(self.count, LENGTH + 1))
        self.num_labels = draw.integers(1, LENGTH + 1, size=self.count)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, micro_batch: MicroBatch) -> dict[str, Any]:
        tokens = torch.from_numpy(self._tokens[micro_batch.rows])
        labels = tokens[:, 1:].clone()
        for line, row in enumerate(micro_batch.rows):
            labels[line, self.num_labels[row] :] = IGNORED
        positions = torch.arange(LENGTH).expand(len(labels), LENGTH)
        return {
            "input_ids": tokens[:, :-1],
            "labels": labels,
            "position_ids": positions,
            "num_labels": micro_batch.num_labels,
        }

    def describe(self, rows: np.ndarray[Any, Any]) -> list[str]:
        return [f"row {row}" for row in rows]


def model_of(
    architecture: Architecture = Architecture.gpt2, *, dropout: float = 0.0, lora: bool = False, **settings: Any
) -> torch.nn.Module:
    adapter = LoraConfig(rank=2, alpha=4, dropout=dropout) if lora else None
    shape = {"num_layers": 1, "max_position_embeddings": LENGTH, "dropout": dropout} | settings
    return small_model(architecture, vocab_size=VOCAB, noise=0.0, lora=adapter, **shape)


def task(
    folder: Path,
    *,
    model: torch.nn.Module | None = None,
    max_steps: int = 10,
    rows: int = 21,
    held_out: int = 5,
    batch_size: int = 4,
    sample: Callable[[], list[dict[str, str]]] = list,
    optimizer: OptimizerConfig | None = None,
    **trainer: Any,
) -> Fit:
    folder.mkdir(parents=True, exist_ok=True)
    model = model or model_of()
    settings: dict[str, Any] = {"log_every_steps": 1, "validate_every_steps": 4, "checkpoint_every_steps": 4} | trainer
    settings.setdefault("precision", Precision.fp32)
    return Fit(
        model=model,
        train_rows=RandomRows(rows),
        held_out_rows=RandomRows(held_out, seed=1),
        data=DataConfig(name="x", kind=DataKind.text, path="x", sequence_length=LENGTH, batch_size=batch_size),
        optimizer=optimizer or OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        trainer=TrainerConfig(accelerator=Accelerator.cpu, max_steps=max_steps, **settings),
        seed=7,
        folder=folder,
        logger=RunLogger(),
        sample=sample,
        label="test",
    )


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not measure the machine before every tiny training."""
    monkeypatch.setattr(sys.modules["llm.trainer.fit"], "peak_flops", lambda *_: (1e9, "assumed"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "metrics.jsonl")


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if not key.startswith(TIMED)} for record in metrics(folder)]


def values(folder: Path, name: str) -> list[float]:
    return [record[name] for record in metrics(folder) if name in record]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Bits per byte


@pytest.mark.parametrize(
    ("nats", "raw_bytes", "lost_bytes", "expected"),
    [
        (100 * math.log(2), 50, 0, 2.0),  # 100 bits over 50 bytes
        (100 * math.log(2), 50, 5, 2.8),  # and 5 x 8 bits for what was lost
        (0.0, 10, 10, 8.0),  # a tokenizer that says nothing costs what no model does
    ],
)
def test_bits_per_byte_of_raw_text(nats: float, raw_bytes: int, lost_bytes: int, expected: float) -> None:
    assert bits_per_byte(nats, raw_bytes=raw_bytes, lost_bytes=lost_bytes) == pytest.approx(expected, rel=1e-12)


def evaluated(model: torch.nn.Module, rows: RandomRows, batch_size: int) -> Any:
    batches = EvaluationBatches(rows.num_labels, batch_size=batch_size)
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=lambda batch: batch)
    return evaluate(model, loader, rows, device=torch.device("cpu"))


def test_evaluation_is_the_mean_over_all_labels_of_a_slow_loop() -> None:
    model, rows = model_of(dropout=0.5).train(), RandomRows(7)
    result = evaluated(model, rows, 3)
    assert model.training  # as it was before
    model.eval()
    nats = 0.0
    for row in range(7):
        tokens = torch.from_numpy(rows._tokens[row])
        with torch.no_grad():
            scores = model(input_ids=tokens[None, :-1], use_cache=False).logits[0].double()
        for place in range(rows.num_labels[row]):
            nats -= float(torch.log_softmax(scores[place], 0)[tokens[place + 1]])
    assert result.loss == pytest.approx(nats / rows.num_labels.sum(), rel=ROUNDING)
    assert result.bits_per_byte == pytest.approx((nats / math.log(2) + 30 * 8) / 1000, rel=ROUNDING)


# The loss of a step


def plain_loop(made: Fit, *, leave_out: int = 0) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(the losses, the weights) of a loop without Lightning, in which one step may leave the weights as they are."""
    model, steps = made.model, made.trainer.max_steps
    order = {"batch_size": made.data.batch_size, "micro_batch_size": made.data.batch_size, "num_steps": steps}
    batches = TrainingBatches(made.train_rows.num_labels, seed=made.seed, **order)
    decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and "wte" not in name and "wpe" not in name]
    others = [p for p in model.parameters() if not any(p is q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses = []
    for step, (batch,) in enumerate(batches):
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * step / (steps - 1))) / 2
        for group in adamw.param_groups:
            group["lr"] = made.optimizer.learning_rate * cosine
        loss = next_token_nats(model, made.train_rows.__getitems__(batch)) / batch.num_labels
        losses.append(loss.item())
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step + 1 != leave_out:
            adamw.step()
    return losses, weights(model)


def test_training_is_what_a_plain_loop_does(tmp_path: Path) -> None:
    made, again = (
        task(tmp_path, max_steps=6, micro_batch_size=2, optimizer=OptimizerConfig(warmup_steps=0)) for _ in range(2)
    )
    fit(made)
    losses, expected = plain_loop(again)
    assert values(tmp_path, "train/loss") == pytest.approx(losses, rel=1e-5)
    for name, weight in expected.items():
        torch.testing.assert_close(weights(made.model)[name], weight, rtol=0, atol=1e-5)


def test_each_step_draws_a_dropout_of_its_own(tmp_path: Path) -> None:
    still = OptimizerConfig(learning_rate=1e-30, warmup_steps=0)
    fit(task(tmp_path, model=model_of(dropout=0.5), rows=1, batch_size=1, max_steps=4, optimizer=still))
    assert len(set(values(tmp_path, "train/loss"))) == 4  # of the same row and weights


def test_a_record_of_several_steps_has_their_labels_and_their_mean_loss_over_them(tmp_path: Path) -> None:
    fit(task(tmp_path / "every", max_steps=12, log_every_steps=1))
    fit(task(tmp_path / "fifth", max_steps=12, log_every_steps=5, micro_batch_size=1))
    rows = RandomRows(21)
    batches = TrainingBatches(rows.num_labels, batch_size=4, micro_batch_size=4, num_steps=12, seed=7)
    tokens = np.array([rows.num_labels[batches.rows_of(step)].sum() for step in range(12)])
    losses = np.array(values(tmp_path / "every", "train/loss"))
    expected = [np.average(losses[here], weights=tokens[here]) for here in (slice(5), slice(5, 10), slice(10, 12))]
    assert values(tmp_path / "fifth", "train/loss") == pytest.approx(expected, rel=1e-6)
    logged = {r["step"]: r["tokens"] for r in metrics(tmp_path / "fifth") if "train/loss" in r}
    assert logged == {step: tokens[:step].sum() for step in (5, 10, 12)}


def test_two_workers_read_what_none_do(tmp_path: Path) -> None:
    for workers in (0, 2):
        fit(task(tmp_path / str(workers), max_steps=3, num_workers=workers))
    assert untimed(tmp_path / "2") == untimed(tmp_path / "0")


def test_mfu_is_the_flops_of_the_model_over_those_of_the_device(tmp_path: Path) -> None:
    made = task(tmp_path, max_steps=2)
    fit(made)
    h, inner = 16, 64
    block = 4 * h * h + 2 * h * inner + (3 * h + h + inner + h) + 4 * h
    per_token = 6 * (VOCAB * h + block + 2 * h) + 12 * 1 * h * LENGTH
    for record in metrics(tmp_path):
        if "throughput/mfu" in record:
            expected = record["throughput/tokens_per_second"] * per_token / 1e9
            assert record["throughput/mfu"] == pytest.approx(expected, rel=1e-9)
            assert record["train/flops"] == record["tokens"] * per_token


# Validation and samples


def test_validation_with_its_samples_is_before_the_first_step_every_so_many_and_at_the_last(tmp_path: Path) -> None:
    calls = iter(range(100))
    fit(task(tmp_path, sample=lambda: [{"prompt": p, "text": f"글 {next(calls)}"} for p in ("가", "나")]))
    steps = (0, 4, 8, 10)
    assert [record["step"] for record in metrics(tmp_path) if "val/loss" in record] == [*steps]
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = [
        {"step": step, "prompt": prompt, "text": f"글 {2 * i + j}"}
        for i, step in enumerate(steps)
        for j, prompt in enumerate("가나")
    ]
    assert rows == expected


def test_sampling_and_validating_do_not_change_the_training(tmp_path: Path) -> None:
    def sample() -> list[dict[str, str]]:
        return [{"prompt": "가", "text": str(torch.rand(()).item())}]

    fit(task(tmp_path / "often", model=model_of(dropout=0.3), validate_every_steps=1, sample=sample))
    fit(task(tmp_path / "rarely", model=model_of(dropout=0.3), validate_every_steps=10))
    assert values(tmp_path / "often", "train/loss") == values(tmp_path / "rarely", "train/loss")


# Going on after a stop


class Stop(Exception):
    pass


def stopping(step: int, how: str, patch: pytest.MonkeyPatch) -> None:
    """Have a signal come, or an error be raised, once `step` optimizer steps are done."""
    build_as_before = optimizer.build
    started: list[int] = []

    def count(*_: Any) -> None:
        started.append(1)
        if how == "error" and len(started) == step + 1:
            raise Stop
        if how == "signal" and len(started) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    def build_and_count(*args: Any, **kwargs: Any) -> Any:
        built, schedule = build_as_before(*args, **kwargs)
        built.register_step_pre_hook(count)
        return built, schedule

    patch.setattr(optimizer, "build", build_and_count)


VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"architecture": Architecture.llama},
    "lora": {"lora": True},
    "muon": {},
}


def resumable(folder: Path, variant: str, **settings: Any) -> Fit:
    """A task in which dropout, the order of rows over epochs (21 rows, 4 a step) and accumulation have to go on."""
    model = model_of(**VARIANTS[variant], dropout=0.2)
    algorithm = Algorithm.muon if variant == "muon" else Algorithm.adamw
    how = OptimizerConfig(algorithm=algorithm, learning_rate=1e-2, warmup_steps=3)
    settings = {"max_steps": 14, "micro_batch_size": 2, "log_every_steps": 3, "checkpoint_every_steps": 4} | settings
    settings["sample"] = lambda: [{"prompt": "가", "text": digest(model)}]
    return task(folder, model=model, optimizer=how, **settings)


def digest(model: torch.nn.Module) -> str:
    return str(sum(float(p.detach().double().sum()) for p in model.parameters()))


def run_interrupted(made: Fit, step: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopping(step, how, patch)
        with pytest.raises(StoppedError if how == "signal" else Stop):
            fit(made)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    made: dict[str, tuple[Path, dict[str, torch.Tensor]]] = {}

    def get(variant: str) -> tuple[Path, dict[str, torch.Tensor]]:
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            whole = resumable(folder, variant)
            fit(whole)
            made[variant] = folder, weights(whole.model)
        return made[variant]

    return get


def assert_same_as_uninterrupted(made: Fit, whole: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, expected = whole
    assert untimed(made.folder) == untimed(folder)
    assert (made.folder / "samples.jsonl").read_bytes() == (folder / "samples.jsonl").read_bytes()
    assert same(weights(made.model), expected)


@pytest.mark.parametrize(
    ("step", "how"),
    [(1, "signal"), (4, "signal"), (14, "signal"), (0, "error"), (5, "error"), (13, "error")],
)
def test_a_stopped_run_ends_as_one_that_was_not(
    step: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Uninterrupted
) -> None:
    run_interrupted(resumable(tmp_path, "gpt2"), step, how, monkeypatch)
    again = resumable(tmp_path, "gpt2")
    fit(again)
    assert_same_as_uninterrupted(again, uninterrupted("gpt2"))


@pytest.mark.parametrize(
    ("variant", "step", "how"), [("llama", 6, "signal"), ("lora", 9, "error"), ("muon", 9, "error")]
)
def test_any_model_goes_on_where_it_was(
    variant: str, step: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Uninterrupted
) -> None:
    run_interrupted(resumable(tmp_path, variant), step, how, monkeypatch)
    again = resumable(tmp_path, variant)
    fit(again)
    assert_same_as_uninterrupted(again, uninterrupted(variant))


def test_a_run_may_be_stopped_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Uninterrupted
) -> None:
    for how, step in (("signal", 2), ("error", 1), ("signal", 5)):
        run_interrupted(resumable(tmp_path, "gpt2"), step, how, monkeypatch)
    again = resumable(tmp_path, "gpt2")
    fit(again)
    assert_same_as_uninterrupted(again, uninterrupted("gpt2"))


def test_a_finished_training_is_not_trained_on(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    fit(resumable(tmp_path, "gpt2"))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = resumable(tmp_path, "gpt2")
    fit(again)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert same(weights(again.model), uninterrupted("gpt2")[1])


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    fit(task(tmp_path, keep_checkpoints=2))
    assert steps_kept(tmp_path) == [8, 10]


def test_the_signals_mean_what_they_did_before_once_training_has_ended(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    fit(task(tmp_path, max_steps=1))
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("place", ["validation", "first micro-batch"])
def test_a_signal_within_a_step_lets_it_end(place: str, tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    made = resumable(tmp_path, "gpt2")
    calls = []

    def send(*_: Any) -> None:
        calls.append(1)
        if len(calls) == (1 if place == "validation" else 3 + 1):  # three batches of held-out rows come first
            os.kill(os.getpid(), signal.SIGTERM)

    made.model.register_forward_pre_hook(send)
    with pytest.raises(StoppedError, match="after step 1"):
        fit(made)
    again = resumable(tmp_path, "gpt2")
    fit(again)
    assert_same_as_uninterrupted(again, uninterrupted("gpt2"))


# Divergence


@pytest.mark.parametrize("settings", [{"log_every_steps": 100}, {"validate_every_steps": 1}])
def test_a_run_that_explodes_ends(settings: dict[str, int], tmp_path: Path) -> None:
    wild = OptimizerConfig(learning_rate=1e30, warmup_steps=0)
    with pytest.raises(DivergedError, match=r"(val/loss is (nan|inf)|are not finite).* Lower optimizer.learning_rate"):
        fit(task(tmp_path, optimizer=wild, **settings))
    assert DivergedError.exit_code == 70
    for record in metrics(tmp_path):
        assert all(math.isfinite(value) for value in record.values())


def poison(model: torch.nn.Module, steps: set[int], *, with_: float = math.nan, micro_batches: int = 1) -> None:
    """Spoil the gradients of the given steps, counted from 1, in the last of their micro-batches."""
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        step, rest = divmod(len(calls), micro_batches)
        return gradient * with_ if rest == 0 and step in steps else gradient

    model.lm_head.weight.register_hook(spoil)


@pytest.mark.parametrize("with_", [math.nan, math.inf])
def test_a_step_whose_gradients_are_not_finite_is_left_out(
    with_: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = OptimizerConfig(warmup_steps=0)
    made, again = (task(tmp_path, max_steps=6, batch_size=8, optimizer=how) for _ in range(2))
    poison(made.model, {3}, with_=with_)
    fit(made)
    assert values(tmp_path, "train/skipped_steps") == [0, 0, 1, 1, 1, 1]
    assert [record["step"] for record in metrics(tmp_path) if "train/loss" in record] == [1, 2, 4, 5, 6]
    first = TrainingBatches(RandomRows(21).num_labels, batch_size=8, micro_batch_size=8, num_steps=6, seed=7).rows_of(2)
    named = ", ".join(f"row {row}" for row in first[:4])
    assert f"skipped step 3 ({named}, and 4 rows more): its gradients are not finite" in caplog.text
    _, expected = plain_loop(again, leave_out=3)
    for name, value in weights(made.model).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_makes_gradients_that_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the model's own gradients would be."""
    calls: list[int] = []

    def spoiled(model: torch.nn.Module, batch: dict[str, Any], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        nats = next_token_nats(model, batch, **more) + (math.inf if len(calls) == 2 else 0.0)
        return nats, nats

    monkeypatch.setattr("llm.trainer.module.next_token_loss", spoiled)
    fit(task(tmp_path, max_steps=3))
    assert values(tmp_path, "train/skipped_steps") == [0, 1, 1]


def test_skipped_steps_in_a_row_end_the_run_with_its_weights_as_they_were(tmp_path: Path) -> None:
    made = task(tmp_path, max_steps=9, checkpoint_every_steps=1, stop_after_skipped_steps=3, keep_checkpoints=9)
    poison(made.model, {2, 4, 5, 6})
    with pytest.raises(
        DivergedError, match=r"3 steps in a row are not finite, the last at step 6 \(row \d+, .*none of"
    ):
        fit(made)
    states = [CheckpointFolders().load_checkpoint(folder_of(tmp_path / "checkpoints", n))["state_dict"] for n in (3, 5)]
    assert same(*states)
    assert all(value.isfinite().all() for value in states[0].values())
    assert not folder_of(tmp_path / "checkpoints", 6).exists()


def test_a_run_with_skipped_steps_goes_on_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(folder: Path, *, begin: int = 0) -> Fit:
        one = resumable(folder, "gpt2", max_steps=10, log_every_steps=5, checkpoint_every_steps=10)
        poison(one.model, {step - begin for step in (3, 6, 7)}, micro_batches=2)
        return one

    whole = made(tmp_path / "whole")
    fit(whole)
    run_interrupted(made(tmp_path / "cut"), 6, "signal", monkeypatch)
    again = made(tmp_path / "cut", begin=6)
    fit(again)
    assert_same_as_uninterrupted(again, (whole.folder, weights(whole.model)))
    assert metrics(whole.folder)[-2]["train/skipped_steps"] == 3


# Keeping checkpoints


def test_the_best_validation_is_remembered_by_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([9.0, 5.0, 4.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr("llm.trainer.module.evaluate", lambda *_, **__: Evaluation(next(losses), 1.0))
    settings = {"validate_every_steps": 2, "checkpoint_every_steps": 5, "keep_checkpoints": 1, "keep_best": True}
    run_interrupted(task(tmp_path, **settings), 7, "signal", monkeypatch)
    fit(task(tmp_path, **settings))
    assert steps_kept(tmp_path) == [4, 10]


def test_checkpoints_are_saved_by_the_clock_too(tmp_path: Path) -> None:
    fit(task(tmp_path, max_steps=3, checkpoint_every_steps=100, checkpoint_every_minutes=1e-9, keep_checkpoints=9))
    assert steps_kept(tmp_path) == [1, 2, 3]


def test_an_older_checkpoint_stays_where_the_new_one_is_not_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.trainer.module.find_fault", lambda path: "a bit" if path.name.endswith("8") else None)
    with pytest.raises(DamagedError, match=r"step-00000008 is not what was written \(a bit\). Check the disk"):
        fit(task(tmp_path, keep_checkpoints=1))
    assert steps_kept(tmp_path) == [4, 8]


@pytest.mark.parametrize(("schedule", "number"), [(Schedule.cosine, 3), (Schedule.wsd, 4)])
def test_a_disk_without_room_is_refused_before_the_first_step(
    schedule: Schedule, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("llm.trainer.checkpoint.shutil.disk_usage", lambda _path: usage)
    refusal = rf"0.00 GB are free on the disk, but {number} checkpoints of .* lower trainer.keep_"
    with pytest.raises(MachineError, match=refusal):
        fit(task(tmp_path, optimizer=OptimizerConfig(warmup_steps=3, schedule=schedule)))
    assert not (tmp_path / "metrics.jsonl").exists()


def steps_kept(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


# Lightning


def test_what_is_replaced_in_lightning_is_there() -> None:
    """fit() puts something in the place of these two, which would do nothing under other names."""
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
