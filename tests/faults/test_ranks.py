"""Other numbers of data workers and of ranks: the same rows at each step, and the same losses."""

import signal
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm.run import launch as launcher
from llm.run.record import read_metrics
from tests.faults.harness import (
    STEPS,
    Moment,
    Running,
    Workspaces,
    faults_of_checkpoints,
    launch,
    leftovers,
    run_folder,
    said,
    strike_fork,
)

Times = Callable[..., Any]
RELATIVE = 1e-6  # sums of floats in another order; measured: 2e-7 of a loss, 2e-5 in a weight
Rows = dict[int, list[str]]


def start_ranks(folder: Path, world_size: int) -> list[Running]:
    """The processes of one launch, as torch.distributed.run would start them."""
    overrides = [f"trainer.devices={world_size}", "trainer.micro_batch_size=1"]
    if world_size == 1:
        return [Running(launch("no dropout", folder, *overrides, keep_rows=True))]
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(launcher._free_port()),
        "TORCHELASTIC_RUN_ID": f"faults-{time.time_ns()}",
    }
    environments = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    return [
        Running(launch("no dropout", folder, *overrides, keep_rows=True, environment=environment))
        for environment in environments
    ]


def take_rows(folder: Path) -> Rows:
    """The rows of each step since they were last taken, over all ranks; a step that was not ended is overwritten."""
    rows: dict[int, list[str]] = defaultdict(list)
    for file in sorted(folder.glob("rows-*.jsonl")):
        for record in read_metrics(file):
            rows[record["step"]] += record["rows"]
        file.unlink()
    return {step: sorted(digests) for step, digests in rows.items()}


def losses(folder: Path) -> list[float]:
    records = read_metrics(run_folder(folder, "no dropout") / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, STEPS + 1))
    return [r[name] for r in records for name in ("train/loss", "val/loss") if name in r]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(run_folder(folder, "no dropout") / "model" / "model.safetensors")


def test_two_ranks_then_one_then_two_train_on_the_same_rows_at_each_step(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    whole = workspaces.fresh("no dropout", tmp_path / "one")
    (running,) = start_ranks(whole, 1)
    assert running.exit_code() == 0, said(whole)[-1500:]
    expected = take_rows(whole)
    folder = workspaces.fresh("no dropout", tmp_path / "w")
    assert [len(expected[step]) for step in range(STEPS)] == [4] * STEPS  # and each step has others
    assert len({tuple(digests) for digests in expected.values()}) == STEPS
    killed = launch("no dropout", folder, "trainer.num_workers=2", keep_rows=True)  # workers may change in number, too
    assert strike_fork(killed, Moment("micro-batch", 9, 0.0)) == -signal.SIGKILL
    found = take_rows(folder)
    for world_size, stop_after in ((2, 4), (1, 6), (2, None)):
        ranks = start_ranks(folder, world_size)
        if stop_after:  # optimizer steps of this launch
            assert ranks[0].reaches("micro-batch", stop_after * 4 // world_size), said(folder)[-3000:]
            ranks[-1].send(signal.SIGTERM)
        codes = [rank.exit_code() for rank in ranks]
        assert codes == [75 if stop_after else 0] * world_size, said(folder)[-3000:]
        assert faults_of_checkpoints(folder) == {}
        found |= take_rows(folder)
    assert found == expected
    assert leftovers(folder) == []
    assert losses(folder) == pytest.approx(losses(whole), rel=RELATIVE)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(folder)[name], weight, rtol=0, atol=1e-4)
