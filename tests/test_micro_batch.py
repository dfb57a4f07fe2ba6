"""Memory that runs out: what was begun is done again in smaller parts, and nothing else about the run changes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.config.training import Precision
from llm.errors import ConfigError, MachineError, is_out_of_memory
from llm.stage import run_stage
from llm.trainer.fit import fit
from tests.test_dry_run import MODEL, config, text  # noqa: F401  # a fixture
from tests.test_trainer import (
    ROUNDING,
    digest,
    model_of,
    quick_peak,  # noqa: F401  # a fixture
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
        if torch.is_grad_enabled() is (where != "validation"):
            passes.append(len(kwargs["input_ids"]))
            if where != "backward" and is_short():
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


def test_a_cpu_says_that_it_has_no_memory_left_in_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("where", "from_step"), [("forward", 5), ("backward", 1)])
def test_memory_that_runs_out_leaves_the_losses_and_the_weights_as_they_are(
    where: str, from_step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = task(tmp_path / "whole", batch_size=ROWS, micro_batch_size=ROWS)
    fit(whole)
    short = task(tmp_path / "short", batch_size=ROWS, micro_batch_size=ROWS)
    passes = short_of(short.model, most=2, from_step=from_step, where=where)
    fit(short)
    assert passes == [8] * (from_step - 1) + [8, 4] + [2, 2, 2, 2] * (10 - from_step + 1)
    for name in ("train/loss", "val/loss"):
        assert values(short.folder, name) == pytest.approx(values(whole.folder, name), rel=1e-5)
    for name, weight in weights(whole.model).items():
        torch.testing.assert_close(weights(short.model)[name], weight, rtol=0, atol=1e-4)
    assert "memory ran out with 8 rows at once: from now on 4, with the same rows a step" in caplog.text
    assert "memory ran out with 4 rows at once: from now on 2, with the same rows a step" in caplog.text


def test_a_step_done_again_is_to_the_bit_what_a_stop_before_it_and_a_start_in_smaller_parts_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout included, the samples, and all records."""

    def made(name: str, size: int) -> Any:
        model = model_of(dropout=0.2)
        settings = {"batch_size": ROWS, "held_out": 2, "micro_batch_size": size}  # 2 are one batch whatever the size
        return task(tmp_path / name, model=model, sample=lambda: [{"text": digest(model)}], **settings)

    run_interrupted(made("stopped", 8), 3, "signal", monkeypatch)
    stopped = made("stopped", 2)
    fit(stopped)
    short = made("short", 8)
    short_of(short.model, most=2, from_step=4)
    fit(short)
    assert untimed(short.folder) == untimed(stopped.folder)
    assert (short.folder / "samples.jsonl").read_bytes() == (stopped.folder / "samples.jsonl").read_bytes()
    assert same(weights(short.model), weights(stopped.model))


def test_a_run_goes_on_with_the_size_that_it_came_to_unless_another_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = task(tmp_path, batch_size=12, micro_batch_size=12)
    short_of(short.model, most=6)
    run_interrupted(short, 3, "signal", monkeypatch)
    assert json.loads((tmp_path / "micro_batch.json").read_text()) == {"rows": 12, "asked": 12, "size": 6}
    for asked, steps, expected in ((12, 2, [6, 6] * 2), (3, 5, [3, 3, 3, 3] * 5)):
        again = task(tmp_path, batch_size=12, micro_batch_size=asked)
        passes = short_of(again.model, most=12)
        if asked == 12:
            run_interrupted(again, steps, "signal", monkeypatch)
        else:
            fit(again)
        assert passes == expected


def test_a_validation_that_runs_out_of_memory_is_done_again_in_smaller_parts(tmp_path: Path) -> None:
    whole, short = (
        task(tmp_path / str(n), model=model_of(dropout=0.2), batch_size=ROWS, micro_batch_size=n, max_steps=4)
        for n in (2, ROWS)
    )
    fit(whole)
    passes = short_of(short.model, most=2, where="validation")
    fit(short)
    assert passes == [5, 4, 2, 2, 1, 2, 2, 1]  # 5 held-out rows, before the first step and after the last
    assert values(short.folder, "val/loss") == pytest.approx(values(whole.folder, "val/loss"), rel=ROUNDING)
    assert same(weights(short.model), weights(whole.model))  # as its training passes take no more rows than that


@pytest.mark.parametrize("where", ["backward", "sample"])
def test_memory_that_is_too_little_for_one_row_is_one_line(where: str, tmp_path: Path) -> None:
    def sample() -> list[dict[str, str]]:
        raise torch.OutOfMemoryError("simulated")

    more: dict[str, Any] = {"sample": sample} if where == "sample" else {}
    short = task(tmp_path, batch_size=ROWS, micro_batch_size=1, **more)
    short_of(short.model, most=0 if where != "sample" else ROWS, where=where)
    with pytest.raises(
        MachineError, match=r"out of memory with trainer.micro_batch_size=1. Lower that, or data"
    ) as caught:
        fit(short)
    assert (caught.value.exit_code, caught.value.kind) == (74, "out_of_memory")


def test_the_first_step_finds_the_size_where_all_rows_are_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. The next ones begin with it, and what does not fit changes nothing."""
    settings: dict[str, Any] = {"batch_size": ROWS, "held_out": 1, "max_steps": 2, "precision": Precision.bf16}
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["llm.trainer.rows"], "micro_batch_size", lambda data, _config: data.batch_size)
        short = task(tmp_path, **settings)
        passes = short_of(short.model, most=1)
        fit(short)
    assert passes == [8, 4, 2] + [1] * ROWS * 2
    same_size = task(tmp_path / "same", **settings, micro_batch_size=1)
    fit(same_size)
    assert untimed(tmp_path) == untimed(tmp_path / "same")
    assert same(weights(short.model), weights(same_size.model))


def test_a_command_with_more_devices_than_rows_is_refused_before_there_is_a_model(
    text: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm.model.build", None)
    many = ("trainer.devices=512", "data.batch_size=512", "trainer.accelerator=cpu")
    with pytest.raises(
        ConfigError, match=r"trainer.devices=512 on trainer.num_nodes=1 share out \d+ training rows, wh"
    ):
        run_stage(config("pretrain", text, tmp_path / "outputs", *MODEL, *many))
