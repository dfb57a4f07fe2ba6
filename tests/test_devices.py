"""What this machine or this launch cannot give a run is said in one line, before any work."""

from dataclasses import replace

import pytest
import torch

from llm.config.training import Accelerator, Precision, TrainerConfig
from llm.errors import ConfigError
from llm.run import devices
from llm.run.devices import require_devices, with_precision


def gpus(monkeypatch, *capabilities):
    """Have the machine's GPUs be of these compute capabilities."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {capabilities[index][0]}")


@pytest.mark.parametrize(
    ("capabilities", "accelerator", "devices", "line"),
    [
        ([], Accelerator.gpu, 1, "trainer.accelerator=gpu with trainer.devices=1, but this machine has 0 GPUs that"),
        ([(8, 0)], Accelerator.auto, 2, "trainer.accelerator=auto with trainer.devices=2, but this machine has 1 GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_refused(capabilities, accelerator, devices, line, monkeypatch):
    gpus(monkeypatch, *capabilities)
    with pytest.raises(ConfigError, match=line):
        require_devices(TrainerConfig(accelerator=accelerator, devices=devices))


def test_bf16_is_refused_where_a_gpu_has_none(monkeypatch):
    gpus(monkeypatch, (8, 0), (7, 5))
    require_devices(TrainerConfig(precision=Precision.bf16))
    require_devices(TrainerConfig(devices=2))
    with pytest.raises(
        ConfigError, match=r"trainer.precision=bf16, but Card 7 \(GPU 1\) has no bf16 arithmetic. Set trainer.prec"
    ):
        require_devices(TrainerConfig(devices=2, precision=Precision.bf16))


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("fpu avx512_bf16 sse", Precision.bf16), ("fpu avx512f", Precision.fp32)],
)
def test_auto_is_bf16_where_the_cpu_has_instructions_for_it(flags, precision, tmp_path, monkeypatch):
    gpus(monkeypatch)
    require_devices(TrainerConfig(devices=5, precision=Precision.bf16))  # a CPU takes any number of processes
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n", encoding="ascii")
    asked = TrainerConfig(max_steps=7)
    assert with_precision(asked) == replace(asked, precision=precision)


@pytest.mark.parametrize(
    ("capabilities", "precision"), [([(8, 0)] * 2, Precision.bf16), ([(8, 0), (7, 5)], Precision.fp32)]
)
def test_auto_is_bf16_where_every_gpu_has_it(capabilities, precision, monkeypatch):
    gpus(monkeypatch, *capabilities)
    assert with_precision(TrainerConfig(devices=2)).precision is precision


def test_bf16_that_a_cpu_can_only_imitate_is_warned_of(caplog):
    asked = TrainerConfig(accelerator=Accelerator.cpu, precision=Precision.bf16)
    assert with_precision(asked) is asked
    assert "trainer.precision=bf16: this CPU has no instructions for it, so it is slower than fp32" in caplog.text


def test_several_nodes_want_a_launcher_on_each():
    with pytest.raises(
        ConfigError, match=r"num_nodes=2, but this is one process on one machine. .* srun --nodes=2 --nt"
    ):
        require_devices(TrainerConfig(num_nodes=2, accelerator=Accelerator.cpu))


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1", "WORLD_SIZE": "3"}, {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}],
    ids=["torch", "srun"],
)
def test_a_launch_of_another_size_is_refused(environment, monkeypatch):
    for name, value in (environment | {"TORCHELASTIC_RUN_ID": "mine"}).items():
        monkeypatch.setenv(name, value)
    require_devices(TrainerConfig(devices=3, accelerator=Accelerator.cpu))
    with pytest.raises(
        ConfigError, match=r"this launch has 3 processes, but trainer.devices=2 on trainer.num_nodes=2 takes 4. Make"
    ):
        require_devices(TrainerConfig(devices=2, num_nodes=2, accelerator=Accelerator.cpu))
