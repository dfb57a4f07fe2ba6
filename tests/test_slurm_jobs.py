"""A job and the driver of a sweep, on either side of Slurm's queue, on a machine that has no Slurm."""

import os
import shlex
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from slurm_commands import Commands, slurm

from llm.config import STAGES, Accelerator, EvaluationConfig, RetryConfig, SlurmConfig, TrainerConfig
from llm.errors import ConfigError
from llm.sweep import slurm_job
from llm.sweep.ending import Ending
from llm.sweep.ledger import Attempt, Job, JobRecord
from llm.sweep.slurm import Cluster, Request
from llm.sweep.slurm_job import SlurmJob, exit_code_of
from llm.sweep.slurm_submission import Submission, read_submission, write_submission

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
    slurm.answer("sbatch", "Submitted batch job 12\n")
    with_model = {"trainer": TrainerConfig(), "evaluation": EvaluationConfig()}
    own = {f.name: with_model[f.name] for f in fields(STAGES[stage]) if f.name in with_model}
    one = replace(job(tmp_path), config=SimpleNamespace(stage=stage, **own), overrides=[f"stage={stage}"])
    made = cluster(tmp_path)
    made.check([one.config])
    assert made.start(one, one.read())
    made.submit()
    [[script]] = [words for words in slurm.asked("sbatch") if "--test-only" not in words]
    assert ("--gpus-per-node=1" in Path(script).read_text(encoding="utf-8")) is bool(own)
    assert made.running[0].submission.id == "12"


