"""What a run says of its speed, memory and time left; the peaks that MFU is measured against; traces of steps."""

import json
import mmap
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.config.training import OptimizerConfig, Precision
from llm.run.devices import PEAKS, listed_peaks, peak_flops, resident_bytes
from llm.trainer.fit import fit
from llm.trainer.recording import memory_in_use
from tests.test_trainer import RandomRows, metrics, quick_peak, task

ROOT = Path(__file__).parents[1]
__all__ = ["quick_peak"]  # a fixture that every test here uses


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", logger="llm")
    return caplog


class SlowRows(RandomRows):
    """Rows that take a while to read."""

    seconds = 0.05
    spent = 0.0

    def __getitems__(self, micro_batch: Any) -> dict[str, Any]:
        began = time.perf_counter()
        time.sleep(self.seconds)
        batch = super().__getitems__(micro_batch)
        self.spent += time.perf_counter() - began
        return batch


# Waiting for data


def test_slow_rows_are_told_by_the_share_of_waiting_and_the_time_left(tmp_path: Path) -> None:
    made = task(tmp_path, max_steps=3, batch_size=2, micro_batch_size=1)
    rows = SlowRows(21)
    object.__setattr__(made, "train_rows", rows)
    fit(made)
    records = [record for record in metrics(tmp_path) if "train/loss" in record]
    waited = [record["throughput/data_wait_share"] * _interval_seconds(tmp_path, record) for record in records]
    assert len(waited) == 3 and all(seconds >= 2 * SlowRows.seconds for seconds in waited)  # two micro-batches a step
    assert sum(waited) >= 0.99 * rows.spent
    assert all(record["throughput/data_wait_share"] <= 1 for record in records)
    first = next(record for record in records if "throughput/seconds_left" in record)
    assert first["throughput/seconds_left"] >= 2 * 2 * SlowRows.seconds
    table = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([\w/]+)` \|", table, re.MULTILINE))
    assert {key for record in metrics(tmp_path) for key in record} == documented


def _interval_seconds(folder: Path, record: dict[str, Any]) -> float:
    tokens = [0, *(r["tokens"] for r in metrics(folder) if "train/loss" in r)]
    trained = record["tokens"] - tokens[tokens.index(record["tokens"]) - 1]
    return float(trained / record["throughput/tokens_per_second"])


# What is said


def test_what_is_said_of_the_steps_of_a_warmup_that_does_not_end_and_of_a_trace(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    slow = OptimizerConfig(learning_rate=1e-2, warmup_steps=48)
    fit(task(tmp_path, max_steps=12, log_every_steps=5, profile_steps=2, optimizer=slow))  # a line is due at each step
    steps = [found[1] for message in said.messages if (found := re.match(r"step (\d+) of 12: loss ", message))]
    assert steps == ["5", "10", "12"]
    line = "optimizer.warmup_steps=48, but the run has 12 steps: it ends at 25 % of the peak learning rate"
    assert line in said.messages
    events = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))["traceEvents"]
    assert len([event for event in events if event.get("name", "").startswith("Optimizer.step#")]) == 2
    assert f"2 steps are traced in {tmp_path / 'profile.json'}: open it at https://ui.perfetto.dev" in said.messages
    assert not list(tmp_path.glob(".tmp-*"))


# Memory


def test_on_a_cpu_memory_is_what_the_process_has_in_ram() -> None:
    size = 64 * 2**20
    before = resident_bytes()
    with mmap.mmap(-1, size) as fresh:  # torch's own may lie in what the process has freed and kept
        for page in range(0, size, mmap.PAGESIZE):
            fresh[page] = 1
        grown = memory_in_use(torch.device("cpu")) - before
    assert grown == pytest.approx(size, rel=0.2)


# Peaks


@pytest.mark.parametrize(("precision", "peak"), [(Precision.bf16, 989e12), (Precision.fp32, 67e12), (None, 989e12)])
def test_the_peak_is_that_of_the_precision(
    precision: Precision | None, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H100 80GB HBM3")
    words = "fp32" if precision is Precision.fp32 else "bf16"
    expected = (peak, f"data sheet of NVIDIA H100 80GB HBM3, dense {words}")
    assert peak_flops(torch.device("cuda"), precision) == expected
    measured, source = peak_flops(torch.device("cpu"), precision or Precision.bf16)
    assert measured > 1e8 and source == f"measured cpu, 1024 x 1024 product in {words}"


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 NVL", None),  # another clock than the H100's
    ],
)
def test_a_gpu_is_found_in_the_table_by_its_whole_name(name: str, listed: str | None) -> None:
    assert listed_peaks(name) == (PEAKS[listed] if listed else None)


def test_too_few_steps_are_not_traced_and_it_is_said(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    fit(task(tmp_path, max_steps=6, profile_steps=2))
    assert not (tmp_path / "profile.json").exists()
    expected = "trainer.profile_steps=2: nothing is traced, for 6 steps are left, and the first 5 warm up"
    assert expected in said.messages
