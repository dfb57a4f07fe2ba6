"""A job and the driver of a sweep, on either side of Slurm's queue: what is asked of its commands, by stand-ins."""

import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm.config.evaluation import EvaluationConfig
from llm.config.stages import STAGES
from llm.config.sweeping import RetryConfig, SlurmConfig
from llm.config.training import Accelerator, TrainerConfig
from llm.errors import ConfigError
from llm.run.launch import Result, write_result
from llm.sweep import slurm as module
from llm.sweep.jobs import STOP, Attempt, Job
from llm.sweep.slurm import Cluster, Request
from llm.sweep.slurm_job import SlurmJob, slurm_job

# Says what its file holds, with the exit code that is in another, and keeps how it was called.
COMMAND = """#!/bin/sh
here=$(dirname "$0"); me=$(basename "$0")
for word in "$me" "$@"; do printf '%s\\n' "$word"; done >> "$here/asked"; echo "" >> "$here/asked"
env > "$here/$me.environment"
[ -f "$here/$me.out" ] && cat "$here/$me.out"
[ -f "$here/$me.err" ] && cat "$here/$me.err" >&2
[ -f "$here/$me.code" ] && exit "$(cat "$here/$me.code")"
exit 0
"""


@dataclass
class Commands:
    """Stand-ins for Slurm's commands, the first on the PATH."""

    folder: Path

    def answer(self, name: str, said: str = "", *, error: str = "", code: int = 0) -> None:
        for ending, content in (("out", said), ("err", error), ("code", str(code))):
            (self.folder / f"{name}.{ending}").write_text(content, encoding="utf-8")

    def asked(self, name: str) -> list[list[str]]:
        """The arguments of each call of one of them, in order."""
        calls = (self.folder / "asked").read_text(encoding="utf-8").removesuffix("\n\n").split("\n\n")
        return [words[1:] for call in calls if (words := call.split("\n"))[0] == name]


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path / "bin")
    made.folder.mkdir()
    (made.folder / "asked").touch()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo"):
        (made.folder / name).write_text(COMMAND, encoding="utf-8")
        (made.folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    made.answer("sbatch", "12;cluster2\n")
    return made


# The driver's side


def job(folder: Path, number: int = 0, **trainer: object) -> Job:
    config = SimpleNamespace(stage="pretrain", outputs=str(folder), trainer=TrainerConfig(**trainer))
    place = folder / "jobs" / f"{number:04d}"
    place.mkdir(parents=True, exist_ok=True)
    return Job(number=number, overrides=[f"seed={number}"], config=config, label=f"seed={number}", folder=place)


def cluster(folder: Path, *jobs: Job, **settings: object) -> Cluster:
    """It has been handed the jobs."""
    made = Cluster(SlurmConfig(**({"poll_seconds": 0.1} | settings)), folder, at_once=9)
    made.find_left()
    assert all(made.start(each) for each in jobs)
    return made


def test_settings_that_cannot_be_are_refused_by_their_keys() -> None:
    with pytest.raises(ConfigError, match=r"signal_seconds=120 leaves nothing of hydra\.launcher\.time_minutes=2\."):
        SlurmConfig(signal_seconds=120, time_minutes=2).check()


@pytest.mark.parametrize(
    ("of_nodes", "settings", "trainer", "request_"),
    [
        ("gpu:8\ngpu:2\n", {}, {"devices": 2}, Request(1, 2, 2)),
        ("(null)\nmps:100\n", {}, {"devices": 2}, Request(1, 2, 0)),
        ("gpu:a100:4(S:0-1),shard:16\n", {}, {"devices": 2, "num_nodes": 3}, Request(3, 2, 2)),
        ("gpu:8\n", {}, {"devices": 2, "accelerator": Accelerator.cpu}, Request(1, 2, 0)),
        ("(null)\n", {}, {"devices": 2, "accelerator": Accelerator.gpu}, Request(1, 2, 2)),
        ("gpu:8\n", {"gpus_per_node": 4}, {"devices": 2}, Request(1, 2, 4)),
    ],
)
def test_a_job_asks_for_the_nodes_and_the_gpus_of_its_trainer(
    slurm: Commands, tmp_path: Path, of_nodes: str, settings: dict, trainer: dict, request_: Request
) -> None:
    slurm.answer("sinfo", of_nodes)
    assert cluster(tmp_path, **settings).request(job(tmp_path, **trainer).config) == request_


def test_every_stage_asks_for_a_gpu_where_its_model_computes(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sinfo", "gpu:8\n")
    with_model = {"trainer": TrainerConfig(), "evaluation": EvaluationConfig()}
    for stage, schema in STAGES.items():
        own = {f.name: with_model[f.name] for f in fields(schema) if f.name in with_model}
        assert cluster(tmp_path).request(SimpleNamespace(stage=stage, **own)) == Request(1, 1, 1 if own else 0)


def test_sbatch_is_asked_once_for_each_kind_of_job_without_what_a_job_around_us_left(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURMD_NODENAME", "SBATCH_PARTITION", "SALLOC_ACCOUNT", "SLURM_CONF"):
        monkeypatch.setenv(name, "left")
    settings = {"partition": "gpu", "account": "lab", "memory_gb": 1.5, "time_minutes": 9, "sbatch": ["--exclusive"]}
    configs = [job(tmp_path, number, num_nodes=nodes).config for number, nodes in enumerate((1, 2, 1))]
    cluster(tmp_path, **settings).check(configs)
    shared = {"--parsable", "--partition=gpu", "--account=lab", "--mem=1536M", "--exclusive", "--time=9"}
    shared |= {"--ntasks-per-node=1", "--cpus-per-task=1", "--test-only", "--wrap=true"}
    assert list(map(set, slurm.asked("sbatch"))) == [shared | {f"--nodes={nodes}"} for nodes in (1, 2)]
    given = (slurm.folder / "sbatch.environment").read_text(encoding="utf-8").splitlines()
    assert [line for line in given if line.endswith("=left")] == ["SLURM_CONF=left"]


def test_jobs_that_ask_for_the_same_are_one_array_and_are_known_by_their_numbers(
    slurm: Commands, tmp_path: Path
) -> None:
    folder = tmp_path / "pretrain-1a2b"
    jobs = [job(folder, number) for number in range(3)]
    umask = os.umask(0)
    try:
        made = cluster(folder, *jobs, array_parallelism=2, setup=["module load cuda"], sbatch=["--exclusive"])
        made.ended(0)
        made.ended(0)  # nothing is left to submit
    finally:
        os.umask(umask)
    [[*arguments, script]] = slurm.asked("sbatch")
    assert [each.id for each in made.running.values()] == ["12_0", "12_1", "12_2"]
    wanted = {"--array=0,1,2%2", "--job-name=pretrain-1a2b", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1"}
    wanted |= {"--time=240", "--signal=USR1@120", "--requeue", "--exclusive", "--open-mode=append"}
    assert wanted <= set(arguments), arguments
    assert (folder / "slurm").stat().st_mode & 0o777 == 0o700  # the jobs are in there as they are typed
    said = Path(script).read_text(encoding="utf-8")
    assert "module load cuda" in said and "export PYTHONPATH=" in said
    *command, tasks = shlex.split(said.strip().splitlines()[-1])
    assert command[0] == "exec"  # Slurm's signals come to it, not to a shell
    taken = slurm_job(Path(tasks), "2")
    assert (taken.job.overrides, taken.job.folder) == (["seed=2"], jobs[2].folder)
    assert (taken.nodes, taken.devices, taken.cpus_per_task, taken.retries.killed) == (1, 1, 1, 2)


def test_what_sbatch_refuses_is_one_line_in_its_words(slurm: Commands, tmp_path: Path) -> None:
    said = "sbatch: error: Batch job submission failed: Job violates policy\nallocation failure: Job violates policy\n"
    slurm.answer("sbatch", error=said, code=1)
    with pytest.raises(ConfigError) as refusal:
        cluster(tmp_path, job(tmp_path)).ended(0)
    assert str(refusal.value) == (
        "sbatch refuses the job: Batch job submission failed: Job violates policy. Job violates policy. Look at "
        "hydra.launcher.partition, account, qos, gpus_per_node, cpus_per_task, memory_gb, time_minutes and sbatch, and "
        "at trainer.devices and trainer.num_nodes."
    )


def test_a_command_that_is_missing_is_named(slurm: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(slurm.folder))
    module.require_slurm()
    (slurm.folder / "squeue").unlink()
    with pytest.raises(ConfigError, match=r"^hydra/launcher=slurm, but squeue is not on this machine's PATH\."):
        module.require_slurm()


def queue(folder: Path, state: str, *, job: str = "12_0", comment: str | None = None) -> str:
    """What squeue says of a job."""
    token = Cluster(SlurmConfig(), folder, at_once=1)._token
    return f"{job}|{state}|{comment or token}|n1\n"


@pytest.mark.parametrize(
    ("jobs", "taken_up"),
    [
        ([], None),
        ([{"state": "RUNNING"}], "12_0"),
        ([{"state": "COMPLETED"}], None),
        ([{"state": "PENDING", "job": "12_3"}], None),
        ([{"state": "RUNNING", "comment": "another"}], None),
        ([{"state": "COMPLETED"}, {"state": "PENDING", "job": "14_0"}, {"state": "RUNNING", "job": "13_N/A"}], "14_0"),
    ],
)
def test_a_job_that_slurm_still_has_is_taken_up_and_no_other(
    slurm: Commands, tmp_path: Path, jobs: list[dict], taken_up: str | None
) -> None:
    slurm.answer("squeue", "".join(queue(tmp_path, **each) for each in jobs))
    assert cluster(tmp_path, job(tmp_path)).running[0].id == taken_up


def test_a_queue_that_does_not_answer_is_no_reason_to_submit_again(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("squeue", code=1)
    with pytest.raises(ConfigError, match=r"^Slurm does not say what it has of this sweep \(squeue fails\)"):
        cluster(tmp_path)


def attempt(kind: str | None, driver: str = "12_0", message: str | None = None, **more: object) -> Attempt:
    return Attempt("then", "n1", driver, kind and "now", None, kind, message, **more)


@pytest.mark.parametrize(
    ("state", "attempts", "ended", "recorded"),
    [
        ("COMPLETED", [attempt("done")], Result("done"), ["done"]),
        ("FAILED", [attempt("diverged", message="a loss")], Result("diverged", "a loss"), ["diverged"]),
        ("CANCELLED", [attempt(None)], Result("stopped", "Slurm's 12_0 was cancelled"), ["stopped"]),
        ("CANCELLED", [attempt("killed")], Result("stopped", "Slurm's 12_0 was cancelled"), ["killed"]),
        ("TIMEOUT", [attempt("stopped")], Result("busy"), ["stopped"]),  # is submitted again
        ("NODE_FAIL", [attempt(None)], "killed NODE_FAIL", ["killed"]),
        ("OUT_OF_MEMORY", [], "out_of_memory OUT_OF_MEMORY", ["out_of_memory"]),
        ("NODE_FAIL", [attempt("diverged", "11_0")], "killed NODE_FAIL", ["diverged", "killed"]),  # of an earlier one
    ],
)
def test_how_a_job_ended_is_its_own_word_or_else_slurms(
    slurm: Commands, tmp_path: Path, state: str, attempts: list[Attempt], ended: Result | str, recorded: list[str]
) -> None:
    slurm.answer("squeue", queue(tmp_path, "RUNNING"))
    one = job(tmp_path)
    made = cluster(tmp_path, one)
    one.attempts = attempts
    one.write()
    slurm.answer("squeue", queue(tmp_path, state))
    assert made.ended(0) == [one] and not made.running
    if isinstance(ended, str):
        kind, state = ended.split()
        ended = Result(kind, f"Slurm's 12_0 ended without a word, as {state}")
    one.reload()
    assert (one.result, [each.kind for each in one.attempts]) == (ended, recorded)


def test_a_job_that_is_to_stop_is_told_and_cancelled_when_its_grace_is_over(slurm: Commands, tmp_path: Path) -> None:
    one = job(tmp_path)
    slurm.answer("squeue", queue(tmp_path, "RUNNING"))
    made = cluster(tmp_path, one, grace_seconds=0.0)
    made.ended(0)
    made.stop(one)
    made.stop(one)
    made.ended(0.1)
    assert slurm.asked("scancel") == [["--signal=USR1", "12_0"], ["12_0"]]


# The job's side


def in_slurm(folder: Path, *attempts: Attempt, **changes: object) -> SlurmJob:
    given = {"nodes": 2, "devices": 4, "cpus_per_task": 3, "srun": ["--mpi=none"], "retries": RetryConfig(killed=1)}
    made = SlurmJob(job=job(folder), **given | changes)
    made.job.attempts = [*attempts]
    return made


@pytest.mark.parametrize(("nodes", "address"), [(2, "10.0.0.7"), (1, "127.0.0.1")])
def test_srun_starts_a_process_for_each_device_which_meet_at_the_first_nodes_address(
    slurm: Commands, tmp_path: Path, nodes: int, address: str
) -> None:
    slurm.answer("scontrol", "NodeName=gpu7 NodeAddr=10.0.0.7 JobState=RUNNING\n")
    in_slurm(tmp_path, nodes=nodes).attempt()
    [words] = slurm.asked("srun")
    assert words[:3] == ["--export=ALL", "--unbuffered", "--kill-on-bad-exit=1"]
    each = [f"--nodes={nodes}", f"--ntasks={4 * nodes}", "--ntasks-per-node=4", "--cpus-per-task=3", "--mpi=none"]
    assert words[3:8] == each
    assert Path(words[9]).name == "train.py" and words[10:] == ["seed=0", "hydra.mode=RUN"]
    given = (slurm.folder / "srun.environment").read_text(encoding="utf-8").splitlines()
    assert f"MASTER_ADDR={address}" in given and "OMP_NUM_THREADS=3" in given


@pytest.mark.parametrize(
    ("told", "code", "state", "kind", "message"),
    [
        (Result("data", "text.txt:3: no text"), 65, "RUNNING", "data", "text.txt:3: no text"),
        (Result("data", "no text"), 137, "RUNNING", "data", "no text"),  # and srun killed the others
        (Result(stage="pretrain", run="a"), 137, "UNKNOWN", "killed", "killed by SIGKILL, perhaps for want of memory"),
        (None, 143, "COMPLETING", "stopped", "killed by SIGTERM, as Slurm ended the job"),
        (None, 75, "RUNNING", "stopped", "exit code 75, without a word"),
    ],
)
def test_how_an_attempt_ended_is_its_own_word_or_else_by_the_exit_code_of_srun(
    slurm: Commands, tmp_path: Path, told: Result | None, code: int, state: str, kind: str, message: str
) -> None:
    slurm.answer("srun", code=code)
    slurm.answer("scontrol", f"JobId=15 JobState={state} Reason=None\n")
    made = in_slurm(tmp_path, nodes=1)
    if told:
        write_result(made.job.folder, told)
    assert made.attempt()[1] == Result(kind, message, *((told.stage, told.run) if told and told.kind else ()))


@pytest.mark.parametrize(
    ("code", "state", "requeued", "kinds"),
    [
        (75, "RUNNING", [True, True, False], ["stopped", "stopped", "failed"]),  # it has never saved
        (75, "CANCELLED", [False], ["stopped"]),  # somebody ends it
        (137, "RUNNING", [True, False], ["killed", "killed"]),  # as its retries say
        (65, "RUNNING", [False], ["data"]),
    ],
)
def test_a_job_is_put_back_into_the_queue_by_what_ended_it(
    slurm: Commands,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    state: str,
    requeued: list[bool],
    kinds: list[str],
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    slurm.answer("srun", code=code)
    slurm.answer("scontrol", f"JobId=15 JobState={state} Reason=None\n")
    made = in_slurm(tmp_path, nodes=1)
    for is_requeued in requeued:
        assert made.run() in (code, 128 - code)
        assert (["requeue", "15"] in slurm.asked("scontrol")) is is_requeued
        (slurm.folder / "asked").write_text("", encoding="utf-8")
    assert [(each.driver, each.kind) for each in made.job.attempts] == [("12_0", kind) for kind in kinds]
    if kinds[-1] == "failed":
        assert made.job.attempts[-1].message == (
            "exit code 75, without a word; nothing new was saved, 3 times in a row. Raise hydra.launcher.time_minutes"
        )
    (made.job.folder / STOP).touch()  # others have outdone it
    assert made.run() == 75 and not slurm.asked("srun")
