"""A sweep on a real Slurm: what disturbs a job costs it nothing but time, and it is submitted once.

The short form is one sweep of two; the rest runs with --storm, as make test-slurm has it.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from korean import documents
from slurm_cluster import PATIENCE, SlurmCluster, missing_programs, slurm_cluster, wait_for

from llm.run.record import history, read_metrics
from tests.wandb_server import WandbServer

pytestmark = pytest.mark.skipif(
    bool(missing_programs()),
    reason=f"{', '.join(missing_programs())} not installed: apt-get install slurm-wlm munge, or make test-slurm",
)


ROOT = Path(__file__).parents[1]
TEXT = [
    *("data=text", "data.path=text.txt", "data.held_out_share=0.2"),
    *("tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400"),
]
TINY = [
    *(*TEXT, "data.sequence_length=64", "data.batch_size=4", "trainer.sample_tokens=2", "logger=local"),
    *("model.num_layers=1", "model.num_heads=2", "model.hidden_size=16", "trainer.log_every_steps=1"),
    *("trainer.validate_every_steps=200", "trainer.checkpoint_every_steps=100"),
]
LONG = "trainer.max_steps=1500"  # some ten seconds of training
SLURM = ["hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster(nodes=2) as made:
        yield made


@pytest.fixture(autouse=True)
def _free_cluster(cluster: SlurmCluster) -> Iterator[None]:
    yield
    cluster.clear()


@pytest.fixture
def long_form(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--storm"):
        pytest.skip("a minute each: make test-slurm")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents(150)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LONG that nothing came between, in a folder of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(text, folder)
    done = subprocess.run(command(LONG), cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(text: Path, tmp_path: Path) -> Path:
    shutil.copy(text, tmp_path)
    return tmp_path


@pytest.fixture
def prepared(undisturbed: Path, folder: Path) -> Path:
    """A folder whose tokenizer and shards are made."""
    for stage in ("documents", "tokenizer", "shards"):
        shutil.copytree(undisturbed / "outputs" / stage, folder / "outputs" / stage)
    return folder


def environment(cluster: SlurmCluster | None = None) -> dict[str, str]:
    plain = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    return dict(os.environ) | plain | (cluster.environment if cluster else {})


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *TINY, *words]


def multirun(*words: str, settings: list[str] = TINY) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "-m", *SLURM, *settings, *words]


def start(
    cluster: SlurmCluster, folder: Path, *words: str, settings: list[str] = TINY, **variables: str
) -> "subprocess.Popen[str]":
    driver = subprocess.Popen(
        multirun(*words, settings=settings),
        cwd=folder,
        env=environment(cluster) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cluster.drivers.append(driver)
    return driver


def alone_in(folder: Path, prepared: Path, *words: str) -> Path:
    """A folder in which a command was carried out by itself, with the tokenizer and the shards of another."""
    for stage in ("tokenizer", "shards"):
        shutil.copytree(prepared / "outputs" / stage, folder / "outputs" / stage)
    shutil.copy(prepared / "text.txt", folder)
    subprocess.run(command(*words), cwd=folder, env=environment(), check=True, capture_output=True)
    return folder


def sweep(cluster: SlurmCluster, folder: Path, *words: str) -> tuple[int, str]:
    return ended(start(cluster, folder, *words))


def ended(driver: "subprocess.Popen[str]") -> tuple[int, str]:
    said = driver.communicate(timeout=3 * PATIENCE)
    return driver.returncode, "".join(said)


def ledger(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/sweeps/*/jobs/*/job.json"))]


def kinds(folder: Path, job: int = 0) -> list[str]:
    return [attempt["kind"] for attempt in ledger(folder)[job]["attempts"]]


def trainings(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("outputs/pretrain/*/run.json"))


def steps(folder: Path) -> int:
    """As many as the one training has written down."""
    files = list(folder.glob("outputs/pretrain/*/metrics.jsonl"))
    return files[0].read_bytes().count(b"\n") if files else 0


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every loss of the one training, by its step: a step that came twice would show."""
    [run] = trainings(folder)
    metrics = read_metrics(run / "metrics.jsonl")
    return {name: list(history(metrics, name)) for name in ("train/loss", "val/loss", "val/bits_per_byte")}


