"""What the launcher for Slurm asks of its commands and makes of their answers, on a machine that has none of them."""

import os
import re
from pathlib import Path

import pytest
from slurm_commands import Commands, slurm

from llm.config.slurm import SlurmConfig
from llm.config.sweeping import RetryConfig
from llm.errors import ConfigError
from llm.sweep import slurm_queue
from llm.sweep.slurm_queue import QueuedJob

__all__ = ["slurm"]  # a fixture


def line(said: str) -> str:
    return rf"^{re.escape(said)}$"


# The settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"time_minutes": 0}, "hydra.launcher.time_minutes=0 is out of range. Set 1 or more."),
        ({"cpus_per_task": 0}, "hydra.launcher.cpus_per_task=0 is out of range. Set 1 or more."),
        ({"signal_seconds": 0}, "hydra.launcher.signal_seconds=0 is out of range. Set 1 or more."),
        ({"max_attempts": 0}, "hydra.launcher.max_attempts=0 is out of range. Set 1 or more."),
        ({"gpus_per_node": -1}, "hydra.launcher.gpus_per_node=-1 is out of range. Set 0 or more, or null."),
        ({"array_parallelism": 0}, "hydra.launcher.array_parallelism=0 is out of range. Set 1 or more, or null."),
        ({"retries": RetryConfig(killed=-1)}, "hydra.launcher.retries.killed=-1 is out of range. Set 0 or more."),
        ({"memory_gb": 0.0}, "hydra.launcher.memory_gb=0.0 is out of range. Set 0.001 or more, or null."),
        ({"poll_seconds": 0.0}, "hydra.launcher.poll_seconds=0.0 is out of range. Set 0.1 or more."),
        ({"grace_seconds": float("inf")}, "hydra.launcher.grace_seconds=inf is out of range. Set 0 or more."),
        (
            {"signal_seconds": 120, "time_minutes": 2},
            "hydra.launcher.signal_seconds=120 leaves nothing of hydra.launcher.time_minutes=2. Lower the first or "
            "raise the second.",
        ),
        (
            {"sbatch": ["constraint=a100"]},
            "hydra.launcher.sbatch=constraint=a100 is no argument. Write it as --name=value, or --name.",
        ),
        (
            {"sbatch": ["--mem=4G"]},
            "hydra.launcher.sbatch=--mem=4G has a setting of its own. Set hydra.launcher.memory_gb in its place.",
        ),
        (
            {"sbatch": ["--nodes=2"]},
            "hydra.launcher.sbatch=--nodes=2 has a setting of its own. Set trainer.num_nodes and trainer.devices in "
            "its place.",
        ),
        (
            {"sbatch": ["--no-requeue"]},
            "hydra.launcher.sbatch=--no-requeue is what the launcher itself sets. Leave it out.",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_keys(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=line(said)):
        SlurmConfig(**settings).check()


def test_further_arguments_keep_their_values_or_take_none() -> None:
    settings = SlurmConfig(sbatch=["--constraint=a100", "--exclusive", "--export=A=1,B"])
    settings.check()
    assert settings.further == {"constraint": "a100", "exclusive": True, "export": "A=1,B"}


# Slurm's answers


def test_the_queue_is_read_by_the_ids_that_jobs_are_known_by(slurm: Commands) -> None:
    slurm.answer(
        "squeue",
        "12|0|RUNNING|ab12|n[1-2]\n12|1|PENDING|ab12|\n13|N/A|COMPLETED|(null)|n3\na warning\n",
    )
    assert slurm_queue.queued_jobs("pretrain-1") == {
        "12_0": QueuedJob("12_0", "RUNNING", "ab12", "n[1-2]"),
        "12_1": QueuedJob("12_1", "PENDING", "ab12", ""),
        "13": QueuedJob("13", "COMPLETED", "(null)", "n3"),
    }
    form = "--format=%F|%K|%T|%k|%N"
    assert slurm.asked("squeue") == [["--noheader", "--array", "--states=all", "--name=pretrain-1", form]]
    slurm.answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert slurm_queue.queued_jobs("pretrain-1") is None


@pytest.mark.parametrize(
    ("state", "is_over"),
    [("PENDING", False), ("RUNNING", False), ("COMPLETING", False), ("REQUEUED", False), ("PREEMPTED", False)]
    + [(state, True) for state in ("COMPLETED", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "UNKNOWN")],
)
def test_only_what_never_runs_again_is_over(state: str, is_over: bool) -> None:
    assert QueuedJob("1", state).is_over is is_over


@pytest.mark.parametrize(
    ("said", "code", "state"),
    [
        ("COMPLETED\n", 0, "COMPLETED"),
        ("CANCELLED by 1000\n", 0, "CANCELLED"),
        ("NODE_FAIL\nREQUEUED\n", 0, "NODE_FAIL"),
        ("\n", 0, "UNKNOWN"),
        ("", 0, "UNKNOWN"),
        ("", 1, "UNKNOWN"),
    ],
)
def test_the_state_of_a_job_that_left_the_queue_is_of_the_accounts(
    slurm: Commands, said: str, code: int, state: str
) -> None:
    slurm.answer("sacct", said, code=code)
    assert slurm_queue.accounted_state("12_3") == state
    assert slurm.asked("sacct") == [["--allocations", "--noheader", "--parsable2", "--format=State", "--jobs=12_3"]]


def test_without_accounts_such_a_job_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm_queue.accounted_state("12") == "UNKNOWN"


def test_the_controller_says_how_a_job_and_a_node_stand(slurm: Commands) -> None:
    slurm.answer("scontrol", "JobId=12 ArrayJobId=11 JobState=RUNNING Reason=None\n")
    assert slurm_queue.job_state("12") == "RUNNING"
    slurm.answer("scontrol", "NodeName=gpu7 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=gpu7\n")
    assert slurm_queue.node_address("gpu7") == "10.0.0.7"
    slurm.answer("scontrol", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert (slurm_queue.job_state("12"), slurm_queue.node_address("gpu7")) == ("UNKNOWN", "gpu7")
    assert not slurm_queue.requeue("12")
    show = ["--oneliner", "show"]
    assert slurm.asked("scontrol")[:2] == [[*show, "job", "12"], [*show, "node", "gpu7"]]
    assert slurm.asked("scontrol")[-1] == ["requeue", "12"]


def test_a_job_is_cancelled_or_only_sent_a_signal(slurm: Commands) -> None:
    slurm_queue.cancel("12_3")
    slurm_queue.cancel("12_3", signal="USR1")
    assert slurm.asked("scancel") == [["12_3"], ["--signal=USR1", "12_3"]]


@pytest.mark.parametrize(
    ("said", "gpus"),
    [
        ("(null)\n", 0),
        ("gpu:8\ngpu:2\n", 8),
        ("gpu:a100:4(S:0-1),shard:16\n", 4),
        ("mps:100\n", 0),
        ("gpu:h100:2,gpu:l4:1\n(null)\n", 2),
    ],
)
def test_the_most_gpus_of_a_node_are_counted(slurm: Commands, said: str, gpus: int) -> None:
    slurm.answer("sinfo", said)
    assert slurm_queue.most_gpus("gpu") == gpus
    assert slurm_queue.most_gpus(None) == gpus
    assert slurm.asked("sinfo") == [["--noheader", "--partition=gpu", "--format=%G"], ["--noheader", "--format=%G"]]


def test_sbatch_is_asked_without_what_a_job_around_us_left(slurm: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    (slurm.folder / "sbatch").write_text(f"#!/bin/sh\necho 12\nenv > {slurm.folder}/environment\n", encoding="utf-8")
    left = ("SLURM_JOB_ID", "SLURMD_NODENAME", "SBATCH_PARTITION", "SALLOC_ACCOUNT", "SLURM_CONF")
    for name in left:
        monkeypatch.setenv(name, "left")
    assert slurm_queue.sbatch({}) == "12"
    given = (slurm.folder / "environment").read_text(encoding="utf-8").splitlines()
    assert [line for line in given if line.endswith("=left")] == ["SLURM_CONF=left"]
    assert all(os.environ[name] == "left" for name in left)


def test_sbatch_is_given_its_arguments_and_gives_the_number_of_the_job(slurm: Commands) -> None:
    slurm.answer("sbatch", "12;cluster2\n")
    assert slurm_queue.sbatch({"partition": "gpu", "time": 5, "exclusive": True}, Path("a.sh")) == "12"
    assert slurm.asked("sbatch") == [["--parsable", "--partition=gpu", "--time=5", "--exclusive", "a.sh"]]


def test_what_sbatch_refuses_is_one_line_in_its_words(slurm: Commands) -> None:
    slurm.answer(
        "sbatch",
        error="sbatch: error: invalid partition specified: nowhere\nsbatch: error: Batch job submission failed: "
        "Invalid partition name specified\nallocation failure: Invalid partition name specified\n",
        code=1,
    )
    with pytest.raises(ConfigError) as refusal:
        slurm_queue.sbatch({})
    assert str(refusal.value) == (
        "sbatch refuses the job: invalid partition specified: nowhere. Batch job submission failed: Invalid partition "
        "name specified. Invalid partition name specified. Look at hydra.launcher.partition, account, qos, "
        "gpus_per_node, cpus_per_task, memory_gb, time_minutes and sbatch, and at trainer.devices and "
        "trainer.num_nodes."
    )
    slurm.answer("sbatch", code=1)
    with pytest.raises(ConfigError, match=r"^sbatch refuses the job: it does not say why\. Look at hydra\.launcher"):
        slurm_queue.sbatch({})


def test_an_sbatch_that_cannot_be_asked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=line("sbatch does not answer (FileNotFoundError). Is the cluster up?")):
        slurm_queue.sbatch({})


@pytest.mark.parametrize("missing", ["sbatch", "srun", "squeue", "scancel", "scontrol"])
def test_each_command_that_is_missing_is_named(slurm: Commands, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(slurm.folder))
    slurm_queue.require_slurm()
    (slurm.folder / missing).unlink()
    with pytest.raises(ConfigError, match=rf"^hydra/launcher=slurm, but {missing} is not on this machine's PATH\."):
        slurm_queue.require_slurm()
