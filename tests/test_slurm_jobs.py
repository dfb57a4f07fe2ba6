"""A job and the driver of a sweep, on either side of Slurm's queue, on a machine that has no Slurm."""

import os
import shlex
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from slurm_commands import Commands, slurm

from llm.config.evaluation import EvaluationConfig
from llm.config.slurm import SlurmConfig
from llm.config.stages import STAGES
from llm.config.sweeping import RetryConfig
from llm.config.training import Accelerator, TrainerConfig
from llm.errors import ConfigError
from llm.run.announcing import Result, write_result
from llm.sweep.jobs import Attempt, Job, JobRecord
from llm.sweep.slurm import Cluster, Request
from llm.sweep.slurm_job import STOP, SlurmJob, idle_starts
from llm.sweep.slurm_job import slurm_job as job_of

__all__ = ["slurm"]  # a fixture

# The driver's side


def job(folder: Path, number: int = 0, **trainer: object) -> Job:
    config = SimpleNamespace(stage="pretrain", outputs=str(folder), trainer=TrainerConfig(**trainer))
    overrides = [f"seed={number}"]
    made = Job(
        number=number, overrides=overrides, config=config, label=overrides[0], folder=folder / "jobs" / f"{number:04d}"
    )
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def cluster(folder: Path, **settings: object) -> Cluster:
    return Cluster(SlurmConfig(**({"poll_seconds": 0.1} | settings)), folder)


@pytest.mark.parametrize(
    ("gpus", "settings", "trainer", "request_"),
    [
        ("gpu:8", {}, {"devices": 2}, Request(1, 2, 2)),
        ("(null)", {}, {"devices": 2}, Request(1, 2, 0)),
        ("gpu:8", {}, {"devices": 2, "num_nodes": 3}, Request(3, 2, 2)),
        ("gpu:8", {}, {"devices": 2, "accelerator": Accelerator.cpu}, Request(1, 2, 0)),
        ("(null)", {}, {"devices": 2, "accelerator": Accelerator.gpu}, Request(1, 2, 2)),
        ("gpu:8", {"gpus_per_node": 4}, {"devices": 2}, Request(1, 2, 4)),
        ("gpu:8", {"gpus_per_node": 0}, {}, Request(1, 1, 0)),
    ],
)
def test_a_job_asks_for_the_nodes_and_the_gpus_of_its_trainer(
    slurm: Commands, tmp_path: Path, gpus: str, settings: dict, trainer: dict, request_: Request
) -> None:
    slurm.answer("sinfo", f"{gpus}\n")
    assert cluster(tmp_path, **settings).request(job(tmp_path, **trainer).config) == request_


