"""Memory that runs out: the step is done again in smaller parts, and nothing else about the run changes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.config.training import Precision
from llm.errors import ConfigError, ShortOfMemoryError, is_out_of_memory
from llm.run.console import log
from llm.stage import run_stage
from llm.trainer import fit
from llm.trainer.memory import kept_size, smaller
from tests.test_dry_run import MODEL, config, text  # noqa: F401  # a fixture
from tests.test_trainer import (
    ROUNDING,
    digest,
    metrics,
    model_of,
    run_interrupted,
    same,
    task,
    untimed,
    values,
    weights,
)

ROWS = 8  # of a step


def short_of(model: torch.nn.Module, *, most: int, from_step: int = 1, where: str = "backward") -> list[int]:
    """Have memory run out at the passes of more than `most` rows from a step on; gives the rows of the passes so far.

    `backward` comes when the last layer's gradients are there already and those of the first are not.
    """
    passes: list[int] = []

    def forward(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            passes.append(len(kwargs["input_ids"]))
            if where == "forward" and is_short():
                raise torch.OutOfMemoryError("simulated")

    def backward(gradient: torch.Tensor) -> torch.Tensor:
        if where == "backward" and is_short():
            raise torch.OutOfMemoryError("simulated")
        return gradient

    def is_short() -> bool:
        return passes[-1] > most and sum(passes) > (from_step - 1) * ROWS

    model.register_forward_pre_hook(forward, with_kwargs=True)
    next(model.parameters()).register_hook(backward)
    return passes


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    monkeypatch.setattr(log, "propagate", True)
    log.setLevel("INFO")
    return lambda: caplog.text


@pytest.mark.parametrize(("rows", "size", "expected"), [(8, 8, 4), (12, 12, 6), (12, 3, 1), (15, 15, 5), (7, 7, 1)])
def test_a_smaller_size_is_the_largest_divisor_up_to_the_half(rows: int, size: int, expected: int) -> None:
    assert smaller(rows, size) == expected
    assert smaller(rows, 1) is None


def test_a_cpu_says_that_it_has_no_memory_left_in_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("from_step", [1, 4, 5])  # before the first checkpoint, before and after one
def test_memory_that_runs_out_leaves_the_losses_and_the_weights_as_they_are(
    where: str, from_step: int, tmp_path: Path, said: Callable[[], str]
) -> None:
    whole = task(tmp_path / "whole", batch_size=ROWS, micro_batch_size=ROWS)
    fit(whole)
    short = task(tmp_path / "short", batch_size=ROWS, micro_batch_size=ROWS)
    passes = short_of(short.model, most=2, from_step=from_step, where=where)
    fit(short)
    assert passes == [8] * (from_step - 1) + [8, 4] + [2, 2, 2, 2] * (10 - from_step + 1)
    for name in ("train/loss", "val/loss"):
        assert values(short.folder, name) == pytest.approx(values(whole.folder, name), rel=1e-5)
    assert [r["step"] for r in metrics(short.folder)] == [r["step"] for r in metrics(whole.folder)]
    for name, weight in weights(whole.model).items():
        torch.testing.assert_close(weights(short.model)[name], weight, rtol=0, atol=1e-4)
    assert f"memory ran out in step {from_step} with 8 rows at once: from now on 4, in 2 parts a step" in said()
    assert f"memory ran out in step {from_step} with 4 rows at once: from now on 2, in 4 parts a step" in said()


@pytest.mark.parametrize("from_step", [1, 3, 4])
def test_a_step_done_again_is_to_the_bit_what_a_stop_before_it_and_a_start_in_smaller_parts_give(
    from_step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout included, the samples, and all records."""

    def made(name: str, size: int) -> Any:
        model = model_of(dropout=0.2)
        return task(
            tmp_path / name,
            model=model,
            batch_size=ROWS,
            held_out=2,  # rows, which are one batch whatever the size
            micro_batch_size=size,
            sample=lambda: [{"prompt": "가", "text": digest(model)}],
        )

    if from_step > 1:
        run_interrupted(made("stopped", 8), from_step - 1, "signal", monkeypatch)
    stopped = made("stopped", 2)
    fit(stopped)
    short = made("short", 8)
    short_of(short.model, most=2, from_step=from_step)
    fit(short)
    assert untimed(short.folder) == untimed(stopped.folder)
    assert (short.folder / "samples.jsonl").read_bytes() == (stopped.folder / "samples.jsonl").read_bytes()
    assert same(weights(short.model), weights(stopped.model))