def test_sbatch_is_asked_once_for_each_kind_of_job(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sinfo", "(null)\n")
    settings = {"partition": "gpu", "account": "lab", "memory_gb": 1.5, "time_minutes": 9, "sbatch": ["--exclusive"]}
    configs = [job(tmp_path, number, num_nodes=nodes).config for number, nodes in enumerate((1, 2, 1))]
    cluster(tmp_path, **settings).check(configs)
    shared = ["--test-only", "--partition=gpu", "--account=lab", "--mem=1536M", "--exclusive"]
    assert slurm.asked("sbatch") == [
        [*shared, f"--nodes={nodes}", "--ntasks-per-node=1", "--time=9", "--cpus-per-task=1", "--wrap=true"]
        for nodes in (1, 2)
    ]


def test_jobs_that_ask_for_the_same_are_one_array_and_are_known_by_their_numbers(
    slurm: Commands, tmp_path: Path
) -> None:
    slurm.answer("sbatch", "Submitted batch job 12\n")
    folder = tmp_path / "pretrain-1a2b"
    jobs = [job(folder, number) for number in range(3)]
    made = cluster(folder, array_parallelism=2, setup=["module load cuda"], sbatch=["--exclusive", "--constraint=a"])
    assert all(made.start(each, each.read()) for each in jobs)
    made.submit()
    made.submit()  # nothing is left to submit
    [[script]] = slurm.asked("sbatch")
    submissions = [read_submission(each.folder) for each in jobs]
    assert [each.id for each in submissions] == ["12_0", "12_1", "12_2"]
    [token] = {each.token for each in submissions}
    said = Path(script).read_text(encoding="utf-8")
    lines = [line.removeprefix("#SBATCH ") for line in said.splitlines() if line.startswith("#SBATCH")]
    wanted = {"--array=0-2%2", f"--comment={token}", "--job-name=pretrain-1a2b", "--nodes=1", "--ntasks-per-node=1"}
    wanted |= {"--time=240", "--signal=USR1@120", "--requeue", "--exclusive", "--constraint=a", "--cpus-per-task=1"}
    assert wanted <= set(lines), lines
    assert "module load cuda" in said and "export PYTHONPATH=" in said
    assert shlex.split(said.strip().splitlines()[-1])[0] == "exec"  # Slurm's signals come to it, not to a shell


def test_what_sbatch_refuses_leaves_no_submission(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sbatch", error="sbatch: error: Batch job submission failed: Job violates accounting policy", code=1)
    made, one = cluster(tmp_path), job(tmp_path)
    made.start(one, one.read())
    with pytest.raises(ConfigError, match=r"^sbatch refuses the job: .*Job violates accounting policy"):
        made.submit()
    assert read_submission(one.folder) is None


def test_nobody_else_may_look_into_or_change_what_is_submitted(slurm: Commands, tmp_path: Path) -> None:
    slurm.answer("sbatch", "Submitted batch job 12\n")
    made, one = cluster(tmp_path), job(tmp_path)
    made.start(one, one.read())
    umask = os.umask(0)
    try:
        made.submit()
    finally:
        os.umask(umask)
    assert [path for path in (tmp_path / "slurm").iterdir() if path.suffix == ".pkl"]  # the jobs, as they are typed
    assert (tmp_path / "slurm").stat().st_mode & 0o777 == 0o700


def kept(**changes: object) -> Submission:
    return replace(Submission(token="ab12", index=None, attempts=0, submitted_at="then", id="12"), **changes)


@pytest.mark.parametrize(
    ("submission", "queue", "taken_up"),
    [
        (None, "", None),
        (kept(), "12|N/A|RUNNING|None|ab12|n1\n", "12"),
        (kept(), "12|N/A|COMPLETED|None|ab12|n1\n", None),
        (kept(), "", None),
        (kept(is_to_stop=True), "12|N/A|RUNNING|None|ab12|n1\n", None),
        (kept(id=None), "14|N/A|PENDING|None|ab12|\n", "14"),  # the driver was killed before sbatch had answered
        (kept(id=None, index=3), "14|3|PENDING|None|ab12|\n14|4|PENDING|None|ab12|\n", "14_3"),
        (kept(id=None), "14|N/A|PENDING|None|another|\n", None),
    ],
)
def test_a_job_that_slurm_still_has_is_taken_up_and_no_other(
    slurm: Commands, tmp_path: Path, submission: Submission | None, queue: str, taken_up: str | None
) -> None:
    one, made = job(tmp_path), cluster(tmp_path)
    if submission:
        write_submission(one.folder, submission)
    slurm.answer("squeue", queue)
    made.start(one, one.read())
    found = made.running[0].submission
    assert (found.id if found else None) == taken_up


def test_a_queue_that_does_not_answer_is_no_reason_to_submit_again(slurm: Commands, tmp_path: Path) -> None:
    one = job(tmp_path)
    write_submission(one.folder, kept())
    slurm.answer("squeue", code=1)
    with pytest.raises(ConfigError, match=r"^Slurm does not say what it has of this sweep \(squeue fails\)"):
        cluster(tmp_path).start(one, one.read())


@pytest.mark.parametrize(
    ("state", "last", "ended"),
    [
        ("COMPLETED", Attempt("then", "n1", 1, "now", 0, "done"), Ending("done")),
        ("COMPLETED", Attempt("then", "n1", 1, "now", 70, "diverged", "a loss"), Ending("diverged", "a loss")),
        ("CANCELLED", Attempt("then", "n1", 1), Ending("stopped", "Slurm's 12 was cancelled")),
        ("NODE_FAIL", Attempt("then", "n1", 1), Ending("killed", "Slurm's 12 ended without a word, as NODE_FAIL")),
        (
            "OUT_OF_MEMORY",
            None,
            Ending(
                "out_of_memory", "Slurm's 12 ended without a word, as OUT_OF_MEMORY. Raise hydra.launcher.memory_gb"
            ),
        ),
        (
            "TIMEOUT",
            None,
            Ending(
                "killed",
                "Slurm's 12 ended without a word, as TIMEOUT. Raise hydra.launcher.signal_seconds, in which it is to "
                "save",
            ),
        ),
    ],
)
def test_how_a_job_ended_is_its_own_word_or_else_slurms(
    slurm: Commands, tmp_path: Path, state: str, last: Attempt | None, ended: Ending
) -> None:
    one, made = job(tmp_path), cluster(tmp_path)
    write_submission(one.folder, kept())
    slurm.answer("squeue", "12|N/A|RUNNING|None|ab12|n1\n")
    made.start(one, one.read())
    attempts = [last] if last else []
    one.write(JobRecord(0, ["seed=0"], "done" if ended.kind == "done" else "running", attempts=attempts))
    slurm.answer("squeue", f"12|N/A|{state}|None|ab12|n1\n")
    assert made.ended(0) == [(one, ended)]
    assert not made.running
    assert one.read().attempts[-1].kind == ended.kind


def test_a_job_that_is_to_stop_is_told_and_cancelled_when_its_grace_is_over(slurm: Commands, tmp_path: Path) -> None:
    one, made = job(tmp_path), cluster(tmp_path, grace_seconds=0.0)
    write_submission(one.folder, kept())
    slurm.answer("squeue", "12|N/A|RUNNING|None|ab12|n1\n")
    made.start(one, one.read())
    made.ended(0)
    made.stop(0)
    made.stop(0)
    assert read_submission(one.folder) == kept(is_to_stop=True)
    made._looked_at = 0.0
    made.ended(0)
    assert slurm.asked("scancel") == [["--signal=USR1", "12"], ["12"]]


# The job's side


def in_slurm(folder: Path, **changes: object) -> SlurmJob:
    given = {"nodes": 2, "devices": 4, "cpus_per_task": 3, "srun": ["--mpi=none"], "retries": RetryConfig(killed=1)}
    return SlurmJob(job=job(folder), token="ab12", max_attempts=3, **given | changes)


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
    environment = in_slurm(tmp_path)._environment()
    assert (environment["MASTER_ADDR"], environment["OMP_NUM_THREADS"]) == ("10.0.0.7", "3")
    assert in_slurm(tmp_path, nodes=1)._environment()["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("said", "code", "found"),
    [
        ("", 0, 0),
        ("", 75, 75),
        ("", 137, -9),  # as a shell says it
        ("srun: error: n1: task 0: Exited with exit code 65\nsrun: error: n2: task 1: Killed\n", 137, 65),
        ("error: why\nsrun: error: n1: tasks 0-3: Killed\nsrun: error: n2: task 4: Exited with exit code 1\n", 137, -9),
        ("srun: error: n1: task 0: Terminated\n", 143, -15),
        ("srun: error: n1: task 0: Segmentation fault (core dumped)\n", 139, -11),
        ("srun: error: n1: task 0: Out Of Memory\n", 137, -9),
        ("srun: error: Unable to create step for job 12: Socket timed out\n", 1, 1),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_failed_first(
    tmp_path: Path, said: str, code: int, found: int
) -> None:
    console = tmp_path / "console.log"
    earlier = "srun: error: n1: task 0: Exited with exit code 2\n"
    console.write_text(earlier + said, encoding="utf-8")
    assert exit_code_of(console, len(earlier), code) == found


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
    write_submission(made.job.folder, kept())
    assert made._goes_on(record, Ending(last), begun_at=0) is goes_on
    write_submission(made.job.folder, kept(is_to_stop=True))
    assert not made._goes_on(record, Ending(last), begun_at=0)
    write_submission(made.job.folder, kept(token="newer"))
    assert not made._goes_on(record, Ending(last), begun_at=0)


def test_failures_of_earlier_submissions_count_up_to_the_limit_alone(tmp_path: Path) -> None:
    made = in_slurm(tmp_path)
    write_submission(made.job.folder, kept())
    two = JobRecord(0, ["seed=0"], attempts=attempts("killed", "killed"))
    assert made._goes_on(two, Ending("killed"), begun_at=1)
    three = JobRecord(0, ["seed=0"], attempts=attempts("killed", "killed", "killed"))
    assert not made._goes_on(three, Ending("killed"), begun_at=2)  # max_attempts=3


def test_three_starts_that_left_nothing_new_end_a_job(tmp_path: Path) -> None:
    made = in_slurm(tmp_path)
    idle = "stopped by a signal; nothing new was saved"
    for before, kind in ((0, "stopped"), (1, "stopped"), (2, "failed")):
        record = JobRecord(0, ["seed=0"], attempts=attempts(*["stopped"] * (before + 1), message=idle))
        assert made._if_idle(record, Ending("stopped", "stopped by a signal")).kind == kind
    assert made._if_idle(record, Ending("stopped", "stopped by a signal")).message == (
        "stopped by a signal; nothing new was saved, 3 times in a row. Raise hydra.launcher.time_minutes"
    )
    record.attempts[1].message = "stopped by a signal"  # it had saved something in between
    assert made._if_idle(record, Ending("stopped", "stopped by a signal")).kind == "stopped"


@pytest.mark.parametrize(("state", "kind"), [("RUNNING", "killed"), ("COMPLETING", "stopped"), ("UNKNOWN", "killed")])
def test_what_is_killed_while_slurm_ends_the_job_was_stopped(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, kind: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    slurm.answer("scontrol", f"JobId=12 JobState={state} Reason=None\n")
    assert in_slurm(tmp_path)._as_it_was_meant(Ending("killed", "killed by SIGKILL")).kind == kind


@pytest.mark.parametrize(("state", "asked"), [("RUNNING", [["requeue", "12"]]), ("CANCELLED", [])])
def test_a_job_that_somebody_ends_is_not_put_back_into_the_queue(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, asked: list[list[str]]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    slurm.answer("scontrol", f"JobId=12 JobState={state} Reason=None\n")
    in_slurm(tmp_path)._requeue()
    assert slurm.asked("scontrol")[1:] == asked
    assert slurm_job.slurm_id() == "12"