def preempt(cluster: SlurmCluster) -> None:
    cluster.run("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap=sleep 5")


def requeue(cluster: SlurmCluster) -> None:
    cluster.run("scontrol", "requeue", cluster.queue()[0][0])


def kill_rank(cluster: SlurmCluster) -> None:
    cluster.kill("train.py", "hydra.mode=RUN", "python")


def kill_batch(cluster: SlurmCluster) -> None:
    cluster.kill("llm.sweep.slurm_job")


def lose_node(cluster: SlurmCluster) -> None:
    name = cluster.run("squeue", "--noheader", "--states=RUNNING", "--format=%N").strip()
    cluster.lose_node(name)


def batch(cluster: SlurmCluster, folder: Path, script: str, *arguments: str) -> str:
    """What a batch script says; the job has ended."""
    path = folder / "batch.sh"
    path.write_text(f"#!/bin/bash\n{script}\necho ended with $?\n", encoding="utf-8")
    console = folder / "batch.log"
    subprocess.run(
        ["sbatch", "--wait", f"--output={console}", *arguments, str(path)],
        **{"cwd": folder, "env": environment(cluster), "capture_output": True, "timeout": 3 * PATIENCE},
    )
    return console.read_text(encoding="utf-8")


def test_the_jobs_of_a_sweep_run_on_the_cluster_once(cluster: SlurmCluster, folder: Path) -> None:
    before = cluster.submitted()
    words = [*TEXT[:-1], "stage=tokenizer", "tokenizer.vocab_size=400,410", "logger=local"]
    code, said = ended(start(cluster, folder, settings=words))
    assert code == 0, said
    assert [record["state"] for record in ledger(folder)] == ["done", "done"]
    for line in ("tokenizer.vocab_size=410: queued", "tokenizer.vocab_size=410: running, as Slurm's", ": done"):
        assert line in said
    assert cluster.submitted() - before == 2
    code, said = ended(start(cluster, folder, settings=words))
    assert code == 0 and said.count("reused ") == 2
    assert cluster.submitted() - before == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("hydra.launcher.partition=nowhere", "sbatch refuses the job: invalid partition specified: nowhere"),
        ("hydra.launcher.gpus_per_node=3", "sbatch refuses the job: Requested node configuration is not available"),
        ("trainer.num_nodes=4", "sbatch refuses the job: Requested node configuration is not available"),
    ],
)
def test_what_the_cluster_cannot_run_is_one_line_before_the_first_job(cluster, folder, words, line) -> None:
    before = cluster.submitted()
    code, said = sweep(cluster, folder, "seed=0,1", *words.split())
    assert code == 2
    assert said.startswith(f"error: {line}") and said.count("\n") == 1
    assert not (folder / "outputs").exists() and cluster.submitted() == before