def test_a_run_goes_on_with_the_size_that_it_came_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = task(tmp_path, batch_size=ROWS, micro_batch_size=ROWS)
    short_of(short.model, most=4, from_step=3)
    run_interrupted(short, 5, "signal", monkeypatch)
    again = task(tmp_path, batch_size=ROWS, micro_batch_size=ROWS)
    passes = short_of(again.model, most=4)
    fit(again)
    assert passes == [4, 4] * 5
    assert json.loads((tmp_path / "micro_batch.json").read_text()) == {"rows": 8, "asked": 8, "size": 4}
    assert kept_size(tmp_path, rows=8, asked=8) == 4
    assert kept_size(tmp_path, rows=8, asked=2) is None  # of another size that the user asks for,
    assert kept_size(tmp_path, rows=4, asked=8) is None  # and on other devices, what was found does not hold


def test_a_row_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    short = task(tmp_path, batch_size=ROWS)
    short_of(short.model, most=0)
    with pytest.raises(ShortOfMemoryError, match=r"does not hold one row of data.sequence_length=12. Lower it, choose"):
        fit(short)
    assert ShortOfMemoryError.exit_code == 74


def short_in_validation(model: torch.nn.Module, *, most: int) -> list[int]:
    """Have memory run out at passes of more than `most` rows without gradients; gives the rows of those so far."""
    passes: list[int] = []

    def forward(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            passes.append(len(kwargs["input_ids"]))
            if passes[-1] > most:
                raise torch.OutOfMemoryError("simulated")

    model.register_forward_pre_hook(forward, with_kwargs=True)
    return passes


def test_a_validation_that_runs_out_of_memory_is_done_again_in_smaller_parts(
    tmp_path: Path, said: Callable[[], str]
) -> None:
    """With dropout on in the steps after it, and every held-out row once."""
    models = [model_of(dropout=0.2), model_of(dropout=0.2)]
    whole, short = (
        task(tmp_path / str(n), model=model, batch_size=ROWS, micro_batch_size=ROWS, max_steps=4)
        for n, model in enumerate(models)
    )
    fit(whole)
    passes = short_in_validation(short.model, most=2)
    fit(short)
    assert passes == [5, 4, 2, 2, 1, 2, 2, 1]  # 5 held-out rows, before the first step and after the last
    assert values(short.folder, "val/loss") == pytest.approx(values(whole.folder, "val/loss"), rel=ROUNDING)
    assert values(short.folder, "train/loss") == values(whole.folder, "train/loss")
    assert same(weights(short.model), weights(whole.model))
    assert not (short.folder / "micro_batch.json").exists()
    assert "memory ran out in a validation with 8 rows at once: from now on 4, whose loss stays" in said()


def test_a_validation_of_one_row_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    short = task(tmp_path, batch_size=ROWS, micro_batch_size=1)
    short_in_validation(short.model, most=0)
    with pytest.raises(ShortOfMemoryError, match=r"outside the passes of a training step\. Choose a smaller model\.$"):
        fit(short)


def test_memory_that_runs_out_outside_a_step_is_one_line(tmp_path: Path) -> None:
    def sample() -> list[dict[str, str]]:
        raise torch.OutOfMemoryError("simulated")

    with pytest.raises(ShortOfMemoryError, match=r"outside the passes of a training step. Set trainer.micro_batch"):
        fit(task(tmp_path, batch_size=ROWS, micro_batch_size=4, sample=sample))
    assert not (tmp_path / "micro_batch.json").exists()


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize(("most", "size"), [(100, 8), (7, 4), (1, 1)])
def test_the_first_step_finds_the_size_where_all_rows_are_begun_with(
    precision: Precision, most: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. The next ones begin with it, and what does not fit changes nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["llm.trainer.fit"], "micro_batch_size", lambda data, _config: data.batch_size)
        short = task(tmp_path, batch_size=ROWS, held_out=1, max_steps=2, precision=precision)
        passes = short_of(short.model, most=most)
        fit(short)
    assert passes == [rows for rows in (8, 4, 2) if rows > size] + [size] * (ROWS // size) * 2
    same_size = task(
        tmp_path / "same", batch_size=ROWS, held_out=1, max_steps=2, precision=precision, micro_batch_size=size
    )
    fit(same_size)
    assert untimed(tmp_path) == untimed(tmp_path / "same")
    assert same(weights(short.model), weights(same_size.model))


def test_more_devices_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices=4 on trainer.num_nodes=1 share out 3 training rows, which"):
        fit(task(tmp_path, rows=3, devices=4))


def test_a_command_with_more_devices_than_rows_is_refused_before_there_is_a_model(
    text: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm.model.begin", None)
    many = ("trainer.devices=512", "data.batch_size=512", "trainer.accelerator=cpu")
    with pytest.raises(
        ConfigError, match=r"trainer.devices=512 on trainer.num_nodes=1 share out \d+ training rows, wh"
    ):
        run_stage(config("pretrain", text, tmp_path / "outputs", *MODEL, *many))


def test_what_is_no_lack_of_memory_is_raised_as_it_was(tmp_path: Path) -> None:
    def sample() -> list[dict[str, str]]:
        raise KeyError("가")

    with pytest.raises(KeyError, match="가"):
        fit(task(tmp_path, sample=sample))
