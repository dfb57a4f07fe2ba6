"""What a machine has is handed out by count: never more than there is, and all of it comes back."""

from types import SimpleNamespace

import pytest
from test_config import config_of

from llm.config.evaluation import EvaluationConfig
from llm.config.sweeping import PoolConfig, RetryConfig
from llm.config.training import Accelerator, TrainerConfig
from llm.errors import ConfigError
from llm.sweep.pool import Estimates, prepare_server
from llm.sweep.shares import BYTES_PER_JOB, Share, Shares, present_gpus


def job(devices: int = 1, accelerator: Accelerator = Accelerator.auto):
    return SimpleNamespace(stage="pretrain", trainer=TrainerConfig(devices=devices, accelerator=accelerator))


def shares(gpus: str = "", *, cores: int = 8, num_jobs: int = 4, memory: int = 10**12, **settings) -> Shares:
    return Shares(PoolConfig(**settings), num_jobs=num_jobs, gpus=gpus.split(), cores=cores, memory=memory)


def taken(made: Shares, *configs) -> list[Share]:
    """The shares of as many jobs as run at once."""
    return [share for config in configs if (share := made.take(config))]


@pytest.mark.parametrize(
    ("machine", "at_once", "threads"),
    [
        ({"cores": 2, "num_jobs": 9}, 2, 1),
        ({"cores": 8, "num_jobs": 2}, 2, 4),
        ({"cores": 8, "num_jobs": 9, "memory": 6_500_000_000}, 3, 2),
        ({"cores": 8, "num_jobs": 9, "memory": 1}, 1, 8),
        ({"cores": 8, "jobs": 3, "memory": 1}, 3, 2),
        ({"cores": 2, "jobs": 5, "threads": 2}, 5, 2),
    ],
)
def test_jobs_at_once_and_their_threads_come_from_cores_and_memory(machine, at_once, threads):
    found = taken(shares(**machine), *[job()] * 9)
    assert [share.environment["OMP_NUM_THREADS"] for share in found] == [str(threads)] * at_once


def test_each_job_takes_the_memory_of_its_own_model_and_gives_it_back():
    small, large = job(), job(2)
    made = Shares(
        PoolConfig(),
        **{"num_jobs": 9, "gpus": [], "cores": 8, "memory": 10_000},
        bytes_of=lambda config: 1_000 if config is small else 3_500,
    )
    of_large, *others = taken(made, large, small, small, large, small, small)
    assert [of_large.memory, *(share.memory for share in others)] == [7_000, 1_000, 1_000, 1_000]
    made.give_back(of_large)
    assert made.take(large).memory == 7_000


def test_the_memory_of_a_training_is_what_a_dry_run_says_of_it(tmp_path):
    small, large = (
        config_of(
            "data=text", "data.path=x", f"outputs={tmp_path}", f"model.intermediate_size={size}", "model.num_layers=1"
        )
        for size in (64, 200_064)
    )
    prepare_server(["pretrain"])
    estimates = Estimates(threads=1)
    of_small, of_large = estimates(small), estimates(large)
    more = 2 * 200_000 * small.model.hidden_size + 200_000  # parameters of a layer that is so much wider
    assert of_large - of_small >= 16 * more  # weights, gradients and two moments, in fp32
    assert estimates(SimpleNamespace(stage="export")) == BYTES_PER_JOB
    assert list(tmp_path.iterdir()) == []


def test_each_gpu_goes_to_one_job_and_comes_back():
    made = shares("0 1 2")
    two, one = made.take(job(2)), made.take(job())
    assert (two.environment["CUDA_VISIBLE_DEVICES"], one.environment["CUDA_VISIBLE_DEVICES"]) == ("0,1", "2")
    assert made.take(job()) is None
    assert made.take(job(accelerator=Accelerator.cpu)).environment["CUDA_VISIBLE_DEVICES"] == ""
    assert made.take(SimpleNamespace(stage="tokenizer")).gpus == ()
    shared = shares("0 1", jobs_per_gpu=2)
    assert [share.gpus for share in taken(shared, *[job()] * 5)] == [("0",), ("1",), ("0",), ("1",)]
    made.give_back(two)
    assert made.take(job(3)) is None
    assert made.take(SimpleNamespace(evaluation=EvaluationConfig())).gpus == ("0",)
    assert made.take(job()).gpus == ("1",)


def test_a_process_for_each_device_takes_a_slot_and_the_threads_of_one():
    made = shares(cores=4, num_jobs=4)
    assert made.take(job(3)).environment["OMP_NUM_THREADS"] == "1"
    assert made.take(job(2)) is None
    assert made.take(job()) is not None
    assert shares(cores=2, num_jobs=4).take(job(8)).slots == 2  # more than there are slots: by itself


@pytest.mark.parametrize(("gpus", "devices"), [("0 1", 3), ("", 1)])
def test_more_gpus_than_there_are_is_refused(gpus, devices):
    accelerator = Accelerator.auto if gpus else Accelerator.gpu
    said = f"stage=pretrain asks for {devices} GPUs, but a job can have {len(gpus.split())} here. Set trainer.devices"
    with pytest.raises(ConfigError, match=said):
        shares(gpus).check(job(devices, accelerator))


@pytest.mark.parametrize(("visible", "gpus"), [("", []), ("-1", []), ("3, GPU-a", ["3", "GPU-a"]), (None, ["0", "1"])])
def test_the_gpus_are_those_that_the_environment_leaves_or_the_driver_has(monkeypatch, tmp_path, visible, gpus):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert present_gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 0\necho 1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert present_gpus() == gpus


def test_a_setting_of_the_launcher_that_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.retries\.killed=-1 is out of range\. Set 0 or more\."):
        PoolConfig(retries=RetryConfig(killed=-1)).check()