@pytest.mark.usefixtures("long_form")
@pytest.mark.parametrize(
    ("disturb", "last_kinds"),
    [
        (preempt, ["stopped", "done"]),
        (kill_rank, ["killed", "done"]),
        (kill_batch, ["killed", "done"]),
        (lose_node, ["unfinished", "done"]),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_a_disturbed_job_goes_on_and_ends_with_the_same_losses_to_the_bit(
    cluster: SlurmCluster,
    prepared: Path,
    undisturbed: Path,
    disturb: Callable[[SlurmCluster], None],
    last_kinds: list[str],
) -> None:
    driver = start(cluster, prepared, LONG, "seed=0")
    wait_for(lambda: steps(prepared) > 150)
    disturb(cluster)
    code, said = ended(driver)
    if disturb is lose_node:
        for number in (1, 2):
            if not cluster.run("sinfo", "-h", "-n", f"n{number}", "-o", "%t").startswith(("idle", "mix", "alloc")):
                cluster.start_node(f"n{number}")
    assert code == 0, said
    assert steps(prepared) < 1500 * 1.1
    assert kinds(prepared) == last_kinds, said
    assert curves(prepared) == curves(undisturbed)


@pytest.mark.usefixtures("long_form")
def test_a_job_that_is_requeued_goes_on_in_the_same_wandb_run(
    cluster: SlurmCluster, prepared: Path, undisturbed: Path
) -> None:
    settings = ["logger.mode=online", *(each for each in TINY if not each.startswith("logger="))]
    own = {"NETRC": str(prepared / "netrc"), "WANDB_CONFIG_DIR": str(prepared / "config")}
    with WandbServer() as server:
        driver = start(cluster, prepared, LONG, "seed=0", settings=settings, **own, **server.environment)
        wait_for(lambda: steps(prepared) > 150)
        requeue(cluster)
        code, said = ended(driver)
    assert code == 0, said
    assert kinds(prepared) == ["stopped", "done"]
    assert curves(prepared) == curves(undisturbed)
    [run] = trainings(prepared)
    [(run_id, view)] = server.runs.items()
    assert run_id == f"pretrain-{run.name}" and view["groupName"].startswith("pretrain-")
    rows = [(row["_step"], row["tokens"]) for row in server.history(run_id)]
    assert rows == [(number, record["tokens"]) for number, record in enumerate(read_metrics(run / "metrics.jsonl"))]
    assert server.exit_code(run_id) == 0


@pytest.mark.usefixtures("long_form")
def test_at_the_end_of_its_time_a_job_saves_and_goes_on_in_the_same_run(
    cluster: SlurmCluster, prepared: Path, undisturbed: Path
) -> None:
    """Slurm looks every half minute, and warns up to a minute too early: the first start waits until it has.

    The next has forty seconds at least, in which a slow machine comes further too.
    """
    limits = ("hydra.launcher.time_minutes=2", "hydra.launcher.signal_seconds=20")
    driver = start(cluster, prepared, LONG, "seed=0", *limits)
    wait_for(lambda: steps(prepared) > 20)
    cluster.hold_until(signal.SIGUSR1, seconds=115)
    code, said = ended(driver)
    assert code == 0, said
    assert len(set(kinds(prepared)[:-1])) == 1 and kinds(prepared)[0] == "stopped" and kinds(prepared)[-1] == "done"
    assert curves(prepared) == curves(undisturbed)


@pytest.mark.usefixtures("long_form")
def test_two_nodes_train_one_model_and_are_preempted_together(cluster: SlurmCluster, prepared: Path) -> None:
    alone = alone_in(prepared / "alone", prepared, LONG, "trainer.devices=2")
    driver = start(cluster, prepared, LONG, "seed=0", "trainer.num_nodes=2")
    wait_for(lambda: steps(prepared) > 50)
    preempt(cluster)
    code, said = ended(driver)
    assert code == 0, said
    assert kinds(prepared) == ["stopped", "done"]
    assert curves(prepared) == curves(alone)


@pytest.mark.usefixtures("long_form")
def test_a_driver_that_is_left_is_taken_up_again_and_submits_nothing_twice(
    cluster: SlurmCluster, prepared: Path
) -> None:
    before = cluster.submitted()
    words = (LONG, "seed=0,1,2", "hydra.launcher.array_parallelism=1")
    driver = start(cluster, prepared, *words)
    wait_for(lambda: steps(prepared) > 20)
    driver.kill()
    assert ended(driver)[0] == -signal.SIGKILL
    driver = start(cluster, prepared, *words)
    assert driver.stderr and any("running, as Slurm's" in line for line in iter(driver.stderr.readline, ""))
    driver.send_signal(signal.SIGINT)
    code, said = ended(driver)
    assert code == 75
    assert "SIGINT: 1 jobs run and 2 are queued in Slurm, and stay there. The same command follows them" in said
    assert [state for _, state in cluster.queue()].count("RUNNING") == 1
    code, said = sweep(cluster, prepared, *words)
    assert code == 0, said
    assert cluster.submitted() - before == 3
    assert [kinds(prepared, job) for job in range(3)] == [["done"]] * 3


@pytest.mark.usefixtures("long_form")
def test_a_cancelled_job_stays_cancelled(cluster: SlurmCluster, prepared: Path) -> None:
    driver = start(cluster, prepared, LONG, "seed=0")
    wait_for(lambda: steps(prepared) > 50)
    cluster.run("scancel", cluster.queue()[0][0])
    code, said = ended(driver)
    assert code == 75, said
    assert "seed=0: stopped; it can go on" in said
    assert kinds(prepared) == ["stopped"] and not cluster.queue()


@pytest.mark.usefixtures("long_form")
def test_a_search_asks_the_cluster(cluster: SlurmCluster, prepared: Path) -> None:
    words = ("trainer.max_steps=20", "optimizer.learning_rate=interval(1e-4,1e-2)", "hydra.sweeper.trials=3")
    code, said = sweep(cluster, prepared, *words, "hydra.sweeper.sampler=random")
    assert code == 0, said
    assert [record["state"] for record in ledger(prepared)] == ["done"] * 3


@pytest.mark.usefixtures("long_form")
def test_single_runs_in_an_allocation_are_right_or_refused(cluster: SlurmCluster, prepared: Path) -> None:
    train = shlex.join(command("trainer.max_steps=5"))
    said = batch(cluster, prepared, f"srun --ntasks=2 {train}", "--ntasks=2")
    assert "this launch has 2 processes, but trainer.devices=1 on trainer.num_nodes=1 takes 1. Make them the" in said
    assert not list(prepared.glob("outputs/pretrain"))
    said = batch(cluster, prepared, f"{train} trainer.devices=2", "--ntasks=2")  # no srun: it starts its own
    assert "ended with 0" in said
    said = batch(cluster, prepared, f"srun {train} seed=1", "--ntasks=1")
    assert "ended with 0" in said
    two = f"srun --ntasks=2 {train} seed=2 trainer.devices=2"  # Lightning wants to be told --ntasks-per-node
    assert "ended with 0" in batch(cluster, prepared, two, "--nodes=1", "--ntasks=2")


@pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="its tasks are bound to the cores 0 and 1")
@pytest.mark.usefixtures("long_form")
def test_the_tasks_of_an_array_share_the_parts_of_a_mixture(cluster: SlurmCluster, tmp_path: Path) -> None:
    names = ("law", "news", "talk")
    for seed, name in enumerate(names):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents(1000, seed=seed) * 40), encoding="utf-8")
    parts = ", ".join(f"{name}: {{use: text, path: {name}.txt}}" for name in names)
    words = ["stage=shards", "data=mixture", f"data.parts={{{parts}}}", "data.held_out_share=0.2"]
    words += ["tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400", "data.tokenizer_part=law", "logger=local"]
    train = [sys.executable, str(ROOT / "train.py"), *words]
    alone = [*train, "outputs=alone", "data.num_workers=1"]
    subprocess.run(alone, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    shutil.copytree(tmp_path / "alone" / "tokenizer", tmp_path / "outputs" / "tokenizer")
    script = tmp_path / "array.sh"
    script.write_text(f"#!/bin/bash\ntaskset -c $SLURM_ARRAY_TASK_ID {shlex.join(train)}\n", encoding="utf-8")
    cluster.run("sbatch", "--wait", "--array=0-1", f"--chdir={tmp_path}", f"--output={tmp_path}/%a.log", str(script))
    said = [(tmp_path / f"{task}.log").read_text(encoding="utf-8") for task in (0, 1)]
    begun = [text.count("shards starts in") for text in said]
    assert sum(begun) == 4 and min(begun) >= 1, said
    digests = [
        {
            path.parent.name: json.loads(path.read_text())["digest"]
            for path in tmp_path.glob(f"{folder}/shards/*/run.json")
        }
        for folder in ("alone", "outputs")
    ]
    assert len(digests[0]) == 4 and digests[0] == digests[1]
