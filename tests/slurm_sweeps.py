"""Sweeps and single runs on the Slurm of the tests: started, disturbed, and what they left."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from slurm_cluster import PATIENCE, SlurmCluster

from llm.run.metrics import history, read_metrics

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