def test_a_job_that_trains_nothing_asks_for_one_process(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sinfo", "gpu:8\n")
    config = SimpleNamespace(stage="tokenizer")
    assert cluster(tmp_path).request(config) == Request(1, 1, 0)
    assert cluster(tmp_path, gpus_per_node=1).request(config) == Request(1, 1, 1)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_submitted_with_the_gpu_that_its_model_computes_on(
    slurm: Commands, tmp_path: Path, stage: str
) -> None:
    slurm.answer("sinfo", "gpu:8\n")
    slurm.answer("sbatch", "12\n")
    with_model = {"trainer": TrainerConfig(), "evaluation": EvaluationConfig()}
    own = {f.name: with_model[f.name] for f in fields(STAGES[stage]) if f.name in with_model}
    one = replace(job(tmp_path), config=SimpleNamespace(stage=stage, **own), overrides=[f"stage={stage}"])
    made = cluster(tmp_path)
    made.check([one.config])
    assert made.start(one, one.read())
    made.submit()
    [asked] = [words for words in slurm.asked("sbatch") if "--test-only" not in words]
    assert ("--gpus-per-node=1" in asked) is bool(own)
    assert made.running[0].id == "12_0"


def test_sbatch_is_asked_once_for_each_kind_of_job(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sinfo", "(null)\n")
    settings = {"partition": "gpu", "account": "lab", "memory_gb": 1.5, "time_minutes": 9, "sbatch": ["--exclusive"]}
    configs = [job(tmp_path, number, num_nodes=nodes).config for number, nodes in enumerate((1, 2, 1))]
    cluster(tmp_path, **settings).check(configs)
    shared = ["--parsable", "--partition=gpu", "--account=lab", "--mem=1536M", "--exclusive"]
    last = ["--test-only", "--wrap=true"]
    assert slurm.asked("sbatch") == [
        [*shared, f"--nodes={nodes}", "--ntasks-per-node=1", "--time=9", "--cpus-per-task=1", *last] for nodes in (1, 2)
    ]


def test_jobs_that_ask_for_the_same_are_one_array_and_are_known_by_their_numbers(
    slurm: Commands, tmp_path: Path
) -> None:
    slurm.answer("sbatch", "12\n")
    folder = tmp_path / "pretrain-1a2b"
    jobs = [job(folder, number) for number in range(3)]
    made = cluster(folder, array_parallelism=2, setup=["module load cuda"], sbatch=["--exclusive", "--constraint=a"])
    assert all(made.start(each, each.read()) for each in jobs)
    made.submit()
    made.submit()  # nothing is left to submit
    [[*arguments, script]] = slurm.asked("sbatch")
    assert [each.id for each in made.running.values()] == ["12_0", "12_1", "12_2"]
    wanted = {
        "--array=0,1,2%2",
        f"--comment={made._comment(0)}",
        "--job-name=pretrain-1a2b",
        "--nodes=1",
        "--ntasks-per-node=1",
    }
    wanted |= {"--time=240", "--signal=USR1@120", "--requeue", "--exclusive", "--constraint=a", "--cpus-per-task=1"}
    assert wanted <= set(arguments), arguments
    said = Path(script).read_text(encoding="utf-8")
    assert "module load cuda" in said and "export PYTHONPATH=" in said
    *command, tasks = shlex.split(said.strip().splitlines()[-1])
    assert command[0] == "exec"  # Slurm's signals come to it, not to a shell
    taken = job_of(Path(tasks), 2)
    assert (taken.job.overrides, taken.job.folder) == (["seed=2"], jobs[2].folder)
    assert (taken.nodes, taken.devices, taken.cpus_per_task, taken.retries.killed) == (1, 1, 1, 2)


def test_a_thousand_jobs_are_an_array_and_the_next_are_another(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sbatch", "12\n")
    jobs, made = [job(tmp_path, number) for number in (998, 999, 1000, 2001)], cluster(tmp_path)
    assert all(made.start(each, each.read()) for each in jobs)
    made.submit()
    arrays = [word for words in slurm.asked("sbatch") for word in words if word.startswith(("--array", "--comment"))]
    place = made._comment(0).removesuffix("-0")
    assert arrays == [
        *(f"--comment={place}-0", "--array=998,999%1000"),
        *(f"--comment={place}-1", "--array=0%1000"),
        *(f"--comment={place}-2", "--array=1%1000"),
    ]
    assert [each.id for each in made.running.values()] == ["12_998", "12_999", "12_0", "12_1"]


def test_what_sbatch_refuses_is_raised(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sbatch", error="sbatch: error: Batch job submission failed: Job violates accounting policy", code=1)
    made, one = cluster(tmp_path), job(tmp_path)
    made.start(one, one.read())
    with pytest.raises(ConfigError, match=r"^sbatch refuses the job: .*Job violates accounting policy"):
        made.submit()


def test_nobody_else_may_look_into_or_change_what_is_submitted(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sbatch", "12\n")
    made, one = cluster(tmp_path), job(tmp_path)
    made.start(one, one.read())
    umask = os.umask(0)
    try:
        made.submit()
    finally:
        os.umask(umask)
    assert [path for path in (tmp_path / "slurm").iterdir() if path.suffix == ".json"]  # the jobs, as they are typed
    assert (tmp_path / "slurm").stat().st_mode & 0o777 == 0o700


def queue(made: Cluster, state: str, *, array: int = 12, index: int = 0, comment: str | None = None) -> str:
    """What squeue says of a job."""
    return f"{array}|{index}|{state}|{comment or made._comment(0)}|n1\n"


@pytest.mark.parametrize(
    ("jobs", "taken_up"),
    [
        ([], None),
        ([{"state": "RUNNING"}], "12_0"),
        ([{"state": "COMPLETED"}], None),
        ([{"state": "PENDING", "index": 3}], None),
        ([{"state": "RUNNING", "comment": "another-0"}], None),
        ([{"state": "COMPLETED"}, {"state": "PENDING", "array": 14}], "14_0"),
    ],
)
def test_a_job_that_slurm_still_has_is_taken_up_and_no_other(
    slurm: Commands, tmp_path: Path, jobs: list[dict], taken_up: str | None
) -> None:
    one, made = job(tmp_path), cluster(tmp_path)
    slurm.answer("squeue", "".join(queue(made, **each) for each in jobs))
    made.start(one, one.read())
    assert made.running[0].id == taken_up


def test_a_queue_that_does_not_answer_is_no_reason_to_submit_again(slurm: Commands, tmp_path: Path) -> None:
    one = job(tmp_path)
    slurm.answer("squeue", code=1)
    with pytest.raises(ConfigError, match=r"^Slurm does not say what it has of this sweep \(squeue fails\)"):
        cluster(tmp_path).start(one, one.read())


@pytest.mark.parametrize(
    ("state", "last", "ended"),
    [
        ("COMPLETED", Attempt("then", "n1", 1, "now", 0, "done"), Result("done")),
        ("COMPLETED", Attempt("then", "n1", 1, "now", 70, "diverged", "a loss"), Result("diverged", "a loss")),
        ("CANCELLED", Attempt("then", "n1", 1), Result("stopped", "Slurm's 12_0 was cancelled")),
        ("NODE_FAIL", Attempt("then", "n1", 1), Result("killed", "Slurm's 12_0 ended without a word, as NODE_FAIL")),
        (
            "OUT_OF_MEMORY",
            None,
            Result(
                "out_of_memory", "Slurm's 12_0 ended without a word, as OUT_OF_MEMORY. Raise hydra.launcher.memory_gb"
            ),
        ),
        (
            "TIMEOUT",
            None,
            Result(
                "killed",
                "Slurm's 12_0 ended without a word, as TIMEOUT. Raise hydra.launcher.signal_seconds, in which it is to "
                "save",
            ),
        ),
    ],
)
def test_how_a_job_ended_is_its_own_word_or_else_slurms(
    slurm: Commands, tmp_path: Path, state: str, last: Attempt | None, ended: Result
) -> None:
    one, made = job(tmp_path), cluster(tmp_path)
    slurm.answer("squeue", queue(made, "RUNNING"))
    made.start(one, one.read())
    attempts = [last] if last else []
    one.write(JobRecord(0, ["seed=0"], "done" if ended.kind == "done" else "running", attempts=attempts))
    slurm.answer("squeue", queue(made, state))
    made._looked_at = 0.0
    assert made.ended(0) == [(one, ended)]
    assert not made.running
    assert one.read().attempts[-1].kind == ended.kind


@pytest.mark.parametrize("is_under_way", [False, True])
def test_what_an_earlier_attempt_said_is_no_word_of_this_one(
    slurm: Commands, tmp_path: Path, is_under_way: bool
) -> None:
    one, made = job(tmp_path), cluster(tmp_path)
    earlier = Attempt("then", "n1", 1, "now", 70, "diverged", "a loss")
    own = [Attempt("then", "n1", 1)] if is_under_way else []
    one.write(JobRecord(0, ["seed=0"], "running", attempts=[earlier, *own]))
    slurm.answer("squeue", queue(made, "RUNNING" if is_under_way else "PENDING"))
    made.start(one, one.read())
    slurm.answer("squeue", queue(made, "NODE_FAIL"))
    made._looked_at = 0.0
    [(_, ended)] = made.ended(0)
    assert ended.kind == "killed"
    assert [attempt.kind for attempt in one.read().attempts] == ["diverged", "killed"]


def test_a_job_that_is_to_stop_is_told_and_cancelled_when_its_grace_is_over(slurm: Commands, tmp_path: Path) -> None:
    one, made = job(tmp_path), cluster(tmp_path, grace_seconds=0.0)
    (one.folder / STOP).touch()  # of an earlier start
    slurm.answer("squeue", queue(made, "RUNNING"))
    made.start(one, one.read())
    assert not (one.folder / STOP).exists()
    made._looked_at = 0.0
    made.ended(0)
    made.stop(one)
    made.stop(one)
    assert (one.folder / STOP).exists()
    made._looked_at = 0.0
    made.ended(0)
    assert slurm.asked("scancel") == [["--signal=USR1", "12_0"], ["12_0"]]


# The job's side


@pytest.fixture(autouse=True)
def _in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")


def in_slurm(folder: Path, **changes: object) -> SlurmJob:
    given = {"nodes": 2, "devices": 4, "cpus_per_task": 3, "srun": ["--mpi=none"], "retries": RetryConfig(killed=1)}
    return SlurmJob(job=job(folder), max_attempts=3, **given | changes)


def test_srun_starts_a_process_for_each_device_of_each_node(tmp_path: Path) -> None:
    words = in_slurm(tmp_path).command()
    assert words[:4] == ["srun", "--export=ALL", "--unbuffered", "--kill-on-bad-exit=1"]
    assert words[4:9] == ["--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=3", "--mpi=none"]
    assert Path(words[10]).name == "train.py"
    assert words[11:] == ["seed=0", "hydra.mode=RUN"]


def test_the_ranks_meet_at_the_first_nodes_address(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.answer("scontrol", "NodeName=gpu7 NodeAddr=10.0.0.7\n")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu7")
    environment = in_slurm(tmp_path).environment()
    assert (environment["MASTER_ADDR"], environment["OMP_NUM_THREADS"]) == ("10.0.0.7", "3")
    assert in_slurm(tmp_path, nodes=1).environment()["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("told", "code", "kind", "message"),
    [
        (Result("data", "text.txt:3: no text"), 65, "data", "text.txt:3: no text"),
        (Result("data", "text.txt:3: no text"), 137, "data", "text.txt:3: no text"),  # and srun killed the others
        (Result(stage="pretrain", run="outputs/pretrain/a"), 137, "killed", "killed by SIGKILL, perhaps for want of "
                                                                            "memory"),
        (None, 143, "killed", "killed by SIGTERM"),  # as a shell says it
        (None, 1, "failed", "exit code 1, without a word"),
        (None, 75, "stopped", "exit code 75, without a word"),
    ],
)  # fmt: skip
def test_how_an_attempt_ended_is_its_own_word_or_else_by_the_exit_code_of_srun(
    slurm: Commands, tmp_path: Path, told: Result | None, code: int, kind: str, message: str
) -> None:
    slurm.answer("srun", code=code)
    made = in_slurm(tmp_path, nodes=1)
    if told:
        write_result(made.job.folder, told)
    _, ended = made.attempt()
    assert (ended.kind, ended.message) == (kind, message)


def attempts(*kinds: str, message: str | None = None) -> list[Attempt]:
    return [Attempt("then", "n1", 1, "now", 1, kind, message) for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "last", "goes_on"),
    [
        ([], "stopped", True),
        ([], "busy", True),
        ([], "done", False),
        (["killed"], "killed", True),
        (["killed", "killed"], "killed", False),  # of this submission once too often
        (["data"], "data", False),
        (["diverged"], "diverged", False),
    ],
)
def test_a_job_goes_on_in_the_same_slurm_job_as_its_retries_say(
    tmp_path: Path, kinds: list[str], last: str, goes_on: bool
) -> None:
    made = in_slurm(tmp_path)
    record = JobRecord(0, ["seed=0"], attempts=attempts(*kinds))
    assert made.goes_on(record, Result(last)) is goes_on
    (made.job.folder / STOP).touch()
    assert not made.goes_on(record, Result(last))


def test_failures_of_earlier_submissions_count_up_to_the_limit_alone(tmp_path: Path) -> None:
    made = in_slurm(tmp_path)
    made.job.attempts_before = 1
    two = JobRecord(0, ["seed=0"], attempts=attempts("killed", "killed"))
    assert made.goes_on(two, Result("killed"))
    made.job.attempts_before = 2
    three = JobRecord(0, ["seed=0"], attempts=attempts("killed", "killed", "killed"))
    assert not made.goes_on(three, Result("killed"))  # max_attempts=3


def test_starts_that_left_nothing_new_are_counted_from_the_last_that_did() -> None:
    stops = attempts("stopped", "stopped", "stopped")
    record = JobRecord(0, ["seed=0"], attempts=stops)  # the last has just ended, idle
    assert idle_starts(record) == 1
    stops[1].is_idle = True
    assert idle_starts(record) == 2
    stops[0].is_idle = True
    assert idle_starts(record) == 3
    stops[1].is_idle = False
    assert idle_starts(record) == 1


@pytest.mark.parametrize(("state", "kind"), [("RUNNING", "killed"), ("COMPLETING", "stopped"), ("UNKNOWN", "killed")])
def test_what_is_killed_while_slurm_ends_the_job_was_stopped(
    slurm: Commands, tmp_path: Path, state: str, kind: str
) -> None:
    slurm.answer("srun", code=137)
    slurm.answer("scontrol", f"JobId=12 JobState={state} Reason=None\n")
    assert in_slurm(tmp_path).attempt()[1].kind == kind


@pytest.mark.parametrize(("state", "asked"), [("RUNNING", [["requeue", "12"]]), ("CANCELLED", [])])
def test_a_job_that_somebody_ends_is_not_put_back_into_the_queue(
    slurm: Commands, tmp_path: Path, state: str, asked: list[list[str]]
) -> None:
    slurm.answer("scontrol", f"JobId=12 JobState={state} Reason=None\n")
    in_slurm(tmp_path).requeue()
    assert slurm.asked("scontrol")[1:] == asked
